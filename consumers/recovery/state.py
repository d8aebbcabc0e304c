"""What a learner knows, and how it comes to know it again after a stop or a crash: what all kinds have in common.

``consumers.recovery.clearing`` is ``clearing``, ``consumers.recovery.marketplace`` the learner ``marketplace``.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from consumers.job import MicroBatch
from consumers.recovery.group_log import GroupLog
from consumers.recovery.journal_log import JournalLog
from pipeline.broker import Broker, Consumer, Record
from pipeline.errors import RecoveryError, SnapshotError
from pipeline.group.membership import Learnt, PartitionOwner, Publication
from pipeline.group.single import ServingOwner
from pipeline.learners.identity import Identity
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.scores import Scores
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder, Snapshot

log = logging.getLogger(__name__)


@dataclass
class State(ABC):
    """A learner, its share in the group's work, and its scores.

    ``scored`` is the end of the predictions that the scores count. ``alone`` as long as this learner has had the
    whole topic, so that they count all; and ``saved`` is how far the newest snapshot reaches.
    """

    learner: AnyLearner
    share: PartitionOwner[Any]
    log: GroupLog | JournalLog
    scores: Scores
    scored: int = 0
    alone: bool = True
    saved: int = 0

    note = ""
    """Kept beside the group's positions: who may go on from there."""

    in_order = False
    """Whether what is learnt depends on the borders of micro-batches, and on what the one before had taught."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of what was learnt."""

    def snapshot(self, predictions: int) -> Snapshot | None:  # noqa: ARG002
        """What it has for good, as a value; ``predictions`` is the present end of that topic."""
        return None

    def parts(self, job: MicroBatch) -> Mapping[int, Learnt[Any]]:
        """What a micro-batch led to, partition by partition."""
        return {number: Learnt(end, None, 0) for number, end in job.ends.items()}

    def journal_fields(self, update: Any) -> Mapping[str, Any]:  # noqa: ARG002
        """What the journal tells of an update besides what it tells of every micro-batch."""
        return {}

    def encoded(self, publication: Publication[Any]) -> list[Record]:  # noqa: ARG002
        """What is published, as records."""
        return []

    def served(self, generation: int) -> None:  # noqa: B027
        """This generation was served: later ones have later numbers."""


@dataclass
class Serving(State):
    """Serves a model as it is; ``model`` is its digest."""

    model: str = ""

    @property
    def digest(self) -> str:
        return self.model


@dataclass(frozen=True)
class Recovery(ABC):
    """Rebuilds the state of a group.

    A frozen group does not learn: it serves ``base`` as it is. Otherwise ``base`` is the model to begin with.
    ``heartbeat`` is called while this takes its time.
    """

    broker: Broker
    topics: Topics
    group: str
    folder: Folder
    base: Snapshot | None
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

    def state(self) -> State:
        """The state before any partition is taken over.

        Raises SnapshotError for a snapshot of another identity, SumsError if learners that are at work have another
        one, RecoveryError if stream and snapshot do not fit together; all say what differs and what to do.
        """
        if self.base:
            self._check_identity(self.base, f"the model to {'serve' if self.frozen else 'begin with'}")
        topic_id = self.broker.topic_id(self.topics.images)
        if self.frozen:
            return self._frozen(topic_id)
        own = self.folder.newest()
        if own:
            self._check_own(own, topic_id)
        state = self.learning(own, topic_id)
        if own:
            state.served(own.generation)
            state.saved = sum(own.clock.values())
            if own.scores and own.predictions:
                state.scores, state.scored = Scores.restored(own.scores, self.settings.window), own.predictions
        return state

    def _frozen(self, topic_id: str) -> State:
        assert self.base, "a frozen group has something to serve"
        learner = self.serving(self.base)
        share = ServingOwner(self.group, self.base.clock if self.base.topic_id == topic_id else {})
        log_ = GroupLog(self.broker, self.topics, self.group, learner, self.settings.batch_size)
        return Serving(learner, share, log_, Scores(self.settings.window), model=self.base.digest)

    def _check_identity(self, snapshot: Snapshot, which: str) -> None:
        if snapshot.identity != self.identity:
            raise SnapshotError(
                f"{which} has another identity ({snapshot.identity.difference(self.identity)}): "
                "use the settings that it was made with"
            )

    def _check_own(self, own: Snapshot, topic_id: str) -> None:
        self._check_identity(own, f"the newest snapshot in {self.folder.path}")
        if self.base and self.base.digest != own.base:
            raise SnapshotError(
                f"group {self.group} has snapshots in {self.folder.path} that did not begin with that model: "
                "choose another --group to begin anew, or leave --snapshot away to go on"
            )
        if own.topic_id != topic_id:
            raise RecoveryError(
                f"topic {self.topics.images} was made anew since the snapshots in {self.folder.path} were written "
                f"(id {topic_id}, not {own.topic_id}): choose another --group, and --snapshot to begin with that model"
            )

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
