"""The loop of the learner: quote, score, settle, clear; one transaction for each micro-batch.

Memory moves only after the commit, so that at any moment a crash leaves what the broker holds and nothing else.
Whenever the group changes, the loop comes to a rest first, and then partitions are taken over.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

from consumers.assignment import Assignment, clear
from consumers.microbatch import MicroBatch, MicroBatchReader, Reading
from consumers.recovery.state import State
from consumers.snapshot_writer import SnapshotWriter
from pipeline.broker import Broker, Consumer
from pipeline.errors import BrokerError, FencedError, OutcomeUnknownError
from pipeline.learners.protocol import Quotes
from pipeline.monitoring.metrics import Metrics
from pipeline.monitoring.scores import Scores
from pipeline.records.images import stack
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
"""A worker without a heartbeat for so long hangs."""

PATIENCE = 0.5
"""Seconds that an idle worker waits for records before it looks whether it should stop."""


class Worker:
    """Learns from a stream.

    Parameters
    ----------
    transactional_id
        No other process that is alive has it.
    folder
        Where snapshots go; None for a frozen worker, which serves and never learns.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        *,
        transactional_id: str,
        metrics: Metrics,
        folder: Folder | None,
        settings: Settings,
    ) -> None:
        self._broker, self._topics, self._metrics, self._settings = broker, topics, metrics, settings
        self._id, self._learns = transactional_id, folder is not None
        self._snapshots = SnapshotWriter(broker, topics, metrics, folder)
        self._reader = MicroBatchReader(settings.batch_wait)
        self._sender = ThreadPoolExecutor(1, "commit")
        self._open: tuple[MicroBatch, Future[None]] | None = None
        self._lost: MicroBatch | None = None  # the outcome of its commit is not known
        self._taken = 0  # records that were read, committed or on their way
        self._heartbeat_at = time.monotonic()
        self.records = 0
        self.dead_letters = 0

    @property
    def scores(self) -> Scores:
        return self.state.scores

    @property
    def lag(self) -> Mapping[int, int]:
        return self._reader.lag

    @property
    def generation(self) -> int:
        return self.state.learner.generation

    @property
    def model_images(self) -> int:
        return self.state.learner.images

    def heartbeat(self) -> None:
        """Say that there is life: at work, standing by, waiting for the broker or rebuilding."""
        self._heartbeat_at = time.monotonic()

    def healthy(self) -> bool:
        """Whether there was a heartbeat lately, with or without records."""
        return time.monotonic() - self._heartbeat_at < HEALTHY_SECONDS

    @contextmanager
    def joined(self, consumer: Consumer, state: State, stop: threading.Event) -> Iterator[None]:
        """Begin with this state, or go on with it after trouble with the broker: take over what was assigned.

        At the end of the block nothing uses the consumer any more.
        """
        self.state, self._consumer = state, consumer
        self._assignment = Assignment(
            self._broker,
            self._topics,
            transactional_id=self._id,
            consumer=consumer,
            state=state,
            metrics=self._metrics,
            settings=self._settings,
            heartbeat=self.heartbeat,
        )
        try:
            self._take_over(stop)
            yield
        finally:
            self._metrics.at_work.set(0)
            with suppress(BrokerError):
                self._finish_commit()
            self._assignment.close()

    def run(self, stop: threading.Event, most: int | None) -> None:
        """Work until ``stop`` is set or ``most`` records were taken; then publish, and write a snapshot.

        Raises what the broker raises; memory and snapshots then hold nothing that was not committed.
        """
        while not stop.is_set():
            try:
                if not self.generation or self._batch_limit() < self._settings.batch_size:
                    self._catch_up()
                limit = self._batch_limit() if most is None else min(self._batch_limit(), most - self._taken)
                if limit <= 0:
                    self._finish_commit()
                    break
                self._turn(limit, stop)
            except FencedError as error:
                self._assignment.after_fencing(error)
                self._metrics.rebalances.inc()
                self._take_over(stop)
        self._finish()

    def _turn(self, limit: int, stop: threading.Event) -> None:
        """One micro-batch, from the topic to the open transaction. The one before becomes state on the way.

        While a micro-batch is committed, the next one is read and quoted::

            this thread    read 1 │ quote 1 │ settle 1 │ read 2 │ quote 2 │ add 1, clear │ settle 2 │ read 3 …
            commit thread                              │████ commit 1 ████│                         │████ commit 2 …

        So what 1 teaches is not in the quotes of 2, but in those of 3. Early on that would lose too much: then ``run``
        catches up before each micro-batch, and nothing overlaps. Nor does it for a learner that depends on the order.
        (A third thread could read ahead; it would hold the interpreter, and so all threads of the features, for longer
        than it saves.)
        """
        self.heartbeat()

        # Read: a full micro-batch, or what there is. Where the group changes, nothing is read.
        patience = 0 if self._open else PATIENCE
        reading = self._reader.read(self._consumer, limit, patience)
        if reading.rebalancing or reading.member != self._assignment.member:
            self._finish_commit()
            self._metrics.rebalances.inc()
            self._take_over(stop)
            return
        if not reading.messages:
            self._rest()
            return
        self._taken += len(reading.messages)

        # Labels that the group has never met must be admitted first. What it has no room for is a dead letter.
        if unknown := self.state.owner.unknown(reading.decoded.labels):
            self._finish_commit()
            self._assignment.admit(unknown)
        reading.decoded.refuse(self.state.owner.refuses)

        # Quote: forward only. A learner that depends on the order needs all before it in its model.
        if self.state.in_order:
            self._finish_commit()
        generation = self.generation
        with self._metrics.quote_seconds.time():
            quotes = self.state.learner.quote(stack(reading.decoded.images))

        # The micro-batch before has been committed: it is added, scored, and cleared if it is time.
        self._finish_commit()
        self._read_group_log()
        self._assignment.make_room()

        # Settle: what the labels say. Then begin to commit that, with the predictions.
        batch = self._settled(reading, quotes, generation)
        self._open = batch, self._sender.submit(self._assignment.committer.commit, batch)

    def _settled(self, reading: Reading, quotes: Quotes, generation: int) -> MicroBatch:
        state, labels = self.state, reading.decoded.labels
        with self._metrics.settle_seconds.time():
            update = state.learner.settle(quotes, labels if self._learns else [None] * len(labels))
        ends = {partition.number: end for partition, end in reading.ends.items()}
        return MicroBatch(
            reading=reading,
            quotes=quotes,
            update=update,
            generation=generation,
            clock=state.owner.positions,
            publication=state.owner.begin(ends, at_rest=self._assignment.is_time_to_publish()),
            learnt=self._learns,
            journal_fields=state.in_order.journal_fields(update) if state.in_order else {},
        )

    def _finish_commit(self) -> None:
        """Wait for the open commit; then what it held becomes state: add, score, clear."""
        if not self._open:
            return
        (batch, commit), self._open = self._open, None
        try:
            commit.result()
        except BaseException as error:
            self.state.owner.aborted()
            self._lost = batch if isinstance(error, OutcomeUnknownError) else None
            raise
        self._count(batch)
        self.state.apply(self.state.owner.committed(self.state.parts(batch)))
        if batch.publication.records:
            self._assignment.published()
        clear(self.state.learner, self._metrics)
        self._save_if_due()

    def _count(self, batch: MicroBatch) -> None:
        """Score what was predicted, and count what was committed."""
        self.state.scores.add(batch.outcomes)
        self.state.predicted = {**self.state.predicted, **batch.ends}
        self.records += len(batch.reading.messages)
        self.dead_letters += len(batch.dead)
        self._metrics.settled_images.inc(len(batch.learnt_from()))
        for _, error in batch.dead:
            self._metrics.dead_letters.labels(error.reason).inc()

    def _batch_limit(self) -> int:
        """The most records to take at once. Images without a label count too: there may never be another kind."""
        if not self._learns:
            return self._settings.batch_size
        return self._assignment.batch_limit(max(self.model_images, self.records))

    def _rest(self) -> None:
        """Nothing came: see to what waits for a moment of rest."""
        self._finish_commit()
        self._read_group_log()
        if self._assignment.is_time_to_publish():
            self._assignment.publish()

    def _catch_up(self) -> None:
        """Have all that was learnt in the model before the next is quoted: early on each micro-batch teaches much."""
        self._finish_commit()
        self._assignment.publish(at_rest=False)
        self._read_group_log(at_once=True)

    def _read_group_log(self, *, at_once: bool = False) -> None:
        if self._assignment.read_group_log(at_once=at_once):
            self._save_if_due()

    def _save_if_due(self) -> None:
        """A snapshot is due after so many images, and when images were taken back: nothing else may serve those."""
        reach, saved = self.state.owner.reach, self.state.saved
        if reach.offsets - saved.offsets >= self._settings.snapshot_images or reach.retractions > saved.retractions:
            self._snapshots.save(self.state)

    def _take_over(self, stop: threading.Event) -> None:
        """Until this learner has all that is assigned to it, or is stopped."""
        if self._assignment.take_over(stop):
            self._count_lost()
            self._taken = self.records
        self._assignment.note_whether_alone()

    def _count_lost(self) -> None:
        """After a takeover the positions tell whether a commit happened that no answer came to: then it counts."""
        batch, self._lost = self._lost, None
        if batch and all(self.state.owner.positions.get(number, 0) >= end for number, end in batch.ends.items()):
            self._count(batch)

    def _finish(self) -> None:
        """Leave nothing unpublished, if the group allows it, and write a snapshot."""
        try:
            self._finish_commit()
            self._assignment.leave_nothing_unpublished()
        except FencedError as error:
            log.info("others go on with what was not published: %s", error)
        with suppress(BrokerError):
            self._reader.look_at_lag(self._consumer)
        self._snapshots.save(self.state)
        self._snapshots.finish()
