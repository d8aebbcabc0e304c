"""What a learner knows, and how it comes to know it again after a stop or a crash.

What it begins with is what is published: where a broker gives a group one learner, its newest snapshot; where it gives
it several, the topic ``sums``. What lies between that and the group's positions is read again when partitions are
taken over, and settled without emitting anything: integer sums need no log of where micro-batches ended.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from consumers.group import GroupLog, newest_base
from pipeline.broker import Broker, Topic
from pipeline.clearing import Clearing
from pipeline.errors import RecoveryError, SnapshotError
from pipeline.identity import Identity
from pipeline.learner import Update
from pipeline.published import Published
from pipeline.scores import Scores
from pipeline.settings import Settings
from pipeline.share import Share
from pipeline.snapshots import Folder, Snapshot
from pipeline.sole import Frozen, Sole
from pipeline.sums import Sums
from pipeline.sums_records import Reader, Run
from pipeline.takeover import read
from pipeline.topics import Topics
from pipeline.trunk import Filters, Trunk

log = logging.getLogger(__name__)

LOSS = "squared"
"""With another one targets depend on the order of the stream, and learners could not add up what they find."""


@dataclass
class State:
    """A learner, its share in the group's work, and its scores.

    ``scored`` is the end of the predictions that the scores count. ``alone`` as long as this learner has had the
    whole topic, so that they count all; and ``saved`` is how far the newest snapshot reaches.
    """

    run: Run
    learner: Clearing
    share: Share[Update, Sums]
    log: GroupLog
    scores: Scores
    scored: int = 0
    alone: bool = True
    saved: int = 0

    def snapshot(self, predictions: int) -> Snapshot:
        """What it has for good, as a value; ``predictions`` is the present end of that topic."""
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


@dataclass(frozen=True)
class Recovery:
    """Rebuilds the state of a group.

    A frozen group does not learn: it serves ``base`` as it is. Otherwise ``base`` is the model to begin with.
    ``came_round`` is called while this takes its time.
    """

    broker: Broker
    topics: Topics
    group: str
    filters: Filters
    trunk: Trunk
    folder: Folder
    base: Snapshot | None
    frozen: bool
    settings: Settings
    came_round: Callable[[], None]

    @property
    def identity(self) -> Identity:
        return Identity.of(self.filters, LOSS)

    @property
    def _shared(self) -> bool:
        return self.broker.shares_groups and not self.frozen

    def state(self) -> State:
        """The state before any partition is taken over: what is published.

        Raises SnapshotError for a snapshot of another identity, SumsError if learners that are at work have another
        one, RecoveryError if stream and snapshot do not fit together; all say what differs and what to do.
        """
        if self.base:
            self._check_identity(self.base, "the model to begin with")
        own = None if self.frozen else self.folder.newest()
        self.broker.ensure_topics([Topic(self.topics.sums(self.group).topic, 1)])
        topic_id = self.broker.topic_id(self.topics.images)
        if own:
            self._check_own(own, topic_id)
        came_from = own.base if own else self.base.digest if self.base else ""
        run = Run(self.group, topic_id, self.identity, came_from, self.filters.width)
        state = self._from_sums(run) if self._shared else self._from_snapshot(run, own)
        if own:
            state.learner.generation, state.saved = own.generation, sum(own.clock.values())
            if own.scores and own.predictions:
                state.scores, state.scored = Scores.restored(own.scores, self.settings.window), own.predictions
        return state

    def _from_snapshot(self, run: Run, own: Snapshot | None) -> State:
        base = replace(self.base, sums_position=0, retracted=frozenset()) if self.base else None
        start = own or base or Snapshot(Sums.zero(run.width), run.identity)
        learner = Clearing(self.trunk, start.sums, generation=start.generation)
        kind: type[Sole[Update, Sums]] = Frozen if self.frozen else Sole
        published = replace(_published(start, run.topic_id), sums=Sums.zero(run.width))  # it asks the learner for them
        share = kind(self.group, published, learner)
        state = self._made(run, learner, share)
        state.saved = sum(share.published.clock.values())
        return state

    def _from_sums(self, run: Run) -> State:
        """The newest base of the group, or the model to begin with, and what was published since."""
        sums = self.topics.sums(self.group)
        newest, came_from = newest_base(self.broker, sums, run)
        run = replace(run, base=came_from)
        extent = self.broker.extents(sums.topic)[sums]
        if newest is None and extent.first:
            raise RecoveryError(
                f"topic {sums.topic} begins at {extent.first} and holds no base: records were deleted that are needed; "
                "choose another --group"
            )
        start = newest
        if start is None and self.base:
            start = _published(replace(self.base, sums_position=0, retracted=frozenset()), run.topic_id)
        if start is None and came_from:
            raise RecoveryError(
                f"group {self.group} began with the model of digest {came_from}: name it with --snapshot"
            )
        published = start or Published(Sums.zero(run.width))
        learner = Clearing(self.trunk, published.sums)
        begins = newest is None and bool(came_from)
        share = Share(uuid.uuid4().hex, published, learner, self.settings.publish_images, base_due=begins)
        state = self._made(run, learner, share)
        while not read(share, state.log, extent.end):
            self.came_round()
        return state

    def _made(self, run: Run, learner: Clearing, share: Share[Update, Sums]) -> State:
        sums = self.topics.sums(self.group)
        reading = None if self.frozen else (self.broker.tail(sums, share.published.position), Reader(run))
        log = GroupLog(self.broker, self.topics.images, self.group, learner, self.settings.batch_size, sums, reading)
        return State(run, learner, share, log, Scores(self.settings.window))

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
                state.learner.generation = max(state.learner.generation, served["generation"])
                if served["label"] is not None:
                    state.scores.add([(served["label"], served["predicted"])])


def _published(snapshot: Snapshot, topic_id: str) -> Published[Sums]:
    """A model as what is published; the offsets of another topic mean nothing in this one."""
    if snapshot.topic_id != topic_id:
        return Published(snapshot.sums)
    return Published(snapshot.sums, snapshot.clock, snapshot.sums_position, snapshot.retracted)
