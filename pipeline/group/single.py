"""Shares of learners that need not publish: one that has its group to itself, and one that only serves."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Generic

from pipeline.group.membership import Learnt, OwnedPartition, PartitionOwner, U
from pipeline.group.publishing import Adder
from pipeline.group.shared import Clock, G, GroupRecord, Retraction, Shared


class SingleOwner(PartitionOwner[U], Generic[U, G]):
    """For a broker that gives a group one consumer: what it has committed, nobody can take over.

    So all of that is as good as published, and its snapshots are what it begins with. No update is kept, and of
    ``published`` all but the sums counts.
    """

    def __init__(self, name: str, published: Shared[G], adder: Adder[U, G]) -> None:
        super().__init__(name)
        self.published, self.adder = published, adder

    @property
    def clock(self) -> Clock:
        return self.published.clock

    def kept(self) -> Shared[G]:
        """What a snapshot is to hold."""
        return replace(self.published, sums=self.adder.sums(), clock=self.positions)

    def read(self, record: GroupRecord[G], position: int) -> None:
        """Retractions are all that others write. In a sum, one may well come before its images."""
        if isinstance(record, Retraction) and record.id not in self.published.retracted:
            self.adder.remove_sums(record.sums)
            self.published = replace(self.published, retracted=self.published.retracted | {record.id})
        self.published = replace(self.published, position=position)

    def _learn(self, partition: int, learnt: Learnt[U]) -> None:
        self.adder.add(learnt.update)
        super()._learn(partition, learnt)


class ServingOwner(PartitionOwner[Any]):
    """For a learner that only serves: it takes partitions over where its group stands, and learns nothing.

    Where the group has not been, it begins at the ``clock`` of what it serves.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__(name)
        self._clock = clock

    @property
    def clock(self) -> Clock:
        return self._clock

    def set_assignment(self, partitions: Collection[int]) -> None:  # noqa: ARG002
        self._held.clear()

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        at = (self.clock.get(partition, 0) or first) if committed is None else committed
        self._held[partition] = OwnedPartition(at)
        return at, at
