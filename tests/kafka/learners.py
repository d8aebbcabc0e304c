"""Learners as processes in one group over a real broker, each with a disk of its own."""

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.broker import Broker, Partition, Position
from tests.consumers.harness import Place

PARTITIONS = 4
SECONDS = 90.0
"""For what takes a few where the machine is idle."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Learners:
    """Processes in one group, each with a disk of its own."""

    place: Place
    stack: ExitStack
    running: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *more: object) -> "subprocess.Popen[str]":
        folder = self.place.folder / f"disk-{uuid.uuid4().hex}"
        flags = ("--batch-size", 16, "--snapshots", folder, *more)
        process = self.stack.enter_context(self.place.learner(*flags))
        self.running.append(process)
        return process

    def kill(self, process: "subprocess.Popen[str]") -> None:
        process.kill()
        process.communicate()
        self.running.remove(process)

    def stop(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        """As Ctrl-C does; its summary."""
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        self.running.remove(process)
        summary: dict[str, Any] = json.loads(out)
        return summary

    def work_to(self, done: int) -> None:
        """Until the group's positions add up to so many."""
        with self.place.broker() as broker:
            until(lambda: self.all_alive() and sum(at.offset for at in self._committed(broker).values()) >= done)

    def work_to_the_end(self) -> None:
        """Until all is learnt, and who came late is in the group: before that it does not know how to stop cleanly."""
        with self.place.broker() as broker:
            until(lambda: self.all_alive() and self._is_at_the_end(broker))
            until(lambda: self.all_alive() and broker.members(self.place.group) == len(self.running))

    def _is_at_the_end(self, broker: Broker) -> bool:
        committed = self._committed(broker)
        ends = broker.extents(f"{self.place.prefix}images")  # the last offset is a record of the broker's own
        return all(place in committed and extent.end - committed[place].offset <= 1 for place, extent in ends.items())

    def _committed(self, broker: Broker) -> Mapping[Partition, Position]:
        return broker.committed(self.place.group, f"{self.place.prefix}images")

    def all_alive(self) -> bool:
        for process in self.running:
            assert process.poll() is None, process.communicate()
        return True


@contextmanager
def learners(place: Place) -> Iterator[Learners]:
    with ExitStack() as stack:
        yield Learners(place, stack)


def pause(process: "subprocess.Popen[str]", seconds: float) -> None:
    """The others go on meanwhile; when it goes on too, its time is over, and it has to notice."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
