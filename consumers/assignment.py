"""Which partitions a learner works on, and what it shares with the others of its group.

An ``Assignment`` is one membership of the group, from joining it to leaving it. Its methods are called while nothing of
the worker's is being committed.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from consumers.committer import Committer
from consumers.pace import Deletion, Pace, batch_limit
from consumers.recovery.state import State
from pipeline.broker import Broker, Consumer, Member
from pipeline.errors import FencedError
from pipeline.group.membership import Publication, SharingOwner
from pipeline.group.takeover import read, take_over
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.metrics import Metrics
from pipeline.records.topics import Topics
from pipeline.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How long to wait for the group to change, at a time."""

LAST_SECONDS = 5.0
"""How long a learner that stops waits for what it has published to come back: less than ``cli.PATIENCE``."""


def clear(learner: AnyLearner, metrics: Metrics) -> None:
    """If it is time, sums become weights."""
    begun = time.perf_counter()
    if learner.clear():
        metrics.clear_seconds.observe(time.perf_counter() - begun)
        metrics.last_clear.set_to_current_time()


class Assignment:
    """The partitions of one learner: taken over, shared with the group, left.

    Parameters
    ----------
    transactional_id
        No other process that is alive has it.
    heartbeat
        Called while something takes its time.

    Attributes
    ----------
    member
        Who this learner was in the group when it took its partitions over.
    """

    member: Member

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        *,
        transactional_id: str,
        consumer: Consumer,
        state: State,
        metrics: Metrics,
        settings: Settings,
        heartbeat: Callable[[], None],
    ) -> None:
        self._broker, self._topics, self._id, self._consumer = broker, topics, transactional_id, consumer
        self._state, self._metrics, self._settings, self._heartbeat = state, metrics, settings, heartbeat
        self._pace, self._deletion = Pace(time.monotonic()), Deletion()
        self._partitions = len(broker.extents(topics.images))
        self.committer = self._new_committer()

    def batch_limit(self, seen: int) -> int:
        """The most records that the next micro-batch may have, after ``seen`` images."""
        if self._state.in_order:
            return self._settings.batch_size
        return batch_limit(self._settings.batch_size, seen, len(self._consumer.assignment) / self._partitions)

    def close(self) -> None:
        self.committer.close()

    # -- partitions come and go

    def take_over(self, stop: threading.Event) -> bool:
        """Take over all that is assigned, however often that changes meanwhile; False if ``stop`` came first.

        Nothing is read or committed meanwhile.
        """
        while not stop.is_set():
            self._heartbeat()
            if not self._consumer.rebalancing and self._take_over_assigned():
                return True
            self._consumer.poll(1, POLL_SECONDS)  # what it hands out is read again
        return False

    def _take_over_assigned(self) -> bool:
        """Whether it got there before the assignment changed again."""
        state, begun = self._state, time.perf_counter()
        self.member = self._consumer.member
        assigned = {partition.number: partition for partition in self._consumer.assignment}
        for _ in take_over(state.owner, state.log, state.apply, sorted(assigned)):
            self._heartbeat()
            if self._consumer.rebalancing:
                return False
        for number, partition in assigned.items():
            self._consumer.seek(partition, state.owner.positions[number])
        self._model_changed()
        self._metrics.take_over_seconds.observe(time.perf_counter() - begun)
        self._metrics.at_work.set(bool(assigned))
        if not assigned:
            log.info("other learners have all partitions of %s: standing by until one is free", self._topics.images)
        return True

    def note_whether_alone(self) -> None:
        """Look who predicts the topic: who is not alone counts only what it predicts itself."""
        self._state.note_whether_alone(self._partitions)

    def after_fencing(self, error: FencedError) -> None:
        """Go on with a new producer, if the group has changed; else raise the error."""
        self._consumer.poll(1, POLL_SECONDS)
        if self._consumer.member == self.member and not self._consumer.rebalancing:
            raise error
        log.info("the group has changed: %s", error)
        self.committer.close()
        self.committer = self._new_committer()

    def _new_committer(self) -> Committer:
        return Committer(self._broker, self._topics, self._id, self._metrics, self._state)

    # -- what the group shares

    def read_group_log(self, *, at_once: bool = False) -> bool:
        """Take in what others have published, if it is time; whether it looked."""
        begun = time.monotonic()
        if not at_once and not self._pace.is_time_to_read(begun):
            return False
        state, images = self._state, self._state.learner.images
        read(state.owner, state.log, state.apply)
        self._pace.read(begun, time.monotonic())
        covered = self._deletion.due(state.owner.deletable, begun)
        if covered is not None:  # all have had the time to read on to the checkpoint
            self._broker.delete_before(self._topics.sums(self.member.group), covered)
        if state.learner.images != images:
            self._model_changed()
        return True

    def is_time_to_publish(self) -> bool:
        """Whether to publish what there is, be it little."""
        return self._pace.is_time_to_publish(time.monotonic())

    def publish(self, *, at_rest: bool = True) -> None:
        """Publish what there is, without a micro-batch; if not ``at_rest``, only what is due."""
        publication = self._state.owner.begin({}, at_rest=at_rest)
        self._send(publication)
        if at_rest or publication.records:
            self.published()

    def admit(self, labels: Sequence[str]) -> None:
        """Have labels admitted that the group has never met: name them in its log, and wait until that comes back."""
        state = self._state
        assert isinstance(state.owner, SharingOwner), "others know of no unknown labels"
        self._send(state.owner.admit(labels))
        while state.owner.unknown(labels):
            self._heartbeat()
            read(state.owner, state.log, state.apply, state.log.end_of_sums())

    def _send(self, publication: Publication[Any]) -> None:
        """Commit what was begun, if there is anything to write."""
        owner = self._state.owner
        try:
            if publication.records:
                self.committer.publish(publication, self.member)
        except BaseException:
            owner.aborted()
            raise
        self._state.apply(owner.committed({}))

    def published(self) -> None:
        """Something was published just now."""
        self._pace.published(time.monotonic())

    def make_room(self) -> None:
        """Learn no more before what was published has come back, if that is very much."""
        state = self._state
        while state.owner.full:
            self._heartbeat()
            if not state.owner.awaiting:
                self.publish()
            read(state.owner, state.log, state.apply, state.log.end_of_sums())

    def leave_nothing_unpublished(self) -> None:
        """Publish all there is and wait until it has come back. Raises FencedError if others go on with it."""
        state, deadline = self._state, time.monotonic() + LAST_SECONDS
        while time.monotonic() < deadline:
            if read(state.owner, state.log, state.apply, state.log.end_of_sums()) and state.owner.complete:
                return
            self._heartbeat()
            self.publish()

    def _model_changed(self) -> None:
        """Not by what this learner learns, but by what it has read."""
        self._state.owner.known |= set(self._state.learner.classes)
        clear(self._state.learner, self._metrics)
