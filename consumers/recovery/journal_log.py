"""What a group's journal can tell its one learner ``marketplace``: the ``takeover.Log`` without a single image.

An update is written to the journal with the micro-batch that it is of, in one transaction with the group's positions;
so whatever was committed can be applied again, in order.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing

from consumers.recovery.group_log import STEP_SECONDS, offsets
from consumers.recovery.in_order import Step
from pipeline.broker import Broker, Message, Partition
from pipeline.errors import GroupBusyError, RecoveryError, TopicError
from pipeline.group.membership import Learnt
from pipeline.group.shared import GroupRecord
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import MarketplaceIdentity, identity_of
from pipeline.learners.marketplace.settling import MarketplaceUpdate
from pipeline.records.journal import JournalEntry, decode
from pipeline.records.topics import Topics

log = logging.getLogger(__name__)

NOTE = "paths"
"""Beside the positions of a group that learns with it: what ``marketplace`` was called when this was first written."""

WHY = (
    "marketplace computes in floats and depends on the order of the stream, so its learning cannot be shared: stop "
    "that learner, give this one another --group, or use --learner clearing for several"
)


class JournalLog:
    """The journal of one group, from ``position`` on."""

    def __init__(
        self, broker: Broker, topics: Topics, group: str, identity: MarketplaceIdentity, position: int
    ) -> None:
        self._broker, self._images, self._group, self._identity = broker, topics.images, group, identity
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
        found = offsets(self._broker.committed(self._group, self._images, partitions), self._group, NOTE)
        # Only now: whoever moved a position has written its update before that end.
        self._end = self._broker.end(self._journal)
        return found if len(found) == len(partitions) else {**self._reach(), **found}

    def first(self, partition: int) -> int:
        return self._broker.extents(self._images)[Partition(self._images, partition)].first

    def end_of_sums(self) -> int:
        return 0

    def read_group(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Sums], int]], bool]:  # noqa: ARG002
        """There are no others to be followed."""
        return [], True

    def replay(self, partition: int, start: int, stop: int) -> Iterator[Learnt[Step]]:
        """What the journal tells, of all partitions, if anything is missing in this one. Raises RecoveryError."""
        if start == stop:
            return
        log.info("applying the journal from offset %d to %d", self.position, self._end)
        for message in self._messages():
            one = self._decoded(message)
            assert one.update is not None
            yield Learnt(
                one.end.get(partition, start), Step(one.begin, one.end, MarketplaceUpdate.of(one.update)), one.labelled
            )
            self.position = message.offset + 1
        self.position = self._end

    def passed(self) -> int:
        """All that is in the journal now was applied: where it ends."""
        self.position = self._broker.extents(self._journal.topic)[self._journal].end
        return self.position

    def close(self) -> None: ...

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
