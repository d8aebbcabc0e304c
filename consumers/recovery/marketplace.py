"""The state of the learner ``marketplace``, of which a group has one.

What it is, is its base and the journal of its updates. A snapshot is the base of a later generation; what lies between
that and the group's positions is applied as the journal tells it, without a single image.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from consumers.job import MicroBatch
from consumers.recovery.in_order import InOrderOwner, Step
from consumers.recovery.journal_log import NOTE, WHY, JournalLog
from consumers.recovery.state import Recovery, State
from pipeline.broker import Consumer
from pipeline.errors import GroupBusyError
from pipeline.group.membership import Learnt
from pipeline.learners.identity import MarketplaceIdentity
from pipeline.learners.marketplace import beginning, make
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.learner import Marketplace, leaders
from pipeline.learners.marketplace.settling import MarketplaceUpdate
from pipeline.learners.marketplace.terms import Terms
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.scores import Scores
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""How often to look whether the group is free."""

SLACK_SECONDS = 3.0
"""How much later than its session's end a member that was killed may be taken off."""


@dataclass(kw_only=True)
class MarketplaceState(State):
    """A model, and the journal that it grows by."""

    learner: Marketplace
    share: InOrderOwner
    log: JournalLog
    identity: MarketplaceIdentity
    topic_id: str

    note = NOTE

    # Which generation a micro-batch is quoted by must not depend on how long a commit takes.
    in_order = True

    @property
    def digest(self) -> str:
        return self.learner.base().digest

    def snapshot(self, predictions: int) -> Snapshot:
        return Snapshot(
            self.learner.base(),
            self.identity,
            self.learner.generation,
            self.topic_id,
            dict(self.share.clock),
            predictions if self.alone else 0,
            self.scores.state(),
            self.identity.base,
            journal_position=self.log.passed(),
        )

    def parts(self, job: MicroBatch) -> Mapping[int, Learnt[Step]]:
        """The one step, with each of its partitions: the share takes it once."""
        step = Step({number: job.clock[number] for number in job.ends}, job.ends, job.update)
        return {number: Learnt(end, step, 0) for number, end in job.ends.items()}

    def journal_fields(self, update: MarketplaceUpdate) -> Mapping[str, Any]:
        return {"identity": asdict(self.identity), "update": update.record()}


@dataclass(frozen=True)
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
        base, terms = self.beginning
        model = own.model if own else base
        assert isinstance(model, Base)
        learner = Marketplace(model, make(base.shape, self.settings.backend), terms)
        position = own.journal_position if own else 0
        return MarketplaceState(
            learner=learner,
            share=InOrderOwner(self.group, own.clock if own else {}, learner),
            log=JournalLog(self.broker, self.topics, self.group, self.identity, position),
            scores=Scores(self.settings.window),
            identity=self.identity,
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
