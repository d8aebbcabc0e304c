"""Learners as processes, and what they left on the broker."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from pipeline.broker import Broker, Record, Topic, connect
from pipeline.records.topics import Topics
from pipeline.settings import Settings

LOOK = 0.02  # seconds between two looks at how far a learner has come


def fill(url: str, records: Sequence[Record], prefix: str = "", partitions: int = 1) -> None:
    with closing(connect(url)) as broker:
        broker.ensure_topics([Topic(f"{prefix}images", partitions)])
        with closing(broker.producer("prove")) as producer:
            for start in range(0, len(records), 1000):
                with producer.transaction() as transaction:
                    some = records[start : start + 1000]
                    transaction.produce(record._replace(topic=f"{prefix}images") for record in some)


def command(url: str, folder: str, images: int | None, settings: Settings, *more: str) -> list[str]:
    flags = ["--broker", url, "--snapshots", f"{folder}/snapshots", "--snapshot-images", "5000", "--json",
             "--metrics-port", "0", "--filters", str(settings.filters), "--session-timeout", "3"]  # fmt: skip
    return [
        sys.executable,
        "-m",
        "consumers.learn",
        *flags,
        *more,
        *([] if images is None else ["--images", str(images)]),
    ]


def learn(url: str, folder: str, images: int, settings: Settings, *more: str) -> dict[str, Any]:
    """Let a learner run to its end; its summary."""
    done = subprocess.run(command(url, folder, images, settings, *more), check=True, capture_output=True)
    summary: dict[str, Any] = orjson.loads(done.stdout)
    return summary


def position(broker: Broker, prefix: str = "") -> int:
    return sum(found.offset for found in broker.committed(f"{prefix}learn", f"{prefix}images").values())


def at_the_end(broker: Broker, prefix: str = "") -> bool:
    """Whether every image is predicted; the last offset of a partition is a record of the broker's own."""
    done, extents = broker.committed(f"{prefix}learn", f"{prefix}images"), broker.extents(f"{prefix}images")
    return all(place in done and extent.end - done[place].offset <= 1 for place, extent in extents.items())


def served_ids(broker: Broker, prefix: str = "") -> list[str]:
    topic = Topics(prefix).predictions
    broker.ensure_topics([Topic(topic)])
    return [
        orjson.loads(message.value)["id"]
        for partition, extent in broker.extents(topic).items()
        for message in broker.read(partition, extent.first, extent.end)
    ]


class Group:
    """Learners that share a topic, each with a disk of its own."""

    def __init__(self, url: str, prefix: str, folder: Path, settings: Settings) -> None:
        self.prefix, self.folder, self._url, self._settings = prefix, folder, url, settings
        self._running: list[subprocess.Popen[bytes]] = []
        self._started = 0

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--topic-prefix", self.prefix, "--group", f"{self.prefix}learn", "--partitions", "4")

    def _has_come_to(self, broker: Broker, target: int) -> bool:
        return position(broker, self.prefix) >= target

    def disturb(self, broker: Broker, count: int, images: int, mishaps: int) -> None:
        """Let ``count`` learners work to the end of the stream, and something happen to them that often."""
        rng = random.Random(count)
        try:
            for _ in range(count):
                self._start()
            for n in range(mishaps):
                target = int(images * 0.9 * (n + rng.random()) / mishaps)
                self._await(partial(self._has_come_to, broker, target))
                self._mishap(rng)
            self._await(lambda: at_the_end(broker, self.prefix))
        finally:
            for process in self._running:
                process.send_signal(signal.SIGTERM)
            for process in self._running:
                process.wait()

    def _mishap(self, rng: random.Random) -> None:
        victim = rng.choice(self._running)
        if rng.random() < 0.3:  # a pause, longer than its session; another one joins meanwhile, and then leaves
            victim.send_signal(signal.SIGSTOP)
            self._start()
            time.sleep(5)
            victim.send_signal(signal.SIGCONT)
            self._end(self._running[-1], signal.SIGTERM)
        else:
            self._end(victim, signal.SIGKILL)
            self._start()

    def _start(self) -> None:
        self._started += 1
        one = command(self._url, str(self.folder / str(self._started)), None, self._settings, *self.flags)
        quiet = subprocess.DEVNULL
        self._running.append(subprocess.Popen(one, stdout=quiet, stderr=quiet))

    def _end(self, process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
        process.send_signal(how)
        process.wait()
        self._running.remove(process)

    def _await(self, condition: Callable[[], bool]) -> None:
        while not condition() and any(process.poll() is None for process in self._running):
            time.sleep(LOOK)
