"""The state of the learner ``clearing``, in one group with as many others as the topic has partitions.

It begins with what is shared: where a broker gives a group one learner, its newest snapshot; where it gives it several,
the topic ``sums``. What lies between that and the group's positions is read again when partitions are taken over, and
settled without emitting anything: integer sums need no log of where micro-batches ended.
"""

import logging
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from consumers.microbatch import MicroBatch
from consumers.recovery.state import BrokerLog, Recovery, State
from pipeline.broker import Broker, Message, Partition, Record, Tail, Topic
from pipeline.errors import OutOfStepError, RecoveryError, TopicError
from pipeline.features import Features, Filters, make
from pipeline.group.encoding import GroupReader, LogIdentity, encode, kind, log_identity_of
from pipeline.group.membership import Change, Learnt, Publication
from pipeline.group.publishing import PublishingOwner
from pipeline.group.shared import Checkpoint, GroupRecord, Shared
from pipeline.group.single import SingleOwner
from pipeline.group.takeover import read
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import ClearingUpdate, LooseSums, Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.protocol import AnyLearner
from pipeline.learners.replay import settled
from pipeline.monitoring.scores import Scores
from pipeline.records.topics import Topics
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

SOON_SECONDS = 0.02
"""How long to wait for more of ``sums`` where some has just come: a broker sends a record's pieces one by one."""

STEP_SECONDS = 0.1
"""How long to wait for more of ``sums`` at a time, where a certain end is to be reached."""

Owner = PublishingOwner[ClearingUpdate, LooseSums] | SingleOwner[ClearingUpdate, LooseSums]


class GroupLog(BrokerLog):
    """Positions, ``sums`` and images of one group.

    Parameters
    ----------
    learner
        Quotes and settles what is learnt again, ``batch_size`` images at a time.
    tail, reader
        Read ``sums``.
    refuses
        Says of a label whether the group has no room for it.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        group: str,
        *,
        learner: Clearing,
        batch_size: int,
        tail: Tail,
        reader: GroupReader,
        refuses: Callable[[str], bool],
    ) -> None:
        super().__init__(broker, topics, group)
        self._sums, self._learner, self._batch_size = topics.sums(group), learner, batch_size
        self._tail, self._reader, self._refuses = tail, reader, refuses

    def end_of_sums(self) -> int:
        return self._broker.end(self._sums)

    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[LooseSums], int]], bool]:
        """As in the protocol. Raises SumsError for a learner that differs, OutOfStepError if records are gone."""
        try:
            messages = some = self._tail.poll(STEP_SECONDS if end is not None and self._tail.position < end else 0.0)
            while some and end is None:
                some = self._tail.poll(SOON_SECONDS)
                messages += some
        except TopicError as error:  # below a newer checkpoint
            raise OutOfStepError(f"{error}: begin again with the newest checkpoint") from error
        found = [record for message in messages if (record := self._reader.read(message))]
        return found, end is None or self._tail.position >= end

    def expect(self, own: Collection[GroupRecord[LooseSums]]) -> None:
        """This learner is about to write these to ``sums``."""
        if own:
            self._reader.expect(own)

    def replay(self, partition: int, start: int, stop: int) -> Iterator[Learnt[ClearingUpdate]]:
        """As in the protocol. Raises RecoveryError if they are gone, or never were."""
        place = Partition(self._images, partition)
        self._check(place, start, stop)
        if start < stop:
            log.info("partition %d: rebuilding the model from offsets %d to %d", partition, start, stop)
        for messages, update in self._settled(place, start, stop):
            yield Learnt(messages[-1].offset + 1, update, len(update.labels))

    def _settled(self, place: Partition, start: int, stop: int) -> Iterator[tuple[list[Message], ClearingUpdate]]:
        messages = self._broker.read(place, start, stop)
        return settled(self._learner, messages, self._batch_size, self._refuses)

    def close(self) -> None:
        self._tail.close()

    def _check(self, place: Partition, start: int, stop: int) -> None:
        extent = self._broker.extents(self._images)[place]
        where = f"topic {place.topic}, partition {place.number}"
        if stop > extent.end:
            raise RecoveryError(
                f"{where}: group {self._group} stands at {stop}, but the topic ends at {extent.end}: positions were "
                "moved or the topic was made anew; choose another --group"
            )
        if start < extent.first and start < stop:
            raise RecoveryError(
                f"{where}: images from offset {start} to {min(stop, extent.first)} are needed to rebuild the sums, but "
                f"the topic begins at {extent.first}: put back a snapshot that reaches further, or choose another "
                "--group"
            )


@dataclass(kw_only=True)
class ClearingState(State):
    """Sums; ``topic`` is the group's, to which they are published."""

    learner: Clearing
    owner: Owner
    log: GroupLog
    log_identity: LogIdentity
    topic: str

    @property
    def digest(self) -> str:
        return self.learner.sums().digest(self.log_identity.identity.digest)

    def apply(self, change: Change[ClearingUpdate, LooseSums]) -> None:
        change.apply(self.learner)

    def parts(self, batch: MicroBatch) -> Mapping[int, Learnt[ClearingUpdate]]:
        update, ends = batch.update, batch.ends
        new_class = not set(update.classes) <= set(self.learner.classes)
        if len(ends) == 1:
            return {number: Learnt(end, update, len(update.labels), new_class) for number, end in ends.items()}
        where = np.array([m.partition for m in batch.learnt_from()], np.int64)
        return {
            number: Learnt(end, _only(update, where == number), sum(where == number), new_class)
            for number, end in ends.items()
        }

    def snapshot(self, predictions: int) -> Snapshot:
        kept = self.owner.kept()
        return Snapshot(
            model=kept.sums.summed(),
            identity=self.log_identity.identity,
            generation=self.learner.generation,
            topic_id=self.log_identity.topic_id,
            clock=dict(kept.clock),
            predictions=predictions if self.alone else 0,
            scores=self.scores.state(),
            base=self.log_identity.base,
            sums_position=kept.position,
            retracted=kept.retracted,
            begins=kept.begins,
            admitted=kept.admitted,
        )

    def encoded(self, publication: Publication[LooseSums]) -> list[Record]:
        self.log.expect(publication.records)
        return [piece for record in publication.records for piece in encode(self.topic, self.log_identity, record)]

    def served(self, generation: int) -> None:
        self.learner.generation = max(self.learner.generation, generation)


