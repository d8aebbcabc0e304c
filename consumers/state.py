"""What a worker knows, and how it comes to know it again after a stop or a crash.

Kept are the sums with their clock (a snapshot) and, on the broker, the group's positions. What lies between the two
is read again and settled without emitting anything: integer sums need no log of where micro-batches ended.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from pipeline.batch import settle_again
from pipeline.broker import Broker, Extent, Partition
from pipeline.clearing import Clearing
from pipeline.errors import RecoveryError, SnapshotError
from pipeline.identity import Identity
from pipeline.scores import Scores
from pipeline.snapshots import Folder, Snapshot
from pipeline.sums import Sums
from pipeline.topics import Topics
from pipeline.trunk import Filters, Trunk

log = logging.getLogger(__name__)

LOSS = "squared"


@dataclass
class State:
    """A learner, its scores, and how far they reach.

    ``clock`` is the next offset of each partition, ``base`` the digest of the model that learning began with.
    """

    learner: Clearing
    scores: Scores
    identity: Identity
    topic_id: str
    clock: dict[int, int]
    base: str = ""

    def snapshot(self, predictions: int) -> Snapshot:
        """All of it as a value; ``predictions`` is the present end of that topic."""
        return Snapshot(
            self.learner.sums(),
            self.identity,
            self.learner.generation,
            self.topic_id,
            dict(self.clock),
            predictions,
            self.scores.state(),
            self.base,
        )


@dataclass(frozen=True)
class Recovery:
    """Rebuilds the state of a group.

    A frozen group does not learn: it serves ``base`` as it is. ``came_round`` is called while this takes its time.
    """

    broker: Broker
    topics: Topics
    group: str
    filters: Filters
    trunk: Trunk
    window: int
    batch_size: int
    frozen: bool = False
    came_round: Callable[[], None] = lambda: None

    @property
    def identity(self) -> Identity:
        return Identity.of(self.filters, LOSS)

    def state(self, folder: Folder, base: Snapshot | None) -> State:
        """The state as of the group's committed positions.

        Raises SnapshotError for a snapshot of another identity, RecoveryError if stream, positions and snapshot do
        not fit together; both say what differs and what to do.
        """
        if base:
            self._check_identity(base, "the model to begin with")
        own = None if self.frozen else folder.newest()
        if own:
            self._check_own(own, folder, base)
        start = own or base or Snapshot(Sums.zero(self.filters.width), self.identity)
        topic_id = self.broker.topic_id(self.topics.images)
        clock, goal = self._span(start if start.topic_id == topic_id else None)
        learner = Clearing(self.trunk, start.sums, generation=start.generation)
        if not self.frozen:
            self._settle_again(learner, clock, goal)
        scores, generation = self._scores(own)
        learner.generation = max(learner.generation, generation)
        learner.clear()
        came_from = own.base if own else base.digest if base else ""
        return State(learner, scores, self.identity, topic_id, goal, came_from)

    def _check_identity(self, snapshot: Snapshot, which: str) -> None:
        if snapshot.identity != self.identity:
            raise SnapshotError(
                f"{which} has another identity ({snapshot.identity.difference(self.identity)}): "
                "use the settings that it was made with"
            )

    def _check_own(self, own: Snapshot, folder: Folder, base: Snapshot | None) -> None:
        self._check_identity(own, f"the newest snapshot in {folder.path}")
        if base and base.digest != own.base:
            raise SnapshotError(
                f"group {self.group} has snapshots in {folder.path} that did not begin with that model: "
                "choose another --group to begin anew, or leave --snapshot away to go on"
            )
        topic_id = self.broker.topic_id(self.topics.images)
        if own.topic_id != topic_id:
            raise RecoveryError(
                f"topic {self.topics.images} was made anew since the snapshots in {folder.path} were written "
                f"(id {topic_id}, not {own.topic_id}): choose another --group, and --snapshot to begin with that model"
            )

    def _span(self, snapshot: Snapshot | None) -> tuple[dict[int, int], dict[int, int]]:
        """Where the sums end and where the group stands, for each partition."""
        committed = self.broker.committed(self.group, self.topics.images)
        clock, goal = {}, {}
        for partition, extent in self.broker.extents(self.topics.images).items():
            begun = 0 if partition in committed else extent.first
            at = snapshot.clock.get(partition.number, 0) if snapshot else begun
            to = committed[partition].offset if partition in committed else at
            if self.frozen:
                at = to
            self._check_span(partition, at, to, extent)
            clock[partition.number], goal[partition.number] = at, to
        return clock, goal

    def _check_span(self, partition: Partition, at: int, to: int, extent: Extent) -> None:
        where = f"topic {partition.topic}, partition {partition.number}"
        if not at <= to <= extent.end:
            raise RecoveryError(
                f"{where}: the sums reach offset {at}, group {self.group} stands at {to} and the topic ends at "
                f"{extent.end}: positions were moved or the topic was made anew; choose another --group"
            )
        if at < extent.first and at < to:
            raise RecoveryError(
                f"{where}: images from offset {at} to {min(to, extent.first)} are needed to rebuild the sums, but the "
                f"topic begins at {extent.first}: put back a snapshot that reaches further, or choose another --group"
            )

    def _settle_again(self, learner: Clearing, clock: Mapping[int, int], goal: Mapping[int, int]) -> None:
        for number, start in clock.items():
            if start < goal[number]:
                log.info("partition %d: learning offsets %d to %d again", number, start, goal[number])
            messages = self.broker.read(Partition(self.topics.images, number), start, goal[number])
            settle_again(learner, messages, self.batch_size, lambda _: self.came_round())

    def _scores(self, own: Snapshot | None) -> tuple[Scores, int]:
        """The scores as of the last prediction, and the newest generation that served one."""
        scores = Scores.restored(own.scores, self.window) if own and own.scores else Scores(self.window)
        (partition, extent), *_ = self.broker.extents(self.topics.predictions).items()
        generation = 0
        start = own.predictions if own else extent.first
        for message in self.broker.read(partition, max(start, extent.first), extent.end):
            served = orjson.loads(message.value)
            if served["group"] == self.group:
                generation = max(generation, served["generation"])
                if served["label"] is not None:
                    scores.add([(served["label"], served["predicted"])])
        return scores, generation
