"""How a learner takes over partitions: the one order of steps in which nothing is lost and nothing counted twice."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, Protocol

from pipeline.group.membership import Change, Learnt, PartitionOwner, U
from pipeline.group.shared import G, GroupRecord


class Log(Protocol, Generic[U, G]):
    """What a group's broker can tell."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """The group's committed positions of these; None as long as an open transaction might move one of them."""

    def first(self, partition: int) -> int:
        """The first offset that the partition still has."""

    def end_of_sums(self) -> int:
        """The end of ``sums``, with those records counted that are not known to be committed."""

    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[G], int]], bool]:
        """Committed records of ``sums``, each with the position after it, on from where the last call stopped.

        And whether ``end`` is reached: nothing before it can be committed any more. None: what there is.
        """

    def replay(self, partition: int, start: int, stop: int) -> Iterable[Learnt[U]]:
        """What the images of a partition between two offsets led to, once more."""


Apply = Callable[[Change[U, G]], None]
"""Makes a change to the model."""


def read(owner: PartitionOwner[U, G], log: Log[U, G], apply: Apply[U, G], end: int | None = None) -> bool:
    """Take in what others have published; whether ``end`` is reached. Raises OutOfStepError."""
    records, reached = log.read_sums(end)
    for record, position in records:
        apply(owner.read(record, position))
    return reached


def take_over(
    owner: PartitionOwner[U, G], log: Log[U, G], apply: Apply[U, G], partitions: Collection[int]
) -> Iterator[None]:
    """Take over all ``partitions`` that are assigned to a learner, those that it had before included.

    Yields where it has to wait, or where a caller may look whether the assignment still holds; one that does not
    is to be left where it is, and to begin anew.

    The group's positions are asked for first, then the end of ``sums`` with uncommitted records counted: whoever
    moved a position has written its delta before that end, though it may not be known yet to be committed.

    Raises OutOfStepError: make a new owner, from the newest checkpoint. FencedError: ask for the assignment again.
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
