"""The partitions that a learner holds, and how they change hands: what all shares have in common.

No broker, no clock on the wall, no file, no thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pipeline.errors import FencedError, RecoveryError
from pipeline.group.shared import Checkpoint, Clock, Delta, G, GroupRecord

U = TypeVar("U")


@dataclass(frozen=True)
class Learnt(Generic[U]):
    """What ``images`` labelled images of one partition added, up to offset ``stop``."""

    stop: int
    update: U
    images: int


@dataclass
class OwnedPartition(Generic[U]):
    """A partition that a learner holds: the next offset, and what was learnt since the clock.

    Not ``ready`` as long as images before the group's position are to be learnt from again.
    """

    position: int
    ready: bool = False
    learnt: list[Learnt[U]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(learnt.images for learnt in self.learnt)


@dataclass(frozen=True, eq=False)
class Publication(Generic[G]):
    """Records for ``sums`` that go out with one transaction.

    ``positions`` must be committed by it, in the name of the present member: the ends of its micro-batch, and where
    every other partition stands of which it publishes. Whoever takes one of them over then waits for its outcome.
    """

    delta: Delta[G] | None = None
    base: Checkpoint[G] | None = None
    positions: Clock = field(default_factory=dict)

    @property
    def records(self) -> list[GroupRecord[G]]:
        return [record for record in (self.delta, self.base) if record]


class PartitionOwner(ABC, Generic[U]):
    """The share of a learner that publishes nothing.

    Attributes
    ----------
    name
        Of this learner in this session.
    deletable
        Records of ``sums`` before this offset are needed by nobody.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.deletable = 0
        self._held: dict[int, OwnedPartition[U]] = {}
        self._open: Publication[Any] | None = None

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """Where a partition that is not held yet is taken over from."""

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each partition that is held."""
        return {partition: holding.position for partition, holding in self._held.items()}

    @property
    def full(self) -> bool:
        """Whether to learn from no more images before what was published has come back."""
        return False

    @property
    def awaiting(self) -> bool:
        """Whether something that was published has not come back yet."""
        return False

    @property
    def complete(self) -> bool:
        """Whether everything that was learnt is published and has come back."""
        return True

    @property
    def reach(self) -> int:
        """How far a snapshot would reach: its clock, all partitions added up."""
        return sum(self.positions.values())

    def read(self, record: GroupRecord[Any], position: int) -> None:
        """A committed record of ``sums``; it is nothing to a learner that does not follow others."""

    # -- partitions come and go

    def set_assignment(self, partitions: Collection[int]) -> None:
        """Those are assigned to this learner now; what it has not published of others is thrown away.

        None is ready before it was taken over, also if it was held before: nobody can say who had it in between.
        """
        self._check_closed()
        self._let_go(self._held.keys() - set(partitions))
        for holding in self._held.values():
            holding.ready = False

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        """Hold a partition; from which offset to which it is to be learnt again.

        Where nobody has been yet, work begins at ``first``, the first offset that the topic still has. Raises
        RecoveryError if more was learnt than is ``committed``.
        """
        self._check_closed()
        clock = self.clock.get(partition, 0)
        if committed is None:
            clock = clock or first
        stop = clock if committed is None else committed
        if stop < clock:
            raise RecoveryError(
                f"partition {partition}: what was learnt reaches offset {clock}, but the group stands at {stop}: "
                "positions were moved or the topic was made anew; choose another --group"
            )
        if partition in self._held and self._held[partition].position > stop:
            self._let_go([partition])
        return self._held.setdefault(partition, OwnedPartition(clock)).position, stop

    def relearn(self, partition: int, learnt: Learnt[U]) -> None:
        """What somebody had committed was learnt again."""
        self._check_closed()
        self._learn(partition, learnt)

    def mark_ready(self, partition: int, position: int) -> None:
        """All before ``position`` was learnt: the partition is taken over."""
        self._held[partition].position = position
        self._held[partition].ready = True

    def _let_go(self, partitions: Iterable[int]) -> None:
        """These partitions are no longer this learner's."""
        for partition in set(partitions) & self._held.keys():
            del self._held[partition]

    # -- its own work

    def begin(self, ends: Mapping[int, int], *, at_rest: bool = False) -> Publication[Any]:
        """What a transaction is to carry besides a micro-batch that ends at ``ends``.

        That it commits positions is what fences a learner whose time is over; without a micro-batch, those of all
        partitions. ``at_rest``: publish whatever there is.

        Raises FencedError if a partition was not taken over.
        """
        self._check_closed()
        half_taken = {p for p, holding in self._held.items() if not holding.ready}
        if lost := (ends.keys() - self._held.keys()) | half_taken:
            raise FencedError(f"partitions {sorted(lost)} are not held by {self.name}: take them over first")
        publication = self._publication(at_rest)
        published = publication.delta.spans if publication.delta else ()
        others = {p: self._held[p].position for p in (published if ends else self._held)}
        self._open = replace(publication, positions={**others, **ends})
        return self._open

    def committed(self, parts: Mapping[int, Learnt[U]]) -> None:
        """The open transaction was committed: what it learnt is this learner's."""
        self._close()
        for partition, learnt in parts.items():
            self._learn(partition, learnt)

    def aborted(self) -> None:
        """The open transaction was aborted, or nobody knows: take over all partitions again."""
        self._close()

    def _publication(self, at_rest: bool) -> Publication[Any]:  # noqa: ARG002
        return Publication()

    def _learn(self, partition: int, learnt: Learnt[U]) -> None:
        self._held[partition].position = learnt.stop

    def _close(self) -> Publication[Any]:
        if self._open is None:
            raise ValueError("no transaction is open")
        publication, self._open = self._open, None
        return publication

    def _check_closed(self) -> None:
        if self._open is not None:
            raise ValueError("end the open transaction first")
