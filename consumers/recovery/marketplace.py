"""The state of the learner ``marketplace``, of which a group has one.

It is a base model and the journal of its updates. A snapshot is the base model of a later generation; what lies between
that and the group's positions is applied as the journal tells it, in order, without a single image: an update is
written to the journal with the micro-batch that it is of, in one transaction with the group's positions.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from consumers.microbatch import MicroBatch
from consumers.recovery.state import BrokerLog, InOrder, Recovery, State
from pipeline.broker import Broker, Consumer, Message, Partition
from pipeline.errors import GroupBusyError, RecoveryError, TopicError
from pipeline.group.membership import Acquired, Change, Learnt, PartitionOwner
from pipeline.group.shared import Clock
from pipeline.learners.identity import MarketplaceIdentity, identity_of
from pipeline.learners.marketplace import beginning, make
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.learner import Marketplace, leaders
from pipeline.learners.marketplace.settling import MarketplaceUpdate
from pipeline.learners.marketplace.terms import Terms
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.scores import Scores
from pipeline.records.journal import JournalEntry, decode
from pipeline.records.topics import Topics
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

NOTE = "paths"
"""Beside the positions of a group that learns with it: what ``marketplace`` was called when this was first written."""

WHY = (
    "marketplace computes in floats and depends on the order of the stream, so its learning cannot be shared: stop "
    "that learner, give this one another --group, or use --learner clearing for several"
)

STEP_SECONDS = 0.1
"""How long to wait for more of the journal, or for another learner to leave, at a time."""

LOOK_SECONDS = 0.2
"""How often to look whether the group is free."""

SLACK_SECONDS = 3.0
"""How much later than its session's end a member that was killed may be taken off."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a micro-batch led to; ``begin`` and ``end`` are the clock of its partitions before and after it."""

    begin: Clock
    end: Clock
    update: MarketplaceUpdate


class InOrderOwner(PartitionOwner[Step, Any]):
    """Takes the step of every micro-batch once, one after the other, in the order of the journal.

    Steps depend on the order and on the borders of micro-batches, so its learner has a group to itself.

    Parameters
    ----------
    clock
        How far the learner has come, in every partition.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__(name)
        self._clock = dict(clock)

    @property
    def clock(self) -> Clock:
        return self._clock

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        found = super().acquire(partition, committed, first)
        if committed is None:
            self._clock[partition] = found.stop
        return found

    def mark_ready(self, partition: int, position: int) -> None:
        """As above. Raises RecoveryError if the journal ended before."""
        if (reach := self._clock.get(partition, 0)) != position:
            raise RecoveryError(
                f"partition {partition}: the group stands at {position}, but its snapshots and its journal end at "
                f"{reach}: put back a snapshot that reaches further, or choose another --group"
            )
        super().mark_ready(partition, position)

    def _learn(self, partition: int, learnt: Learnt[Step]) -> Change[Step, Any]:  # noqa: ARG002
        step, new = learnt.update, not self._has(learnt.update)
        if new:
            self._clock |= step.end
        for place in step.end.keys() & self._owned.keys():
            self._owned[place].position = self._clock[place]
        return Change(added=[step] if new else [])

    def _has(self, step: Step) -> bool:
        """Whether the step was taken already. Raises RecoveryError if one is missing before it."""
        if all(stop <= self._clock.get(partition, 0) for partition, stop in step.end.items()):
            return True
        at = {partition: self._clock.get(partition, start) for partition, start in step.begin.items()}
        if at != dict(step.begin):
            raise RecoveryError(
                f"the journal goes on at {dict(step.begin)}, but what was learnt ends at {at}: records of it are gone; "
                "put back a snapshot that reaches further, or choose another --group"
            )
        return False


class JournalLog(BrokerLog):
    """The journal of one group, from ``position`` on: what was committed can be applied again."""

    def __init__(
        self, broker: Broker, topics: Topics, group: str, *, identity: MarketplaceIdentity, position: int
    ) -> None:
        super().__init__(broker, topics, group, NOTE)
        self._identity = identity
        self._journal = Partition(topics.updates, 0)
        self.position = self._end = position

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """Waits for open transactions; None as long as another member has some of the partitions.

        Raises GroupBusyError for all members but the one that has the first partition.
        """
        if 0 not in partitions:
            raise GroupBusyError(f"group {self._group} has its one learner already: {WHY}")
        if len(partitions) < len(self._broker.extents(self._images)):
            time.sleep(STEP_SECONDS)  # the other one is about to leave
            return None
        found = super().committed(partitions) or {}
        # Only now: whoever moved a position has written its update before that end.
        self._end = self._broker.end(self._journal)
        return found if len(found) == len(partitions) else {**self._reach(), **found}

    def replay(self, partition: int, start: int, stop: int) -> Iterator[Learnt[Step]]:
        """What the journal tells, of all partitions, if anything is missing in this one. Raises RecoveryError."""
        if start == stop:
            return
        log.info("applying the journal from offset %d to %d", self.position, self._end)
        for message in self._messages():
            one = self._decoded(message)
            assert one.update is not None
            step = Step(one.begin, one.end, MarketplaceUpdate.of(one.update))
            yield Learnt(one.end.get(partition, start), step, one.labelled)
            self.position = message.offset + 1
        self.position = self._end

    def passed(self) -> int:
        """All that is in the journal now was applied: where it ends."""
        self.position = self._broker.extents(self._journal.topic)[self._journal].end
        return self.position

    def _reach(self) -> dict[int, int]:
        """Where the journal ends, for a group whose positions the broker has forgotten."""
        reach: dict[int, int] = {}
        for message in self._messages():
            reach |= self._decoded(message).end
        return reach

    def _messages(self) -> Iterator[Message]:
        """The group's records before the end, also those that are about to be committed."""
        key = self._group.encode()
        with closing(self._broker.tail(self._journal, self.position)) as tail:
            try:
                while tail.position < self._end:
                    yield from (m for m in tail.poll(STEP_SECONDS) if m.key == key)
            except TopicError as error:
                raise RecoveryError(f"the journal is needed to rebuild the model: {error}") from error

    def _decoded(self, message: Message) -> JournalEntry:
        one = decode(message)
        identity = identity_of(one.identity or {}) if one.identity else None
        if identity != self._identity or one.update is None:
            differs = identity.difference(self._identity) if identity else "learner clearing is not marketplace"
            raise RecoveryError(
                f"group {self._group} has learnt with another identity ({differs}): use the settings that it began "
                "with, or choose another --group"
            )
        return one


