"""How a learner takes over partitions: the one order of steps in which nothing is lost and nothing counted twice."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, Protocol

from pipeline.group.membership import Change, Learnt, PartitionOwner, U
from pipeline.group.shared import G, GroupRecord


class Log(Protocol, Generic[U, G]):
    """What a takeover asks of the broker."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """The group's positions in these partitions; None while an open transaction might move one of them."""

    def first(self, partition: int) -> int:
        """The first offset that the partition still has."""

    def end_of_sums(self) -> int:
        """The end of ``sums``, uncommitted records included."""

    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[G], int]], bool]:
        """Committed records of ``sums`` from where the last call stopped, each with the position after it.

        Also whether ``end`` is reached: nothing before it can still be committed. Without ``end``: what there is.
        """

    def replay(self, partition: int, start: int, stop: int) -> Iterable[Learnt[U]]:
        """Settle the images of a partition with start <= offset < stop once more."""


Apply = Callable[[Change[U, G]], None]
"""Applies a change to the model."""


def read(owner: PartitionOwner[U, G], log: Log[U, G], apply: Apply[U, G], end: int | None = None) -> bool:
    """Take in what others have published. Returns whether ``end`` is reached. Raises OutOfStepError."""
    records, reached = log.read_sums(end)
    for record, position in records:
        apply(owner.read(record, position))
    return reached


def take_over(
    owner: PartitionOwner[U, G], log: Log[U, G], apply: Apply[U, G], partitions: Collection[int]
) -> Iterator[None]:
    """Take over all ``partitions`` that are assigned to a learner, including those that it had before.

    It yields while it waits, and wherever the caller may check that the assignment still holds. If it does not, drop
    this takeover and begin a new one.

    The order matters: first ask for the group's positions, then for the end of ``sums``, uncommitted records included.
    Whoever moved a position has written its delta before that end, even if the delta is not yet known to be committed.

    Raises
    ------
    OutOfStepError
        The sums do not fit the log: make a new owner from the newest checkpoint.
    FencedError
        Another learner has a partition: ask for the assignment again.
    """
    apply(owner.set_assignment(partitions))
    while (committed := log.committed(partitions)) is None:
        yield
    yield
    end = log.end_of_sums()
    while not read(owner, log, apply, end):
        yield
    for partition in partitions:
        start, stop, change = owner.acquire(partition, committed.get(partition), log.first(partition))
        apply(change)
        for learnt in log.replay(partition, start, stop):
            apply(owner.relearn(partition, learnt))
            yield
        owner.mark_ready(partition, stop)