@dataclass(frozen=True, kw_only=True)
class ClearingRecovery(Recovery):
    """Rebuilds sums."""

    @cached_property
    def filters(self) -> Filters:
        """Of the features."""
        return Filters(self.settings.seed, self.settings.filters)

    @cached_property
    def features(self) -> Features:
        """Compiled when they are first asked for, which is before this learner joins its group."""
        return make(self.filters, self.settings.backend, self.settings.batch_size)

    @property
    def identity(self) -> ClearingIdentity:
        return ClearingIdentity.of(self.filters)

    def serving(self, snapshot: Snapshot) -> AnyLearner:
        return Clearing(self.features, snapshot.sums, generation=snapshot.generation)

    def learning(self, own: Snapshot | None, topic_id: str) -> State:
        """As above. Raises SumsError if learners that are at work have another identity."""
        self.broker.ensure_topics([Topic(self.topics.sums(self.group).topic, 1)])
        came_from = own.base if own else self.start.digest if self.start else ""
        log_identity = LogIdentity(self.group, topic_id, self.identity, came_from, self.filters.width)
        if self.broker.shares_groups:
            return self._from_group_log(log_identity)
        return self._from_snapshot(log_identity, own)

    def _from_snapshot(self, log_identity: LogIdentity, own: Snapshot | None) -> State:
        start = own or self._beginning() or Snapshot(Sums.zero(log_identity.width), log_identity.identity)
        learner = Clearing(self.features, start.sums, generation=start.generation)
        shared = replace(_shared(start, log_identity.topic_id), sums=LooseSums(None))  # the owner asks the learner
        owner = SingleOwner[ClearingUpdate, LooseSums](uuid.uuid4().hex, shared, lambda: LooseSums(learner.sums()))
        return self._made(log_identity, learner, owner)

    def _from_group_log(self, log_identity: LogIdentity) -> State:
        """The newest checkpoint of the group, or the model to begin with, and what was published since."""
        sums = self.topics.sums(self.group)
        newest, came_from = _newest_checkpoint(self.broker, sums, log_identity)
        log_identity = replace(log_identity, base=came_from)
        extent = self.broker.extents(sums.topic)[sums]
        if newest is None and extent.first:
            raise RecoveryError(
                f"topic {sums.topic} begins at {extent.first} and holds no checkpoint: records were deleted that are "
                "needed; choose another --group"
            )
        start, beginning = newest, self._beginning()
        if start is None and beginning:
            start = _shared(beginning, log_identity.topic_id)
        if start is None and came_from:
            raise RecoveryError(
                f"group {self.group} began with the model of digest {came_from}: name it with --snapshot"
            )
        shared = start or Shared(LooseSums(Sums.zero(log_identity.width)))
        learner = Clearing(self.features, shared.sums.summed())
        owner = PublishingOwner[ClearingUpdate, LooseSums](
            uuid.uuid4().hex,
            shared,
            learner.beyond,
            most=self.settings.publish_images,
            checkpoint_due=newest is None and bool(came_from),
        )
        state = self._made(log_identity, learner, owner)
        while not read(owner, state.log, state.apply, extent.end):
            self.heartbeat()
        return state

    def _beginning(self) -> Snapshot | None:
        """The model to begin with, from the beginning of this group's log on.

        What was taken back from it in another group stays taken back, and where its sums begin they begin here.
        """
        return replace(self.start, sums_position=0) if self.start else None

    def _made(self, log_identity: LogIdentity, learner: Clearing, owner: Owner) -> ClearingState:
        sums = self.topics.sums(self.group)
        group_log = GroupLog(
            self.broker,
            self.topics,
            self.group,
            learner=learner,
            batch_size=self.settings.batch_size,
            tail=self.broker.tail(sums, owner.shared.position),
            reader=GroupReader(log_identity),
            refuses=owner.refuses,
        )
        return ClearingState(
            learner=learner,
            owner=owner,
            log=group_log,
            scores=Scores(self.settings.window),
            log_identity=log_identity,
            topic=sums.topic,
        )


