"""The loop of the learner: quote, score, settle, clear; one transaction for each micro-batch.

Three micro-batches are under way at a time: while one is being committed, the next is quoted, and the one after that
is read and decoded. Memory moves only after the commit, so that at any moment a crash leaves what the broker holds
and nothing else.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from consumers.state import State
from pipeline import topics as t
from pipeline.batch import Batch
from pipeline.broker import Broker, Consumer, Member, Message, Partition, Position, Producer, Record
from pipeline.errors import FencedError, OutcomeUnknownError, RecordError
from pipeline.learner import Quotes, Update
from pipeline.metrics import Metrics
from pipeline.records import stack
from pipeline.scores import Scores
from pipeline.settings import Settings
from pipeline.snapshots import Folder, Snapshot

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
"""A worker that did not come round for so long hangs."""

BEST = 5
"""Scores in a prediction: with a thousand classes, all of them would be 16 kB an image."""

PATIENCE = 0.5
"""Seconds that an idle worker waits for records before it looks whether it should stop."""


@dataclass(frozen=True)
class _Reading:
    """A micro-batch as it was read.

    ``ends`` are the offsets after the last message of each partition, ``member`` is who the broker took the consumer
    for at that moment.
    """

    messages: list[Message]
    batch: Batch
    ends: Mapping[Partition, int]
    member: Member


@dataclass(frozen=True)
class _Job:
    """A micro-batch that was quoted and settled: what is to be committed, and then remembered."""

    reading: _Reading
    quotes: Quotes
    predictions: list[str | None]
    update: Update | None
    generation: int
    clock: Mapping[int, int]

    @property
    def batch(self) -> Batch:
        return self.reading.batch

    @property
    def ends(self) -> Mapping[Partition, int]:
        return self.reading.ends

    @property
    def dead(self) -> list[tuple[Message, RecordError]]:
        """What could not be read, and what could not be learnt from."""
        unsound = self.update.unsound if self.update else ()
        reason = RecordError("loss", "a vendor's loss was not finite")
        return self.batch.dead + [(self.batch.messages[place], reason) for place in unsound]


class Worker:
    """Learns from a stream.

    Parameters
    ----------
    folder
        Where snapshots go; None for a frozen worker, which serves and never learns.
    """

    def __init__(
        self, broker: Broker, topics: t.Topics, metrics: Metrics, folder: Folder | None, settings: Settings
    ) -> None:
        self._broker, self._topics, self._metrics, self._folder = broker, topics, metrics, folder
        self._settings = settings
        self._reader, self._committer, self._writer = (ThreadPoolExecutor(1, n) for n in ("read", "commit", "write"))
        self._ahead: Future[_Reading] | None = None
        self._open: tuple[_Job, Future[None]] | None = None
        self._saving: Future[None] | None = None
        self._since_snapshot = 0
        self._came_round = time.monotonic()
        self.lag: Mapping[int, int] = {}
        self.records = 0
        self.dead_letters = 0

    def attach(self, consumer: Consumer, producer: Producer, state: State) -> None:
        """Begin with this state, or go on with it after trouble with the broker.

        A commit whose outcome was not known is counted now, if the state shows that it happened.
        """
        if self._open:
            job, _ = self._open
            if all(state.clock[p.number] >= end for p, end in job.ends.items()):
                self._count(job)
            self._open = None
        self._metrics.at_work.set(1)
        self._consumer, self._producer, self.state = consumer, producer, state
        self._member = consumer.member
        self._taken = self.records
        self._known = set(state.learner.classes)
        for partition in consumer.assignment:
            consumer.seek(partition, state.clock[partition.number])

    def detach(self) -> None:
        """Let go of consumer and producer: returns when nothing uses them any more."""
        under_way: list[Future[Any]] = [self._ahead] if self._ahead else []
        wait(under_way + ([self._open[1]] if self._open else []))
        self._metrics.at_work.set(0)
        self._ahead = None

    @property
    def scores(self) -> Scores:
        return self.state.scores

    @property
    def generation(self) -> int:
        return self.state.learner.generation

    @property
    def settled_images(self) -> int:
        return self.state.learner.images

    def came_round(self) -> None:
        """Say that there is life: at work, standing by, waiting for the broker or rebuilding."""
        self._came_round = time.monotonic()

    def healthy(self) -> bool:
        """Whether it came round lately, with or without records."""
        return time.monotonic() - self._came_round < HEALTHY_SECONDS

    def run(self, stop: threading.Event, most: int | None, after: Callable[[], None]) -> None:
        """Work until ``stop`` is set or ``most`` records were taken; then write a snapshot.

        ``after`` is called after every micro-batch. Raises what the broker raises; memory and snapshots then hold
        nothing that was not committed.
        """
        while not stop.is_set() and (ahead := self._read_ahead(most)):
            if self._open:  # learn from it as soon as it is committed, if there is nothing better to do
                under_way: list[Future[Any]] = [ahead, self._open[1]]
                wait(under_way, return_when=FIRST_COMPLETED)
                if not ahead.done():
                    self._land()
            reading = ahead.result()
            self._ahead = None
            if reading.messages:
                self._taken += len(reading.messages)
                self._read_ahead(most)
                self._step(reading)
            after()
        self._land()
        self.save()
        self._saved()
        after()

    def save(self) -> None:
        """Write a snapshot, in a thread, if anything was learnt since the last one."""
        if self._folder and self._since_snapshot:
            self._saved()
            predictions = self._broker.extents(self._topics.predictions)[Partition(self._topics.predictions, 0)].end
            self._saving = self._writer.submit(self._write, self._folder, self.state.snapshot(predictions))
            self._since_snapshot = 0

    def _write(self, folder: Folder, snapshot: Snapshot) -> None:
        path = folder.save(snapshot)
        self._metrics.snapshots.inc()
        log.info("snapshot %s: %s images", path, f"{snapshot.sums.images:,}")

    def _saved(self) -> None:
        """Wait for the snapshot that is being written. Raises SnapshotError if it could not be."""
        if self._saving:
            self._saving.result()
            self._saving = None

    def _read_ahead(self, most: int | None) -> "Future[_Reading] | None":
        """What is being read, begun here if need be; None if enough was taken."""
        left = self._settings.batch_size if most is None else most - self._taken
        if not self._ahead and left > 0:
            self._ahead = self._reader.submit(self._read, min(left, self._settings.batch_size))
        return self._ahead

    def _read(self, most: int) -> _Reading:
        """A full micro-batch, or what there is when the first of it has waited long enough; decoded."""
        self.came_round()
        messages = self._poll(most, PATIENCE)
        deadline = time.monotonic() + self._settings.batch_wait
        while messages and len(messages) < most and (left := deadline - time.monotonic()) > 0:
            messages += self._poll(most - len(messages), left)
        self.lag = {partition.number: records for partition, records in self._consumer.lag().items()}
        return _Reading(messages, Batch.of(messages, self._known), t.ends(messages), self._consumer.member)

    def _poll(self, most: int, timeout: float) -> list[Message]:
        messages = self._consumer.poll(most, timeout)
        if self._consumer.member != self._member:
            self._metrics.rebalances.inc()
            raise FencedError(f"the partitions of group {self._member.group} were assigned anew")
        return messages

    def _step(self, reading: _Reading) -> None:
        """Quote while the micro-batch before is committed, then settle and begin to commit."""
        learner, generation = self.state.learner, self.generation
        with self._metrics.quote_seconds.time():
            quotes = learner.quote(stack(reading.batch.images))
        self._land()
        update = learner.settle(quotes, reading.batch.labels) if self._folder else None
        job = _Job(reading, quotes, quotes.predictions(), update, generation, dict(self.state.clock))
        self._open = job, self._committer.submit(self._commit, job)

    def _land(self) -> None:
        """Wait for the open commit; then what it held becomes state."""
        if not self._open:
            return
        job, commit = self._open
        commit.result()
        self._open = None
        pairs = zip(job.batch.labels, job.predictions, strict=True)
        self.state.scores.add((label, predicted) for label, predicted in pairs if label is not None)
        self.state.clock.update({partition.number: end for partition, end in job.ends.items()})
        self._count(job)
        if job.update:
            self._learn(job.update)
            self._since_snapshot += len(job.reading.messages)
            if self._since_snapshot >= self._settings.snapshot_images:
                self.save()

    def _count(self, job: _Job) -> None:
        self.records += len(job.reading.messages)
        self.dead_letters += len(job.dead)
        for _, error in job.dead:
            self._metrics.dead_letters.labels(error.reason).inc()

    def _learn(self, update: Update) -> None:
        with self._metrics.settle_seconds.time():
            self.state.learner.add(update)
        begun = time.perf_counter()
        if self.state.learner.clear():
            self._metrics.clear_seconds.observe(time.perf_counter() - begun)
            self._metrics.last_clear.set_to_current_time()

    def _commit(self, job: _Job) -> None:
        """Predictions, dead letters, journal and positions: all or nothing."""
        records = self._predictions(job)
        records += [t.dead_letter(self._topics.dead_letters, m, e.reason, str(e)) for m, e in job.dead]
        records.append(self._journal(job))
        with self._counted(), self._producer.transaction() as transaction:
            transaction.produce(records)
            transaction.commit_offsets(job.reading.member, {p: Position(end) for p, end in job.ends.items()})

    @contextmanager
    def _counted(self) -> Iterator[None]:
        outcome = "aborted"
        try:
            yield
            outcome = "committed"
        except OutcomeUnknownError:
            outcome = "unknown"
            raise
        finally:
            self._metrics.transactions.labels(outcome).inc()

    def _predictions(self, job: _Job) -> list[Record]:
        rows = zip(job.batch.messages, job.batch.images, job.predictions, _best(job.quotes), strict=True)
        return [
            t.prediction(
                self._topics.predictions,
                message,
                image,
                predicted,
                scores,
                job.reading.member.group,
                job.generation,
            )
            for message, image, predicted, scores in rows
        ]

    def _journal(self, job: _Job) -> Record:
        labelled = [pair for pair in zip(job.batch.labels, job.predictions, strict=True) if pair[0] is not None]
        total = Counter(label for label, _ in labelled)
        right = Counter(label for label, predicted in labelled if label == predicted)
        entry = {
            "from": {str(p.number): job.clock[p.number] for p in job.ends},
            "to": {str(p.number): end for p, end in job.ends.items()},
            "images": len(job.batch.images),
            "dead": len(job.dead),
            "total": total,
            "right": {label: right[label] for label in total},
            "generation": job.generation,
            "learnt": self._folder is not None,
            "time": time.time(),
        }
        return t.journal(self._topics.updates, job.reading.member.group, entry)


def _best(quotes: Quotes) -> list[dict[str, float]]:
    """The largest logits of each image, largest first, by class."""
    best = np.argsort(-quotes.logits, axis=1, kind="stable")[:, :BEST]
    names = np.array(quotes.classes, object)[best].tolist()
    # In float32, 0.1 would be written as 0.10000000149011612.
    values = np.take_along_axis(quotes.logits, best, axis=1).astype(np.float64).round(4).tolist()
    return [dict(zip(*pair, strict=True)) for pair in zip(names, values, strict=True)]
