"""Groups of real learners, each a process of its own, on one stream over a real broker."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.accuracy import HeldOut
from benchmarks.processes import at_the_end, fill, learn, position
from benchmarks.scale.watch import LOOK, Watched, learning
from pipeline.broker import Broker, Record, Tail, Topic, connect
from pipeline.group.encoding import kind
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.predict import learner_of
from pipeline.snapshots.snapshot import Folder

REAL = (1, 2, 4)
PARTITIONS = 4
STRETCH = 5120
"""Images that accuracy during the stream is told of: over fewer, chance is larger than what learners differ by."""


@dataclass
class Traffic:
    """What goes over the topic ``sums``: bytes and number of records, by kind."""

    tail: Tail
    bytes: int = 0
    records: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        while messages := self.tail.poll(0.0):
            for message in messages:
                self.bytes += len(message.value) + sum(len(name) + len(value) for name, value in message.headers)
                if dict(message.headers)["piece"].startswith(b"0/"):
                    self.records[kind(message)] = self.records.get(kind(message), 0) + 1


@dataclass(frozen=True)
class Place:
    """A group with topics of its own; each learner keeps to one of ``cores``, or all share all of the machine's."""

    url: str
    name: str
    folder: Path
    settings: Settings
    cores: Sequence[Collection[int]] = ()

    @property
    def prefix(self) -> str:
        return f"{self.name}."

    @property
    def group(self) -> str:
        return f"{self.prefix}learn"

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--topic-prefix", self.prefix, "--group", self.group, "--partitions", str(PARTITIONS))

    def start(self, number: int) -> Any:
        cores = self.cores[number] if self.cores else ()
        return learning(self.url, self.folder / self.name / str(number), self.settings, *self.flags, cores=cores)

    @contextmanager
    def at_work(self, count: int, broker: Broker) -> Iterator[tuple[list[Watched], list[float], Traffic]]:
        """So many learners on an empty topic, and the seconds in which each of them came to be at work."""
        topics = Topics(self.prefix)
        sums = topics.sums(self.group)
        broker.ensure_topics([Topic(topics.images, PARTITIONS), Topic(sums.topic, 1)])
        with ExitStack() as stack:
            traffic = Traffic(broker.tail(sums, 0))
            stack.callback(traffic.tail.close)
            learners = [stack.enter_context(self.start(number)) for number in range(count)]
            seconds: dict[int, float] = {}
            while len(seconds) < count or not all(each.value("marketplace_at_work") for each in learners):
                for number, each in enumerate(learners):
                    if number not in seconds and each.value("marketplace_at_work"):
                        seconds[number] = time.monotonic() - each.begun
                time.sleep(LOOK)
            yield learners, [seconds[number] for number in range(count)], traffic

    def served(self, broker: Broker) -> list[dict[str, Any]]:
        """All predictions, in the order in which they were committed."""
        extents = broker.extents(Topics(self.prefix).predictions)
        return [
            orjson.loads(m.value) for p, extent in extents.items() for m in broker.read(p, extent.first, extent.end)
        ]


def measure(place: Place, count: int, records: Sequence[Record], held_out: HeldOut) -> dict[str, Any]:
    """Let ``count`` learners work through the images, which come when all of them are at work.

    Images a second are those between the moment when the last image has come and that when nine tenths of the rest are
    predicted; processor seconds are those of the learners in between.
    """
    patient = place.settings.model_copy(update={"session_timeout": 60.0})
    with closing(connect(place.url, patient)) as broker:
        with place.at_work(count, broker) as (learners, joined, traffic):
            fill(place.url, records, place.prefix, PARTITIONS)
            begun, first, spent = time.monotonic(), position(broker, place.prefix), _spent(learners)
            wanted = first + int(0.9 * (len(records) - first))
            while position(broker, place.prefix) < wanted:
                traffic.look()
                time.sleep(LOOK)
            seconds, images = time.monotonic() - begun, position(broker, place.prefix) - first
            spent = _spent(learners) - spent
            while not at_the_end(broker, place.prefix):
                traffic.look()
                time.sleep(LOOK)
            took_over = max(each.value("marketplace_take_over_seconds_sum") for each in learners)
            for each in learners:
                each.stop()
            traffic.look()
        summary = learn(place.url, str(place.folder / place.name / "last"), 0, place.settings, *place.flags)
        served = place.served(broker)
    folder = place.folder / place.name / "last" / "snapshots" / f"{place.prefix}{place.group}"
    newest = Folder(folder, 1).newest()
    assert newest
    return {
        "learners": count,
        "images_per_second": images / seconds,
        "processor_seconds_per_image": spent / images,
        "sums_bytes": traffic.bytes,
        "sums_records": traffic.records,
        "seconds_to_work": max(joined),
        "seconds_to_take_over": took_over,
        "predictions": len(served),
        "each_once": len({one["id"] for one in served}) == len(served) == len(records),
        "prequential": sum(one["predicted"] == one["label"] for one in served) / len(served),
        "stretches": stretches(served),
        "held_out": held_out.outcomes(learner_of(newest)).summary()["overall"],
        "digest": summary["digest"],
    }


def _spent(learners: Sequence[Watched]) -> float:
    return sum(each.value("process_cpu_seconds_total") for each in learners)


def stretches(served: Sequence[dict[str, Any]]) -> list[float]:
    """The share of right predictions in one stretch of the stream after the other."""
    right = np.array([one["predicted"] == one["label"] for one in served])
    whole = len(right) // STRETCH * STRETCH
    return [float(share) for share in right[:whole].reshape(-1, STRETCH).mean(axis=1)]


def join_amid_work(place: Place, records: Sequence[Record]) -> dict[str, float]:
    """A third learner joins two that are at work, when a quarter of the images are predicted."""
    patient = place.settings.model_copy(update={"session_timeout": 60.0})
    with closing(connect(place.url, patient)) as broker, place.at_work(2, broker):
        fill(place.url, records, place.prefix, PARTITIONS)
        while position(broker, place.prefix) < len(records) / 4:
            time.sleep(LOOK)
        with place.start(2) as third:
            at_work = third.seconds_until("marketplace_at_work")
            while not third.value("marketplace_images_total") and not at_the_end(broker, place.prefix):
                time.sleep(LOOK)
            return {
                "seconds_to_work": at_work,
                "seconds_to_predict": time.monotonic() - third.begun,
                "seconds_to_take_over": third.value("marketplace_take_over_seconds_sum"),
            }
