"""The loop of the learner: quote, score, settle, clear; one transaction for each micro-batch.

While a micro-batch is being committed, the next one is read and quoted. (Another thread could read ahead; it would
hold the interpreter, and so all threads of the features, for longer than it saves.) Memory moves only after the commit,
so that at any moment a crash leaves what the broker holds and nothing else. Whenever the group changes, all of this
comes to an end first, and partitions are taken over.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

from consumers.committer import Committer
from consumers.intake import MicroBatchReader, Reading
from consumers.job import MicroBatch
from consumers.pace import Deletion, Pace, batch_limit
from consumers.recovery.state import State
from consumers.snapshot_writer import SnapshotWriter
from pipeline.broker import Broker, Consumer
from pipeline.errors import BrokerError, FencedError, OutcomeUnknownError
from pipeline.group.takeover import read, take_over
from pipeline.monitoring.metrics import Metrics
from pipeline.monitoring.scores import Scores
from pipeline.records import topics as t
from pipeline.records.images import stack
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder

log = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
"""A worker that did not come round for so long hangs."""

PATIENCE = 0.5
"""Seconds that an idle worker waits for records before it looks whether it should stop."""

LAST_SECONDS = 5.0
"""How long a learner that stops waits for what it has published to come back: less than ``cli.PATIENCE``."""


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
        topics: t.Topics,
        transactional_id: str,
        metrics: Metrics,
        folder: Folder | None,
        settings: Settings,
    ) -> None:
        self._broker, self._topics, self._metrics, self._settings = broker, topics, metrics, settings
        self._id, self._learns = transactional_id, folder is not None
        self._saver = SnapshotWriter(broker, topics, metrics, folder, settings.snapshot_images)
        self._intake = MicroBatchReader(settings.batch_wait)
        self._sender = ThreadPoolExecutor(1, "commit")
        self._open: tuple[MicroBatch, Future[None]] | None = None
        self._lost: MicroBatch | None = None
        self._predicted: dict[int, int] = {}
        self._heartbeat_at = time.monotonic()
        self.records = 0
        self.dead_letters = 0

    @contextmanager
    def attached(self, consumer: Consumer, state: State, stop: threading.Event) -> Iterator[None]:
        """Begin with this state, or go on with it after trouble with the broker: take over what was assigned.

        A commit whose outcome was not known is counted now, if it happened. At the end of the block nothing uses the
        consumer any more.
        """
        self._consumer, self.state = consumer, state
        self._committer = self._new_committer()
        self._known = set(state.learner.classes)
        self._pace = Pace(time.monotonic())
        self._deletion = Deletion()
        self._partitions = len(self._broker.extents(self._topics.images))
        try:
            self._take_over(stop)
            yield
        finally:
            self._metrics.at_work.set(0)
            with suppress(BrokerError):
                self.finish_commit()
            self._committer.close()

    @property
    def scores(self) -> Scores:
        return self.state.scores

    @property
    def lag(self) -> Mapping[int, int]:
        return self._intake.lag

    @property
    def generation(self) -> int:
        return self.state.learner.generation

    @property
    def settled_images(self) -> int:
        return self.state.learner.images

    def heartbeat(self) -> None:
        """Say that there is life: at work, standing by, waiting for the broker or rebuilding."""
        self._heartbeat_at = time.monotonic()

    def healthy(self) -> bool:
        """Whether it came round lately, with or without records."""
        return time.monotonic() - self._heartbeat_at < HEALTHY_SECONDS

    def run(self, stop: threading.Event, most: int | None, after: Callable[[], None]) -> None:
        """Work until ``stop`` is set or ``most`` records were taken; then publish, and write a snapshot.

        ``after`` is called after every micro-batch. Raises what the broker raises; memory and snapshots then hold
        nothing that was not committed.
        """
        while not stop.is_set():
            try:
                if not self.generation or self._batch_limit() < self._settings.batch_size:
                    self._catch_up()
                size = self._batch_limit()
                left = size if most is None else most - self._taken
                if left <= 0:
                    self.finish_commit()
                    break
                self._turn(min(left, size), stop)
            except FencedError as error:
                self._go_on(error, stop)
            after()
        self._finish()
        after()

    def _turn(self, most: int, stop: threading.Event) -> None:
        self.heartbeat()
        reading = self._intake.read(self._consumer, most, 0 if self._open else PATIENCE, self._known)
        if reading.rebalancing or reading.member != self._member:
            self.finish_commit()
            self._metrics.rebalances.inc()
            self._take_over(stop)
        elif reading.messages:
            self._taken += len(reading.messages)
            self._step(reading)
        else:
            self.finish_commit()
            self.read_group_log()
            if self._pace.is_time_to_publish(time.monotonic()):
                self._publish()

    def _batch_limit(self) -> int:
        """The most records to take at once. Images without a label count too: there may never be another kind."""
        if self.state.in_order or not self._learns:
            return self._settings.batch_size
        seen = max(self.settled_images, self.records)
        return batch_limit(self._settings.batch_size, seen, len(self._consumer.assignment) / self._partitions)

    def _catch_up(self) -> None:
        """Early on a micro-batch teaches too much, be it its own or another's, for the next to be quoted without."""
        self.finish_commit()
        self._publish(at_rest=False)
        self.read_group_log(at_once=True)

    def _new_committer(self) -> Committer:
        return Committer(self._broker, self._topics, self._id, self._metrics, self.state)

    # -- the group

    def _take_over(self, stop: threading.Event) -> None:
        """Until this learner has all that is assigned to it. Nothing is read or committed meanwhile."""
        while not stop.is_set():
            self.heartbeat()
            if not self._consumer.rebalancing and self._has_taken_over():
                return
            self._consumer.poll(1, PATIENCE)  # what it hands out is read again
        self._look_who_predicts()  # stopped before it had anything, it counts nothing of the group's

    def _has_taken_over(self) -> bool:
        share, begun = self.state.share, time.perf_counter()
        self._member = self._consumer.member
        assigned = {partition.number: partition for partition in self._consumer.assignment}
        for _ in take_over(share, self.state.log, sorted(assigned)):
            self.heartbeat()
            if self._consumer.rebalancing:
                return False
        for number, partition in assigned.items():
            self._consumer.seek(partition, share.positions[number])
        self._count_lost()
        self._taken = self.records
        self._look_who_predicts()
        self._clear()
        self._known |= set(self.state.learner.classes)
        self._metrics.take_over_seconds.observe(time.perf_counter() - begun)
        self._metrics.at_work.set(bool(assigned))
        if not assigned:
            log.info("other learners have all partitions of %s: standing by until one is free", self._topics.images)
        return True

    def _look_who_predicts(self) -> None:
        """The scores count all that is predicted, as long as nobody else has had a partition."""
        now, before = self.state.share.positions, self._predicted
        self.state.alone &= len(now) == self._partitions
        self.state.alone &= all(before.get(number, position) == position for number, position in now.items())
        self._predicted = {**before, **now}

    def _count_lost(self) -> None:
        """Now the outcome of the commit is known of which it was not."""
        job, self._lost = self._lost, None
        if job and all(self.state.share.positions.get(number, 0) >= end for number, end in job.ends.items()):
            self._count(job)

    def _go_on(self, error: FencedError, stop: threading.Event) -> None:
        """Fenced: if that is because the group has changed, take partitions over; else raise the error."""
        self._consumer.poll(1, PATIENCE)
        if self._consumer.member == self._member and not self._consumer.rebalancing:
            raise error
        log.info("the group has changed: %s", error)
        self._metrics.rebalances.inc()
        self._committer.close()
        self._committer = self._new_committer()
        self._take_over(stop)

    def read_group_log(self, at_once: bool = False) -> None:
        """Take in what others have published, now and then. No transaction is open."""
        begun = time.monotonic()
        if not at_once and not self._pace.is_time_to_read(begun):
            return
        share, images = self.state.share, self.settled_images
        read(share, self.state.log)
        self._pace.read(begun, time.monotonic())
        self._delete(begun)
        if self.settled_images != images:
            self._known |= set(self.state.learner.classes)
            self._clear()
        self._saver.save_if_due(self.state)

    def _delete(self, now: float) -> None:
        """Delete what a base covers, when all have had the time to read on to it."""
        covered = self._deletion.due(self.state.share.deletable, now)
        if covered is not None:
            self._broker.delete_before(self._topics.sums(self._member.group), covered)

    def _publish(self, at_rest: bool = True) -> None:
        """Publish what there is, without a micro-batch, or only if it is due. Nothing else is open."""
        share = self.state.share
        publication = share.begin({}, at_rest=at_rest)
        try:
            if publication.records:
                self._committer.publish(publication, self._member)
        except BaseException:
            share.aborted()
            raise
        share.committed({})
        if at_rest or publication.records:
            self._pace.published(time.monotonic())

    def _finish(self) -> None:
        """Leave nothing unpublished, if the group allows it, and write a snapshot."""
        share, log_, deadline = self.state.share, self.state.log, time.monotonic() + LAST_SECONDS
        try:
            self.finish_commit()
            while not (read(share, log_, log_.end_of_sums()) and share.complete) and time.monotonic() < deadline:
                self.heartbeat()
                self._publish()
        except FencedError as error:
            log.info("others go on with what was not published: %s", error)
        self._saver.save(self.state)
        self._saver.finish()

    # -- a micro-batch

    def _step(self, reading: Reading) -> None:
        """Quote while the micro-batch before is committed, if it may be, then settle and begin to commit."""
        if self.state.in_order:
            self.finish_commit()
        state, generation, labels = self.state, self.generation, reading.batch.labels
        with self._metrics.quote_seconds.time():
            quotes = state.learner.quote(stack(reading.batch.images))
        self.finish_commit()
        self.read_group_log()
        self._make_room()
        update = state.learner.settle(quotes, labels if self._learns else [None] * len(labels))
        ends = {partition.number: end for partition, end in reading.ends.items()}
        publication = state.share.begin(ends, at_rest=self._pace.is_time_to_publish(time.monotonic()))
        clock, predictions = state.share.positions, quotes.predictions()
        fields = state.journal_fields(update)
        job = MicroBatch(reading, quotes, predictions, update, generation, clock, publication, self._learns, fields)
        self._open = job, self._sender.submit(self._committer.commit, job)

    def _make_room(self) -> None:
        """Learn no more before what was published has come back, if that is very much."""
        share, log_ = self.state.share, self.state.log
        while share.full:
            self.heartbeat()
            if not share.awaiting:
                self._publish()
            read(share, log_, log_.end_of_sums())

    def finish_commit(self) -> None:
        """Wait for the open commit; then what it held becomes state."""
        if not self._open:
            return
        (job, commit), self._open = self._open, None
        try:
            commit.result()
        except BaseException as error:
            self.state.share.aborted()
            self._lost = job if isinstance(error, OutcomeUnknownError) else None
            raise
        self._count(job)
        with self._metrics.settle_seconds.time():
            self.state.share.committed(self.state.parts(job))
        if job.publication.records:
            self._pace.published(time.monotonic())
        self._clear()
        self._saver.save_if_due(self.state)

    def _count(self, job: MicroBatch) -> None:
        self.state.scores.add(job.outcomes)
        self._predicted |= job.ends
        self.records += len(job.reading.messages)
        self.dead_letters += len(job.dead)
        self._metrics.settled_images.inc(len(job.learnt_from()))
        for _, error in job.dead:
            self._metrics.dead_letters.labels(error.reason).inc()

    def _clear(self) -> None:
        begun = time.perf_counter()
        if self.state.learner.clear():
            self._metrics.clear_seconds.observe(time.perf_counter() - begun)
            self._metrics.last_clear.set_to_current_time()
