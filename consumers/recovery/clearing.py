"""The state of the learner ``clearing``, in one group with as many others as the topic has partitions.

What it begins with is what is published: where a broker gives a group one learner, its newest snapshot; where it gives
it several, the topic ``sums``. What lies between that and the group's positions is read again when partitions are
taken over, and settled without emitting anything: integer sums need no log of where micro-batches ended.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from consumers.job import MicroBatch
from consumers.recovery.group_log import GroupLog, newest_checkpoint
from consumers.recovery.state import Recovery, State
from pipeline.broker import Record, Topic
from pipeline.errors import RecoveryError
from pipeline.features import Features, Filters, make
from pipeline.group.encoding import GroupReader, LogIdentity, encode
from pipeline.group.membership import Learnt, Publication
from pipeline.group.publishing import PublishingOwner
from pipeline.group.shared import Shared
from pipeline.group.single import SingleOwner
from pipeline.group.takeover import read
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.protocol import AnyLearner, ClearingUpdate
from pipeline.monitoring.scores import Scores
from pipeline.snapshots.snapshot import Snapshot


@dataclass(kw_only=True)
class ClearingState(State):
    """Sums; ``topic`` is the group's, to which they are published."""

    learner: Clearing
    share: PublishingOwner[ClearingUpdate, Sums] | SingleOwner[ClearingUpdate, Sums]
    log: GroupLog
    run: LogIdentity
    topic: str

    @property
    def digest(self) -> str:
        return self.learner.sums().digest(self.run.identity.digest)

    def snapshot(self, predictions: int) -> Snapshot:
        kept = self.share.kept()
        return Snapshot(
            kept.sums,
            self.run.identity,
            self.learner.generation,
            self.run.topic_id,
            dict(kept.clock),
            predictions if self.alone else 0,
            self.scores.state(),
            self.run.base,
            kept.position,
            kept.retracted,
        )

    def parts(self, job: MicroBatch) -> Mapping[int, Learnt[ClearingUpdate]]:
        update, ends = job.update, job.ends
        if len(ends) == 1:
            return {number: Learnt(end, update, len(update.labels)) for number, end in ends.items()}
        where = np.array([m.partition for m in job.learnt_from()], np.int64)
        return {
            number: Learnt(end, _only(update, where == number), sum(where == number)) for number, end in ends.items()
        }

    def encoded(self, publication: Publication[Any]) -> list[Record]:
        self.log.expect(publication.records)
        return [piece for record in publication.records for piece in encode(self.topic, self.run, record)]

    def served(self, generation: int) -> None:
        self.learner.generation = max(self.learner.generation, generation)


@dataclass(frozen=True)
class ClearingRecovery(Recovery):
    """Rebuilds sums."""

    @cached_property
    def filters(self) -> Filters:
        """Of the features."""
        return Filters(self.settings.seed, self.settings.filters)

    @cached_property
    def features(self) -> Features:
        """Compiled when it is first asked for, which is before this learner joins its group."""
        return make(self.filters, self.settings.backend, self.settings.batch_size)

    @property
    def identity(self) -> ClearingIdentity:
        return ClearingIdentity.of(self.filters)

    def serving(self, snapshot: Snapshot) -> AnyLearner:
        return Clearing(self.features, snapshot.sums, generation=snapshot.generation)

    def learning(self, own: Snapshot | None, topic_id: str) -> State:
        """As above. Raises SumsError if learners that are at work have another identity."""
        self.broker.ensure_topics([Topic(self.topics.sums(self.group).topic, 1)])
        came_from = own.base if own else self.base.digest if self.base else ""
        run = LogIdentity(self.group, topic_id, self.identity, came_from, self.filters.width)
        return self._from_sums(run) if self.broker.shares_groups else self._from_snapshot(run, own)

    def _from_snapshot(self, run: LogIdentity, own: Snapshot | None) -> State:
        start = own or self._beginning() or Snapshot(Sums.zero(run.width), run.identity)
        learner = Clearing(self.features, start.sums, generation=start.generation)
        published = replace(_published(start, run.topic_id), sums=Sums.zero(run.width))  # it asks the learner for them
        share = SingleOwner[ClearingUpdate, Sums](self.group, published, learner)
        state = self._made(run, learner, share)
        state.saved = sum(share.clock.values())
        return state

    def _from_sums(self, run: LogIdentity) -> State:
        """The newest base of the group, or the model to begin with, and what was published since."""
        sums = self.topics.sums(self.group)
        newest, came_from = newest_checkpoint(self.broker, sums, run)
        run = replace(run, base=came_from)
        extent = self.broker.extents(sums.topic)[sums]
        if newest is None and extent.first:
            raise RecoveryError(
                f"topic {sums.topic} begins at {extent.first} and holds no base: records were deleted that are needed; "
                "choose another --group"
            )
        start, beginning = newest, self._beginning()
        if start is None and beginning:
            start = _published(beginning, run.topic_id)
        if start is None and came_from:
            raise RecoveryError(
                f"group {self.group} began with the model of digest {came_from}: name it with --snapshot"
            )
        published = start or Shared(Sums.zero(run.width))
        learner = Clearing(self.features, published.sums)
        begins = newest is None and bool(came_from)
        share = PublishingOwner(
            uuid.uuid4().hex, published, learner, self.settings.publish_images, checkpoint_due=begins
        )
        state = self._made(run, learner, share)
        while not read(share, state.log, extent.end):
            self.heartbeat()
        return state

    def _beginning(self) -> Snapshot | None:
        """The model to begin with, without what was retracted from it in another group."""
        return replace(self.base, sums_position=0, retracted=frozenset()) if self.base else None

    def _made(
        self,
        run: LogIdentity,
        learner: Clearing,
        share: PublishingOwner[ClearingUpdate, Sums] | SingleOwner[ClearingUpdate, Sums],
    ) -> ClearingState:
        sums = self.topics.sums(self.group)
        reading = self.broker.tail(sums, share.published.position), GroupReader(run)
        log = GroupLog(self.broker, self.topics, self.group, learner, self.settings.batch_size, reading)
        return ClearingState(
            learner=learner, share=share, log=log, scores=Scores(self.settings.window), run=run, topic=sums.topic
        )


def _published(snapshot: Snapshot, topic_id: str) -> Shared[Sums]:
    """A model as what is published; the offsets of another topic mean nothing in this one."""
    if snapshot.topic_id != topic_id:
        return Shared(snapshot.sums)
    return Shared(snapshot.sums, snapshot.clock, snapshot.sums_position, snapshot.retracted)


def _only(update: ClearingUpdate, some: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> ClearingUpdate:
    """The images of an update that ``bool[m]`` names."""
    labels = tuple(label for label, chosen in zip(update.labels, some, strict=True) if chosen)
    return ClearingUpdate(update.products[some], update.targets[some], labels, update.classes)