@dataclass(kw_only=True)
class MarketplaceState(State):
    """A model, and the journal that it grows by."""

    learner: Marketplace
    owner: InOrderOwner
    log: JournalLog
    identity: MarketplaceIdentity
    topic_id: str

    @property
    def digest(self) -> str:
        return self.learner.base().digest

    def apply(self, change: Change[Step, Any]) -> None:
        for step in change.added:
            self.learner.add(step.update)

    def parts(self, batch: MicroBatch) -> Mapping[int, Learnt[Step]]:
        """The one step, with each of its partitions: the owner takes it once."""
        step = Step({number: batch.clock[number] for number in batch.ends}, batch.ends, batch.update)
        return {number: Learnt(end, step, 0) for number, end in batch.ends.items()}

    def snapshot(self, predictions: int) -> Snapshot:
        return Snapshot(
            model=self.learner.base(),
            identity=self.identity,
            generation=self.learner.generation,
            topic_id=self.topic_id,
            clock=dict(self.owner.clock),
            predictions=predictions if self.alone else 0,
            scores=self.scores.state(),
            base=self.identity.base,
            journal_position=self.log.passed(),
        )


@dataclass(frozen=True, kw_only=True)
class MarketplaceRecovery(Recovery):
    """Rebuilds a model."""

    @cached_property
    def beginning(self) -> tuple[Base, Terms]:
        """What the group begins with, and keeps to. Raises SnapshotError."""
        return beginning(self.settings.learner, self.settings)

    @property
    def identity(self) -> MarketplaceIdentity:
        base, terms = self.beginning
        return MarketplaceIdentity.of(base.digest, terms)

    def serving(self, snapshot: Snapshot) -> AnyLearner:
        assert isinstance(snapshot.model, Base)
        return leaders(snapshot.model, make(snapshot.model.shape, self.settings.backend))

    def learning(self, own: Snapshot | None, topic_id: str) -> State:
        (base, terms), identity = self.beginning, self.identity
        model = own.model if own else base
        assert isinstance(model, Base)
        position = own.journal_position if own else 0
        return MarketplaceState(
            learner=Marketplace(model, make(base.shape, self.settings.backend), terms),
            owner=InOrderOwner(self.group, own.clock if own else {}),
            log=JournalLog(self.broker, self.topics, self.group, identity=identity, position=position),
            scores=Scores(self.settings.window),
            in_order=InOrder(NOTE, lambda update: {"identity": asdict(identity), "update": update.record()}),
            identity=identity,
            topic_id=topic_id,
        )

    def consumer(self, stop: threading.Event) -> Consumer:
        """The one member of the group, once the one before is gone. Raises GroupBusyError if it stays."""
        if not self.frozen and self.broker.shares_groups:
            self._wait(stop)
        return super().consumer(stop)

    def _wait(self, stop: threading.Event) -> None:
        """Joining would take partitions away from a learner that is at work: so look before."""
        patience = self.settings.session_timeout + SLACK_SECONDS
        deadline = time.monotonic() + patience
        if self.broker.members(self.group):
            log.info("group %s has a member: if it was killed, it is gone within %g s", self.group, patience)
        while self.broker.members(self.group):
            if time.monotonic() > deadline or stop.wait(LOOK_SECONDS):
                raise GroupBusyError(f"group {self.group} has its one learner already: {WHY}")
            self.heartbeat()
