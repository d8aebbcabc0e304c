"""What a learner knows, and how it comes to know it again after a stop or a crash: what all kinds have in common.

``consumers.recovery.clearing`` is ``clearing``, ``consumers.recovery.marketplace`` the learner ``marketplace``.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from consumers.microbatch import MicroBatch
from pipeline.broker import Broker, Consumer, Partition, Record
from pipeline.errors import RecoveryError, SnapshotError
from pipeline.group.membership import Change, Learnt, PartitionOwner, Publication
from pipeline.group.shared import GroupRecord, Reach
from pipeline.group.single import ServingOwner
from pipeline.learners.identity import Identity
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.scores import Scores
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder, Snapshot

log = logging.getLogger(__name__)


class BrokerLog:
    """What a group's broker can tell of a group that follows nobody: a ``takeover.Log`` with nothing to read.

    Parameters
    ----------
    note
        Beside the positions of groups that learn as this one does.
    """

    def __init__(self, broker: Broker, topics: Topics, group: str, note: str = "") -> None:
        self._broker, self._images, self._group, self._note = broker, topics.images, group, note

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """The group's positions; waits for open transactions. Raises RecoveryError if another learner left them."""
        positions = self._broker.committed(self._group, self._images, partitions)
        for position in positions.values():
            if position.note != self._note:
                theirs, mine = ("marketplace" if one else "clearing" for one in (position.note, self._note))
                raise RecoveryError(
                    f"group {self._group} learns with {theirs}, not with {mine}: choose another --group, or --learner "
                    f"{theirs}"
                )
        return {partition.number: position.offset for partition, position in positions.items()}

    def first(self, partition: int) -> int:
        return self._broker.extents(self._images)[Partition(self._images, partition)].first

    def end_of_sums(self) -> int:
        return 0

    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Any], int]], bool]:  # noqa: ARG002
        return [], True

    def replay(self, partition: int, start: int, stop: int) -> Iterable[Learnt[Any]]:  # noqa: ARG002
        """What images led to, once more: nothing, for who only serves."""
        return ()

    def close(self) -> None:
        """Let go of what reads on the broker."""


@dataclass(frozen=True)
class InOrder:
    """The one seam for a learner that depends on the order of the stream, and on the borders of micro-batches.

    Such a learner quotes a micro-batch only when all before it is in the model, takes micro-batches that are as full
    as they can be, and is rebuilt from what the journal holds of each update.

    Parameters
    ----------
    note
        Kept beside the group's positions: who may go on from there.
    journal_fields
        What the journal holds of an update.
    """

    note: str
    journal_fields: Callable[[Any], Mapping[str, Any]]


@dataclass(kw_only=True)
class State(ABC):
    """A learner, the partitions that it owns, and its scores.

    Parameters
    ----------
    scored
        The end of the predictions that the scores count.
    alone
        True as long as this learner has had the whole topic, so that its scores count all that is predicted.
    predicted
        How far it has predicted each partition.
    saved
        How far the newest snapshot reaches.
    """

    learner: AnyLearner
    owner: PartitionOwner[Any, Any]
    log: BrokerLog
    scores: Scores
    scored: int = 0
    alone: bool = True
    predicted: Mapping[int, int] = field(default_factory=dict)
    saved: Reach = field(default_factory=Reach)
    in_order: InOrder | None = None

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of what was learnt."""

    @abstractmethod
    def apply(self, change: Change[Any, Any]) -> None:
        """Make the change that a step of the owner means for the model."""

    @abstractmethod
    def parts(self, batch: MicroBatch) -> Mapping[int, Learnt[Any]]:
        """What a micro-batch led to, partition by partition."""

    def snapshot(self, predictions: int) -> Snapshot | None:  # noqa: ARG002
        """What it has for good, as a value; ``predictions`` is the present end of that topic."""
        return None

    def encoded(self, publication: Publication[Any]) -> list[Record]:  # noqa: ARG002
        """What is published, as records."""
        return []

    def served(self, generation: int) -> None:  # noqa: B027
        """This generation was served: later ones have later numbers."""

    def note_whether_alone(self, partitions: int) -> None:
        """Look whether somebody else has had one of the topic's partitions, and so predicted some of its images."""
        now, before = self.owner.positions, self.predicted
        self.alone &= len(now) == partitions
        self.alone &= all(before.get(number, position) == position for number, position in now.items())
        self.predicted = {**before, **now}


