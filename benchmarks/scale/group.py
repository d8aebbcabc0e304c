"""Groups of real learners, each a process of its own, on one stream over a real broker."""

import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.accuracy import HeldOut
from benchmarks.curves import Served, predictions
from benchmarks.scale.model import Costs
from benchmarks.speed import environment, program, timed
from deploy.local.process import free_ports
from pipeline.broker import Broker, Member, Message, Partition, Position, Record, Topic
from pipeline.errors import BrokerError
from pipeline.features import Filters
from pipeline.group.encoding import GroupReader, LogIdentity, encode, kind
from pipeline.group.publishing import CHECKPOINT_IMAGES, LONG_DELTA
from pipeline.group.shared import Checkpoint, Delta, GroupRecord, Shared
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.sums import LooseSums, Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.protocol import AnyLearner
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.predict import learner_of
from pipeline.snapshots.snapshot import Folder

REAL = (1, 2, 4)
PARTITIONS = 4
STRETCH = 5120
"""Images that accuracy during the stream is told of: over fewer, chance is larger than what learners differ by."""

AT_WORK, TOOK_OVER = "marketplace_at_work", "marketplace_take_over_seconds_sum"

LONG, WAITING = 10_000_000, 4096
"""Images that a group has learnt from, and those that still wait, when a late learner comes."""

LEFT = 1 + CHECKPOINT_IMAGES // LONG_DELTA
"""Deltas that such a group leaves: the one published with the newest base, and those until the next one is due."""

TIMES = 3
"""That these records are read, to learn what it costs."""

PREDICTION_BYTES = 400
"""Of a prediction with its five best scores, as ``benchmarks.kafka`` has it."""


def wait(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


class Learner:
    """A process, seen through its metrics; ``begun`` is when it was started, on the monotonic clock."""

    def __init__(self, folder: Path, cores: Collection[int], **settings: object) -> None:
        folder.mkdir(parents=True)
        self._log, (port,), self.begun = folder / "log", free_ports(1), time.monotonic()
        self._address = f"http://127.0.0.1:{port}/metrics"
        variables = environment(**settings, snapshots=folder, metrics_port=port)
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "consumers.learn", "--json"]
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        if cores:
            os.sched_setaffinity(self.process.pid, cores)  # long before it counts them

    def value(self, name: str) -> float:
        """A metric, all its labels added up; 0 as long as it is not shown. Raises BrokerError if the learner ended."""
        if self.process.poll() is not None:
            raise BrokerError(f"a learner ended: {self._log.read_text().strip()[-500:]}")
        try:
            with urllib.request.urlopen(self._address, timeout=30) as answer:
                families = text_string_to_metric_families(answer.read().decode())
        except OSError:
            return 0.0
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def seconds_until(self, condition: Callable[[], object]) -> float:
        """Since its process was started."""
        wait(condition)
        return time.monotonic() - self.begun


class Group:
    """Learners with topics of their own. Each keeps to one of ``cores``, or all share all of the machine's."""

    def __init__(
        self, broker: Broker, settings: Settings, name: str, folder: Path, cores: Sequence[Collection[int]] = ()
    ) -> None:
        self.broker, self.name, self._folder, self._cores = broker, name, folder / name, cores
        self.topics = Topics(f"{name}.")
        self.sums, self.identity = self.topics.sums(name), ClearingIdentity.of(Filters(settings.seed, settings.filters))
        shared = ("broker", "filters", "seed")
        self._settings: dict[str, object] = {name: getattr(settings, name) for name in shared}
        self._settings |= {"topic_prefix": self.topics.prefix, "group": name, "partitions": PARTITIONS}

    def fill(self, images: int) -> None:
        """Put the first images of the stream on the topic."""
        options = ("--images", images, "--rate", 0, "--seed", self._settings["seed"])
        program("producers.replay", "mixed", *options, **self._settings, producer_metrics_port=0)

    def position(self) -> int:
        return sum(at.offset for at in self.broker.committed(self.name, self.topics.images).values())

    def at_the_end(self) -> bool:
        """Whether every image is predicted; the last offset of a partition is a record of the broker's own."""
        done, extents = self.broker.committed(self.name, self.topics.images), self.broker.extents(self.topics.images)
        return all(place in done and extent.end - done[place].offset <= 1 for place, extent in extents.items())

    def log(self) -> Iterator[Message]:
        """What the topic ``sums`` holds."""
        extent = self.broker.extents(self.sums.topic)[self.sums]
        return self.broker.read(self.sums, extent.first, extent.end)

    @contextmanager
    def learner(self, number: int) -> Iterator[Learner]:
        """One for the length of the block, if nobody stops it before."""
        cores = self._cores[number] if self._cores else ()
        learner = Learner(self._folder / str(number), cores, **self._settings, session_timeout=3)
        try:
            yield learner
        finally:
            learner.process.kill()
            learner.process.wait()

    @contextmanager
    def at_work(self, count: int) -> Iterator[tuple[list[Learner], float]]:
        """So many, and the seconds until the last of them was at work."""
        with ExitStack() as stack:
            learners = [stack.enter_context(self.learner(number)) for number in range(count)]
            seconds = max(each.seconds_until(partial(each.value, AT_WORK)) for each in learners)
            wait(lambda: all(each.value(AT_WORK) for each in learners))
            yield learners, seconds

    def last(self) -> tuple[str, AnyLearner]:
        """The digest that whoever comes last comes to, with an empty disk, and what it has learnt."""
        folder = self._folder / "last"
        settings = {**self._settings, "snapshots": folder, "metrics_port": 0, "session_timeout": 3}
        summary = program("consumers.learn", "--images", 0, **settings)
        newest = Folder(folder / f"{self.topics.prefix}{self.name}", 1).newest()
        assert newest
        return summary["digest"], learner_of(newest)


