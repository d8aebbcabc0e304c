"""The loop of the learner: quote, score, settle, clear; one transaction for each micro-batch.

Memory moves only after the commit, so that at any moment a crash leaves what the broker holds and nothing else.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

from consumers.batch import Batch
from consumers.state import State
from pipeline import topics as t
from pipeline.broker import Broker, Consumer, Message, Partition, Position, Producer, Record
from pipeline.errors import RecordError
from pipeline.learner import Quotes, Update
from pipeline.metrics import Metrics
from pipeline.records import stack
from pipeline.scores import Scores
from pipeline.snapshots import Folder

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
"""A worker that did not come round for so long hangs."""

PATIENCE = 0.5
"""Seconds that an idle worker waits for records before it looks whether it should stop."""


class Worker:
    """Learns from one consumer's stream.

    Parameters
    ----------
    state
        What recovery found; changed in place after every commit.
    folder
        Where snapshots go; None for a frozen worker, which serves and never learns.
    """

    def __init__(
        self,
        broker: Broker,
        consumer: Consumer,
        producer: Producer,
        topics: t.Topics,
        state: State,
        metrics: Metrics,
        folder: Folder | None,
        *,
        batch_size: int,
        batch_wait: float,
        snapshot_images: int,
    ) -> None:
        self._broker, self._consumer, self._producer = broker, consumer, producer
        self._topics, self._state, self._metrics, self._folder = topics, state, metrics, folder
        self._batch_size, self._batch_wait = batch_size, batch_wait
        self._snapshot_images = snapshot_images
        self._since_snapshot = 0
        self._came_round = time.monotonic()
        self.lag: Mapping[int, int] = {}
        self.records = 0
        self.dead_letters = 0

    def healthy(self) -> bool:
        """Whether the loop came round lately, with or without records."""
        return time.monotonic() - self._came_round < HEALTHY_SECONDS

    @property
    def scores(self) -> Scores:
        return self._state.scores

    @property
    def generation(self) -> int:
        return self._state.learner.generation

    @property
    def settled_images(self) -> int:
        return self._state.learner.images

    def run(self, stop: threading.Event, most: int | None, after: Callable[[], None]) -> None:
        """Work until ``stop`` is set or ``most`` records were taken; then write a snapshot.

        ``after`` is called after every micro-batch. On an error nothing is written: the broker has what was done.
        """
        while not stop.is_set() and (most is None or self.records < most):
            messages = self._collect(self._batch_size if most is None else min(self._batch_size, most - self.records))
            if messages:
                self._step(messages)
                after()
        self.save()

    def save(self) -> None:
        """Write a snapshot, if anything was learnt since the last one."""
        if self._folder and self._since_snapshot:
            extents = self._broker.extents(self._topics.predictions)
            path = self._folder.save(self._state.snapshot(extents[Partition(self._topics.predictions, 0)].end))
            self._metrics.snapshots.inc()
            self._since_snapshot = 0
            log.info("snapshot %s: %d images", path, self._state.learner.images)

    def _collect(self, most: int) -> list[Message]:
        """A full micro-batch, or what there is when the first of it has waited long enough."""
        self._came_round = time.monotonic()
        messages = self._consumer.poll(most, PATIENCE)
        deadline = time.monotonic() + self._batch_wait
        while messages and len(messages) < most and (left := deadline - time.monotonic()) > 0:
            messages += self._consumer.poll(most - len(messages), left)
        self.lag = {partition.number: records for partition, records in self._consumer.lag().items()}
        return messages

    def _step(self, messages: list[Message]) -> None:
        learner = self._state.learner
        batch = Batch.of(messages, learner.classes)
        with self._metrics.quote_seconds.time():
            quotes = learner.quote(stack(batch.images))
        update = None
        if self._folder:
            update = learner.settle(quotes, batch.labels)
            for place in update.unsound:
                batch.dead.append((batch.messages[place], RecordError("loss", "a vendor's loss was not finite")))
        predictions = quotes.predictions()
        self._commit(messages, batch, quotes, predictions)
        self._remember(messages, batch, predictions, update)

    def _commit(self, messages: list[Message], batch: Batch, quotes: Quotes, predictions: list[str | None]) -> None:
        """Predictions, dead letters, journal and positions: all or nothing."""
        group = self._consumer.member.group
        rows = quotes.logits.tolist()
        records = [
            t.prediction(
                self._topics.predictions,
                message,
                image,
                predicted,
                dict(zip(quotes.classes, row, strict=True)),
                group,
                self.generation,
            )
            for message, image, predicted, row in zip(batch.messages, batch.images, predictions, rows, strict=True)
        ]
        records += [t.dead_letter(self._topics.dead_letters, m, e.reason, str(e)) for m, e in batch.dead]
        records.append(self._journal(messages, batch, predictions))
        ends = {partition: Position(offset) for partition, offset in t.ends(messages).items()}
        with self._producer.transaction() as transaction:
            transaction.produce(records)
            transaction.commit_offsets(self._consumer.member, ends)

    def _journal(self, messages: list[Message], batch: Batch, predictions: list[str | None]) -> Record:
        total: dict[str, int] = {}
        right: dict[str, int] = {}
        for label, predicted in zip(batch.labels, predictions, strict=True):
            if label is not None:
                total[label] = total.get(label, 0) + 1
                right[label] = right.get(label, 0) + (label == predicted)
        ends = {p.number: offset for p, offset in t.ends(messages).items()}
        entry = {
            "from": {str(number): self._state.clock[number] for number in ends},
            "to": {str(number): offset for number, offset in ends.items()},
            "images": len(batch.images),
            "dead": len(batch.dead),
            "total": total,
            "right": right,
            "generation": self.generation,
            "learnt": self._folder is not None,
            "time": time.time(),
        }
        return t.journal(self._topics.updates, self._consumer.member.group, entry)

    def _remember(
        self, messages: list[Message], batch: Batch, predictions: list[str | None], update: Update | None
    ) -> None:
        state = self._state
        pairs = zip(batch.labels, predictions, strict=True)
        state.scores.add((label, predicted) for label, predicted in pairs if label is not None)
        state.clock.update({p.number: offset for p, offset in t.ends(messages).items()})
        self.records += len(messages)
        self.dead_letters += len(batch.dead)
        for _, error in batch.dead:
            self._metrics.dead_letters.labels(error.reason).inc()
        if update:
            self._learn(update)
            self._since_snapshot += len(messages)
            if self._since_snapshot >= self._snapshot_images:
                self.save()

    def _learn(self, update: Update) -> None:
        with self._metrics.settle_seconds.time():
            self._state.learner.add(update)
        begun = time.perf_counter()
        if self._state.learner.clear():
            self._metrics.clear_seconds.observe(time.perf_counter() - begun)
            self._metrics.last_clear.set_to_current_time()
