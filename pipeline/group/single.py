"""Owners that need not publish: one that has its group to itself, and one that only serves."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from pipeline.group.membership import Acquired, Change, Learnt, OwnedPartition, PartitionOwner, SharingOwner, U
from pipeline.group.shared import Admission, Clock, G, GroupRecord, Reach, Retraction, Shared


class SingleOwner(SharingOwner[U, G]):
    """For a broker that gives each group one consumer.

    Nobody else can take over what it has committed, so that is as good as published. It begins with its own snapshots,
    and keeps no update.

    Parameters
    ----------
    shared
        Where it begins. Its sums are not looked at: the model holds them.
    sums
        Returns the sums of the model.
    """

    def __init__(self, name: str, shared: Shared[G], sums: Callable[[], G]) -> None:
        super().__init__(name, shared)
        self._sums = sums

    @property
    def reach(self) -> Reach:
        return self.shared.reach._replace(offsets=sum(self.positions.values()))

    def kept(self) -> Shared[G]:
        """What a snapshot holds."""
        return replace(self.shared, sums=self._sums(), clock=self.positions)

    def read(self, record: GroupRecord[G], position: int) -> Change[U, G]:
        """Take in a retraction; others write nothing else. It may come before its images, as order does not matter."""
        change: Change[U, G] = Change()
        if isinstance(record, Retraction) and record.id not in self.shared.retracted:
            self.shared = replace(self.shared, retracted=self.shared.retracted | {record.id})
            change = Change(removed_sums=record.sums)
        if isinstance(record, Admission):
            self.shared = self.shared.plus(record)
        self.shared = replace(self.shared, position=position)
        return change

    def _learn(self, partition: int, learnt: Learnt[U]) -> Change[U, G]:
        self._owned[partition].position = learnt.stop
        return Change(added=[learnt.update])


class ServingOwner(PartitionOwner[Any, Any]):
    """For a learner that only serves. It takes partitions over at the group's position, and learns nothing.

    Where the group has no position, it begins at the ``clock`` of what it serves.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__(name)
        self._clock = clock

    @property
    def clock(self) -> Clock:
        return self._clock

    def set_assignment(self, partitions: Collection[int]) -> Change[Any, Any]:  # noqa: ARG002
        self._owned.clear()
        return Change()

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        at = (self.clock.get(partition, 0) or first) if committed is None else committed
        self._owned[partition] = OwnedPartition(at)
        return Acquired(at, at, Change())

    def _learn(self, partition: int, learnt: Learnt[Any]) -> Change[Any, Any]:
        self._owned[partition].position = learnt.stop
        return Change()
