"""The partitions that a learner owns, and how they change hands: what all owners have in common.

The life of a partition, as its owner sees it:

    nobody's, or another's ──acquire──► owned ──relearn, relearn, …──► owned ──mark_ready──► ready
              ▲                          ▲  ▲                                                 │
              │                          │  └── set_assignment that keeps it: who had it ─────┤
              │                          │      in between is not known                        │
              └── set_assignment without it, or somebody else's delta of it: lost ◄───────────┘

Only of a ready partition a micro-batch may be committed. What was not published of a lost one is taken out of the
model.

An owner changes no model: what a step means for the model is the ``Change`` that it returns, and whoever took the step
applies it before the next one. No broker, no clock on the wall, no file, no thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import FencedError, RecoveryError
from pipeline.group.shared import Checkpoint, Clock, Delta, G, GroupRecord

U = TypeVar("U")
U_contra = TypeVar("U_contra", contravariant=True)
G_contra = TypeVar("G_contra", contravariant=True)


class Model(Protocol[U_contra, G_contra]):
    """What a change is applied to: the sums that a learner serves from."""

    def add(self, update: U_contra, /) -> None: ...

    def remove(self, update: U_contra, /) -> None:
        """Undo ``add``."""

    def add_sums(self, sums: G_contra, /) -> None: ...

    def remove_sums(self, sums: G_contra, /) -> None: ...


@dataclass(frozen=True, eq=False)
class Change(Generic[U, G]):
    """What a step of an owner means for the model."""

    removed: Sequence[U] = ()
    added: Sequence[U] = ()
    removed_sums: G | None = None
    added_sums: G | None = None

    def apply(self, model: Model[U, G]) -> None:
        """Make the change."""
        for update in self.removed:
            model.remove(update)
        for update in self.added:
            model.add(update)
        if self.removed_sums is not None:
            model.remove_sums(self.removed_sums)
        if self.added_sums is not None:
            model.add_sums(self.added_sums)


@dataclass(frozen=True)
class Learnt(Generic[U]):
    """What ``images`` labelled images of one partition added, up to offset ``stop``.

    ``new_class`` says whether one of them was the first of its class in the model.
    """

    stop: int
    update: U
    images: int
    new_class: bool = False


@dataclass
class OwnedPartition(Generic[U]):
    """A partition that a learner owns: the next offset, and what was learnt since the clock.

    Not ``ready`` as long as images before the group's position are to be learnt from again.
    """

    position: int
    ready: bool = False
    learnt: list[Learnt[U]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(learnt.images for learnt in self.learnt)


class Acquired(NamedTuple):
    """A partition is owned now. Its images from offset ``start`` to ``stop`` are to be learnt from again."""

    start: int
    stop: int
    change: Change[Any, Any]


@dataclass(frozen=True, eq=False)
class Publication(Generic[G]):
    """Records for ``sums`` that go out with one transaction.

    The transaction must commit ``positions``, in the name of the present member: the ends of its micro-batch, and where
    every other partition stands of which it publishes. Whoever takes one of them over then waits for its outcome.
    """

    delta: Delta[G] | None = None
    checkpoint: Checkpoint[G] | None = None
    positions: Clock = field(default_factory=dict)

    @property
    def records(self) -> list[GroupRecord[G]]:
        return [record for record in (self.delta, self.checkpoint) if record]


class PartitionOwner(ABC, Generic[U, G]):
    """An owner that publishes nothing.

    Attributes
    ----------
    name
        Of this learner in this session.
    deletable
        Nobody needs the records of ``sums`` before this offset.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.deletable = 0
        self._owned: dict[int, OwnedPartition[U]] = {}
        self._open: Publication[G] | None = None

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """Where a partition that is not owned yet is taken over from."""

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each partition that is owned."""
        return {partition: owned.position for partition, owned in self._owned.items()}

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

    def read(self, record: GroupRecord[G], position: int) -> Change[U, G]:  # noqa: ARG002
        """A committed record of ``sums``; it is nothing to a learner that does not follow others."""
        return Change()

    # -- partitions come and go

    def set_assignment(self, partitions: Collection[int]) -> Change[U, G]:
        """These partitions are assigned to this learner now; what it has not published of others is thrown away.

        None is ready before it was taken over, also if it was owned before: nobody can say who had it in between.
        """
        self._check_closed()
        change = self._lose(self._owned.keys() - set(partitions))
        for owned in self._owned.values():
            owned.ready = False
        return change

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        """Own a partition, of which the group's position is ``committed``.

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
        ahead = partition in self._owned and self._owned[partition].position > stop
        change: Change[U, G] = self._lose([partition]) if ahead else Change()
        return Acquired(self._owned.setdefault(partition, OwnedPartition(clock)).position, stop, change)

    def relearn(self, partition: int, learnt: Learnt[U]) -> Change[U, G]:
        """What somebody had committed was settled again."""
        self._check_closed()
        return self._learn(partition, learnt)

    def mark_ready(self, partition: int, position: int) -> None:
        """All before ``position`` was learnt: the partition is taken over."""
        self._owned[partition].position = position
        self._owned[partition].ready = True

    def _lose(self, partitions: Iterable[int]) -> Change[U, G]:
        """These partitions are no longer this learner's; what was not published of them goes."""
        lost = [self._owned.pop(partition) for partition in set(partitions) & self._owned.keys()]
        return Change(removed=[learnt.update for owned in lost for learnt in owned.learnt])

    # -- its own work

    def begin(self, ends: Mapping[int, int], *, at_rest: bool = False) -> Publication[G]:
        """What a transaction is to carry besides a micro-batch that ends at ``ends``.

        It commits positions, which fences a learner whose time is over; without a micro-batch, those of all
        partitions. ``at_rest``: publish whatever there is.

        Raises FencedError if a partition was not taken over.
        """
        self._check_closed()
        half_taken = {p for p, owned in self._owned.items() if not owned.ready}
        if lost := (ends.keys() - self._owned.keys()) | half_taken:
            raise FencedError(f"partitions {sorted(lost)} are not owned by {self.name}: take them over first")
        publication = self._publication(at_rest)
        published = publication.delta.spans if publication.delta else ()
        others = {p: self._owned[p].position for p in (published if ends else self._owned)}
        self._open = replace(publication, positions={**others, **ends})
        return self._open

    def committed(self, parts: Mapping[int, Learnt[U]]) -> Change[U, G]:
        """The open transaction was committed: what it learnt is this learner's."""
        self._close()
        return self._learn_all(parts)

    def aborted(self) -> None:
        """The open transaction was aborted, or nobody knows: take over all partitions again."""
        self._close()

    def _publication(self, at_rest: bool) -> Publication[G]:  # noqa: ARG002
        return Publication()

    def _learn_all(self, parts: Mapping[int, Learnt[U]]) -> Change[U, G]:
        changes = [self._learn(partition, learnt) for partition, learnt in parts.items()]
        return Change(added=[update for change in changes for update in change.added])

    @abstractmethod
    def _learn(self, partition: int, learnt: Learnt[U]) -> Change[U, G]:
        """What was learnt of a partition that is owned, now or again."""

    def _close(self) -> Publication[G]:
        if self._open is None:
            raise ValueError("no transaction is open")
        publication, self._open = self._open, None
        return publication

    def _check_closed(self) -> None:
        if self._open is not None:
            raise ValueError("end the open transaction first")
