"""How a learner takes over partitions: the one order of steps in which nothing is lost and nothing counted twice."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Generic, Protocol

from pipeline.group.membership import Learnt, PartitionOwner, U
from pipeline.group.shared import G, GroupRecord


class Log(Protocol, Generic[U, G]):
    """What a group's broker can tell."""

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """The group's committed positions of these; None as long as an open transaction might move one of them."""

    def first(self, partition: int) -> int:
        """The first offset that the partition still has."""

    def end_of_sums(self) -> int:
        """The end of ``sums``, with those records counted that are not known to be committed."""

    def read_group(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[G], int]], bool]:
        """Committed records of ``sums``, each with the position after it, on from where the last call stopped.

        And whether ``end`` is reached: nothing before it can be committed any more. None: what there is.
        """

    def replay(self, partition: int, start: int, stop: int) -> Iterable[Learnt[U]]:
        """What the images of a partition between two offsets led to, once more."""


def read(share: PartitionOwner[U], log: Log[U, G], end: int | None = None) -> bool:
    """Take in what others have published; whether ``end`` is reached. Raises OutOfStepError."""
    records, reached = log.read_group(end)
    for record, position in records:
        share.read(record, position)
    return reached


def take_over(share: PartitionOwner[U], log: Log[U, G], partitions: Collection[int]) -> Iterator[None]:
    """Take over all ``partitions`` that are assigned to a learner, those that it had before included.

    Yields where it has to wait, or where a caller may look whether the assignment still holds; one that does not
    is to be left where it is, and to begin anew.

    The group's positions are asked for first, then the end of ``sums`` with uncommitted records counted: whoever
    moved a position has written its delta before that end, though it may not be known yet to be committed.

    Raises OutOfStepError: make a new share. FencedError: ask for the assignment again.
    """
    share.set_assignment(partitions)
    while (committed := log.committed(partitions)) is None:
        yield
    yield
    end = log.end_of_sums()
    while not read(share, log, end):
        yield
    for partition in partitions:
        start, stop = share.acquire(partition, committed.get(partition), log.first(partition))
        for learnt in log.replay(partition, start, stop):
            share.relearn(partition, learnt)
            yield
        share.mark_ready(partition, stop)