def _newest_checkpoint(
    broker: Broker, sums: Partition, log_identity: LogIdentity
) -> tuple[Shared[LooseSums] | None, str]:
    """The newest checkpoint of a group, and the digest of the model that the group began with.

    Raises SumsError if a learner that differs has written there, OutOfStepError if records go while this reads.
    """
    extent = broker.extents(sums.topic)[sums]
    newest: Shared[LooseSums] | None = None
    reader: GroupReader | None = None
    try:
        for message in broker.read(sums, extent.first, extent.end):
            if reader is None:
                log_identity = replace(log_identity, base=log_identity.base or log_identity_of(message).base)
                reader = GroupReader(log_identity)
            if kind(message) == "base" and (found := reader.read(message)) and isinstance(found[0], Checkpoint):
                newest = found[0].shared
    except TopicError as error:
        raise OutOfStepError(f"{error}: a newer checkpoint was written, begin again with it") from error
    return newest, log_identity.base


def _shared(snapshot: Snapshot, topic_id: str) -> Shared[LooseSums]:
    """A model as what is shared; the offsets of another topic mean nothing in this one."""
    sums = LooseSums(snapshot.sums)
    if snapshot.topic_id != topic_id:
        return Shared(sums, admitted=snapshot.admitted)
    return Shared(sums, snapshot.clock, snapshot.sums_position, snapshot.retracted, snapshot.begins, snapshot.admitted)


def _only(update: ClearingUpdate, some: NDArray[np.bool_]) -> ClearingUpdate:
    """The images of an update that ``bool[m]`` names."""
    labels = tuple(label for label, chosen in zip(update.labels, some, strict=True) if chosen)
    return ClearingUpdate(update.products[some], update.targets[some], labels, update.classes)