def measure(group: Group, count: int, images: int, held_out: HeldOut) -> dict[str, Any]:
    """Let ``count`` learners work through the images, which come when all of them are at work.

    Images a second are those between the moment when the last image has come and that when nine tenths of the rest are
    predicted; processor seconds are those of the learners in between.
    """
    with group.at_work(count) as (learners, to_work):

        def now() -> NDArray[np.float64]:
            spent = sum(each.value("process_cpu_seconds_total") for each in learners)
            return np.array([time.monotonic(), group.position(), spent])

        group.fill(images)
        begun = now()
        wait(lambda: group.position() >= begun[1] + 0.9 * (images - begun[1]))
        seconds, predicted, spent = (now() - begun).tolist()
        wait(group.at_the_end)
        took_over = max(each.value(TOOK_OVER) for each in learners)
        for each in learners:
            each.process.terminate()
            each.process.wait()
    left = list(group.log())
    kinds = Counter(kind(message) for message in left if dict(message.headers)["piece"].startswith(b"0/"))
    served = list(predictions(group.broker, group.topics, group.name))
    digest, learner = group.last()
    return {
        "learners": count,
        "images_per_second": predicted / seconds,
        "processor_seconds_per_image": spent / predicted,
        "sums_bytes": sum(len(message.value) for message in left),
        "deltas": kinds["delta"],
        "bases": kinds["base"],
        "seconds_to_work": to_work,
        "seconds_to_take_over": took_over,
        "each_once": len({one["id"] for one in served}) == len(served) == images,
        "prequential": sum(one["predicted"] == one["label"] for one in served) / len(served),
        "stretches": stretches(served),
        "held_out": held_out.accuracy(learner)["overall"],
        "digest": digest,
    }


def stretches(served: Sequence[Served]) -> list[float]:
    """The share of right predictions in one stretch of the stream after the other."""
    right = np.array([one["predicted"] == one["label"] for one in served])
    whole = len(right) // STRETCH * STRETCH
    return [float(share) for share in right[:whole].reshape(-1, STRETCH).mean(axis=1)]


def times(sums: Sums, number: int) -> Sums:
    """So many of the same sums, added up."""
    columns = {name: number * column for name, column in sums.T.items()}
    return Sums(number * sums.A, columns, {name: number * count for name, count in sums.counts.items()})


def join_late(group: Group, image: Record, delta: Sums) -> tuple[dict[str, Any], Costs]:
    """A learner with an empty disk begins in a group that has learnt from ten million images.

    The topic ``sums`` is written as such a group leaves it just before its next checkpoint is due, with records of the
    real size. Every delta holds the same images, and the checkpoint so many times their sums. Each moves the clock by
    one offset of each partition, and not by as many as it has images: the images themselves are not needed any more.
    What it costs to write and to read these records is what the simulation is fed with.
    """
    group.broker.ensure_topics([Topic(group.sums.topic, 1)])
    group.fill(WAITING)
    deltas = LONG // delta.images
    begun = deltas - LEFT
    mine, others, shared = Accumulator(delta), Accumulator(delta), Shared(LooseSums(Sums.zero(delta.width)))
    run = LogIdentity(group.name, group.broker.topic_id(group.topics.images), group.identity, "", delta.width)
    checkpoint = Checkpoint("base", Shared(LooseSums(times(delta, begun)), dict.fromkeys(range(PARTITIONS), begun)))
    seconds: dict[str, list[float]] = {"publish": [], "delta": [], "base": []}
    with closing(group.broker.producer(f"{group.name}-history")) as producer:

        def publish(record: GroupRecord[LooseSums]) -> None:
            with producer.transaction() as transaction:
                transaction.produce(encode(group.sums.topic, run, record))
                at = {Partition(group.topics.images, p): Position(deltas) for p in range(PARTITIONS)}
                transaction.commit_offsets(Member(group.name), at)

        def publish_delta(number: int) -> None:
            spans = dict.fromkeys(range(PARTITIONS), (number, number + 1))
            publish(Delta(str(number), spans, LooseSums(mine.total() - shared.sums.summed()), delta.images))

        for number in range(begun, deltas):
            seconds["publish"].append(timed(partial(publish_delta, number)))
            if number == begun:
                publish(checkpoint)
    sizes = Counter[str]()
    for _ in range(TIMES):
        reader, last = GroupReader(run), time.perf_counter()
        for message in group.log():
            sizes[kind(message)] += len(message.value)
            if found := reader.read(message):
                if isinstance(found[0], Delta):
                    others.add_sums(found[0].sums.summed())
                    shared = shared.plus(found[0])
                seconds[kind(message)].append(time.perf_counter() - last)
                last = time.perf_counter()
    with group.learner(0) as learner:
        late = {
            "images": deltas * delta.images,
            "deltas_written": deltas,
            "records_left": {"base": 1, "delta": LEFT},
            "bytes_left": sizes.total() // TIMES,
            "seconds_to_work": learner.seconds_until(lambda: learner.value(AT_WORK)),
            "seconds_to_predict": learner.seconds_until(lambda: learner.value("marketplace_images_total")),
        }
    publishing, reading, reading_base = map(statistics.median, seconds.values())
    sent = [sizes["delta"] // TIMES // LEFT, sizes["base"] // TIMES]
    sent.append(len(image.value) + sum(len(name) + len(value) for name, value in image.headers))
    return late, Costs(publishing, reading, reading_base, sent[0], sent[1], sent[2], PREDICTION_BYTES, delta.width)