@dataclass(kw_only=True)
class Serving(State):
    """Serves a model as it is; ``model`` is its digest."""

    model: str

    @property
    def digest(self) -> str:
        return self.model

    def apply(self, change: Change[Any, Any]) -> None:
        """It learns nothing, so there is none."""

    def parts(self, batch: MicroBatch) -> Mapping[int, Learnt[Any]]:
        return {number: Learnt(end, None, 0) for number, end in batch.ends.items()}


@dataclass(frozen=True, kw_only=True)
class Recovery(ABC):
    """Rebuilds the state of a group.

    A frozen group does not learn: it serves ``start`` as it is. Otherwise ``start`` is the model to begin with.
    ``heartbeat`` is called while this takes its time.
    """

    broker: Broker
    topics: Topics
    group: str
    folder: Folder
    start: Snapshot | None
    frozen: bool
    settings: Settings
    heartbeat: Callable[[], None]

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """What must agree with snapshots and with what is on the broker."""

    @abstractmethod
    def serving(self, snapshot: Snapshot) -> AnyLearner:
        """A learner that serves a snapshot."""

    @abstractmethod
    def learning(self, own: Snapshot | None, topic_id: str) -> State:
        """The state to go on learning with, before any partition is taken over; ``own`` is the newest snapshot."""

    def consumer(self, stop: threading.Event) -> Consumer:  # noqa: ARG002
        """A new member of the group."""
        return self.broker.consumer(self.group, self.topics.images)

    def state(self, lost: State | None = None) -> State:
        """The state before any partition is taken over; with the scores of one that was ``lost``, being out of step.

        Raises SnapshotError for a snapshot of another identity, SumsError if learners that are at work have another
        one, RecoveryError if stream and snapshot do not fit together; all say what differs and what to do.
        """
        if self.start:
            self._check_identity(self.start, f"the model to {'serve' if self.frozen else 'begin with'}")
        topic_id = self.broker.topic_id(self.topics.images)
        if self.frozen:
            return self._frozen(topic_id)
        own = self.folder.newest()
        if own:
            self._check_own(own, topic_id)
        state = self.learning(own, topic_id)
        if own:
            log.info("the newest snapshot in %s holds %s images", self.folder.path, f"{own.images:,}")
            state.served(own.generation)
            state.saved = Reach(sum(own.clock.values()), len(own.retracted))
            if own.scores and own.predictions:
                state.scores, state.scored = Scores.restored(own.scores, self.settings.window), own.predictions
        if lost:
            state.served(lost.learner.generation)
            state = replace(state, scores=lost.scores, alone=lost.alone, predicted=lost.predicted)
        return state

    def restore_scores(self, state: State) -> None:
        """Go on with the scores of the group, and its newest generation, if this learner begins alone.

        One that joins others counts what it predicts itself, so that counters of all learners can be added up.
        """
        if not state.alone:
            state.scores = Scores(self.settings.window)
            return
        (partition, extent), *_ = self.broker.extents(self.topics.predictions).items()
        for message in self.broker.read(partition, max(state.scored, extent.first), extent.end):
            served = orjson.loads(message.value)
            if served["group"] == self.group:
                state.served(served["generation"])
                if served["label"] is not None:
                    state.scores.add([(served["label"], served["predicted"])])

    def _frozen(self, topic_id: str) -> State:
        assert self.start, "a frozen group has something to serve"
        return Serving(
            learner=self.serving(self.start),
            owner=ServingOwner(self.group, self.start.clock if self.start.topic_id == topic_id else {}),
            log=BrokerLog(self.broker, self.topics, self.group),
            scores=Scores(self.settings.window),
            model=self.start.digest,
        )

    def _check_identity(self, snapshot: Snapshot, which: str) -> None:
        if snapshot.identity != self.identity:
            raise SnapshotError(
                f"{which} has another identity ({snapshot.identity.difference(self.identity)}): "
                "use the settings that it was made with"
            )

    def _check_own(self, own: Snapshot, topic_id: str) -> None:
        self._check_identity(own, f"the newest snapshot in {self.folder.path}")
        if self.start and self.start.digest != own.base:
            raise SnapshotError(
                f"group {self.group} has snapshots in {self.folder.path} that did not begin with that model: "
                "choose another --group to begin anew, or leave --snapshot away to go on"
            )
        if own.topic_id != topic_id:
            raise RecoveryError(
                f"topic {self.topics.images} was made anew since the snapshots in {self.folder.path} were written "
                f"(id {topic_id}, not {own.topic_id}): choose another --group, and --snapshot to begin with that model"
            )
