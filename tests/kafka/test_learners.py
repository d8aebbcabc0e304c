"""Several learners in one group over a real Kafka broker learn one model: that of a single, undisturbed one."""

import json
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from consumers.learn import main
from pipeline.broker import Broker, Partition, Position
from pipeline.errors import SumsError
from pipeline.features import make
from pipeline.group.publishing import LONG_DELTA
from pipeline.history import commands as history
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.topics import Topics
from tests.consumers.harness import FILTERS, Place, digest_of, each_once, records
from tests.pipeline.synthetic import stream

Capture = pytest.CaptureFixture[str]

PARTITIONS = 4
SECONDS = 90.0
"""For what takes a few where the machine is idle."""


@pytest.fixture
def place(tmp_path: Path, kafka_url: str) -> Place:
    return Place(tmp_path, kafka_url, f"t{uuid.uuid4()}.")


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


def check(place: Place, capsys: Capture, total: int) -> None:
    """Whoever comes last, with an empty disk, has the model of one learner that was never disturbed."""
    summary = place.learn(capsys, "--images", 0, "--snapshots", place.folder / "last")
    assert each_once(place.predictions(), total)
    assert summary["digest"] == digest_of(total)
    assert summary["settled_images"] == total


def test_two_learners_come_to_the_digest_of_one_and_each_counts_its_own(place: Place, capsys: Capture) -> None:
    total = 2000
    some = records(total)
    place.send(some[:500], PARTITIONS)
    patient = ("--session-timeout", 30)  # who loses its session and comes back counts for those who are gone too
    with learners(place) as group:
        one = group.start(*patient)
        group.work_to(500)
        two = group.start(*patient)
        place.send(some[500:], PARTITIONS)
        group.work_to_the_end()
        summaries = [group.stop(two), group.stop(one)]
    assert sum(summary["labelled_images"] for summary in summaries) == total
    check(place, capsys, total)


def test_learners_that_are_killed_paused_and_joined_lose_nothing_and_count_nothing_twice(
    place: Place, capsys: Capture
) -> None:
    total, rng = 3200, random.Random(0)
    place.send(records(total), PARTITIONS)
    with learners(place) as group:
        for process in [group.start() for _ in range(3)]:
            group.work_to(int(0.9 * total * rng.random()))
            if rng.random() < 0.5:
                group.kill(process)
            else:
                pause(process, 4.0)  # longer than its session
            group.start()
        group.work_to_the_end()
        for process in list(group.running):
            group.stop(process)
    check(place, capsys, total)


def pause(process: "subprocess.Popen[str]", seconds: float) -> None:
    """The others go on meanwhile; when it goes on too, its time is over, and it has to notice."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


def test_who_comes_late_reads_the_newest_base_and_what_lies_before_it_is_deleted(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.pace.DELETE_SECONDS", 0.0)
    monkeypatch.setattr("consumers.pace.READ_SECONDS", 0.0)  # so that it publishes as often as it can
    monkeypatch.setattr("pipeline.group.publishing.SHORT_DELTA", LONG_DELTA)  # and 16 deltas make a base due
    total = 3200
    place.send(records(total), PARTITIONS)
    place.learn(capsys, "--images", total, "--publish-images", 32)
    with place.broker() as broker:
        sums = Topics(place.prefix).sums(place.group)
        assert broker.extents(sums.topic)[sums].first > 0
    check(place, capsys, total)


def test_more_learners_than_partitions_stand_by_and_take_over(place: Place, capsys: Capture) -> None:
    total = 1600
    place.send(records(total), partitions=1)
    with learners(place) as group:
        one, _ = group.start(), group.start()
        group.work_to(300)
        group.kill(one)
        group.work_to_the_end()
        for process in list(group.running):
            group.stop(process)
    check(place, capsys, total)


def test_a_learner_of_another_identity_is_refused_with_the_difference(place: Place, capsys: Capture) -> None:
    place.send(records(100), PARTITIONS)
    place.learn(capsys, "--images", 100)
    other = ("--images", 0, "--filters", 5, "--snapshots", place.folder / "other")
    with pytest.raises(SumsError, match=r"learner that differs \(.*filters 5 is not 4.*\): use the settings"):
        main(place.flags(*other))


def test_what_is_taken_back_is_taken_back_by_all_once(place: Place, capsys: Capture) -> None:
    place.send(records(200), PARTITIONS)
    where = ("--broker", place.url, "--topic-prefix", place.prefix, "--group", place.group, "--json")
    with learners(place) as group:
        one, two = (group.start("--publish-images", 50) for _ in range(2))
        group.work_to_the_end()
        group.stop(two)

        def take_back() -> bool:
            capsys.readouterr()
            history.main(["retract", *where, "--id", "0/00003", "--yes"])
            return bool(json.loads(capsys.readouterr().out)["done"])

        until(take_back)  # as soon as it is published
        assert not take_back()
        group.stop(one)
    images, labels = stream(200)
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    kept = [i for i in range(200) if i != 3]
    learner.add(learner.settle(learner.quote(images[kept]), [labels[i] for i in kept]))
    expected = learner.sums().digest(ClearingIdentity.of(FILTERS, "squared").digest)
    again = place.learn(capsys, "--images", 0, "--snapshots", place.folder / "last")
    assert again["digest"] == expected


def test_learners_begin_with_an_earlier_model_which_those_who_come_later_need_not_have(
    place: Place, tmp_path: Path, capsys: Capture
) -> None:
    first = Place(tmp_path / "first")
    first.send(records(300))
    first.learn(capsys, "--images", 300)
    model = next(first.folder.rglob("*.safetensors"))
    place.send(records(300, seed=1), 2)
    begun = place.learn(capsys, "--images", 200, "--snapshot", model, "--snapshots", place.folder / "one")
    assert begun["settled_images"] == 500
    again = place.learn(capsys, "--images", 100, "--snapshots", place.folder / "two")
    assert again["settled_images"] == 600
