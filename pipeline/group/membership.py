"""The partitions that a learner owns, and how they change hands: what all kinds of owners have in common.

The life of a partition, as its owner sees it:

    nobody's, or another's ──acquire──► owned ──relearn, relearn, …──► owned ──mark_ready──► ready
              ▲                          ▲  ▲                                                 │
              │                          │  └── set_assignment that keeps it: who had it ─────┤
              │                          │      in between is not known                        │
              └── set_assignment without it, or somebody else's delta of it: lost ◄───────────┘

A micro-batch may be committed only if all its partitions are ready. When a partition is lost, the model loses what was
learnt from it and not yet published.

An owner does not touch the model. Each step returns a ``Change``, and the caller applies it before the next step. This
code knows no broker, wall clock, file or thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import FencedError, RecoveryError
from pipeline.group.shared import Admission, Checkpoint, Clock, Delta, G, GroupRecord, Reach, Shared
from pipeline.records.images import is_refused

U = TypeVar("U")
U_contra = TypeVar("U_contra", contravariant=True)
G_contra = TypeVar("G_contra", contravariant=True)


class Model(Protocol[U_contra, G_contra]):
    """What changes are applied to: the sums that a learner serves from."""

    def add(self, update: U_contra, /) -> None: ...

    def remove(self, update: U_contra, /) -> None:
        """Undo ``add``."""

    def add_sums(self, sums: G_contra, /) -> None: ...

    def remove_sums(self, sums: G_contra, /) -> None: ...


@dataclass(frozen=True, eq=False)
class Change(Generic[U, G]):
    """What a step of an owner adds to the model, and removes from it."""

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
    """What was learnt from some images of one partition.

    Parameters
    ----------
    stop
        The offset after the last of them.
    update
        What they add to the model.
    images
        How many of them have labels.
    new_class
        Whether one of them was the first of its class in the model.
    """

    stop: int
    update: U
    images: int
    new_class: bool = False


@dataclass
class OwnedPartition(Generic[U]):
    """A partition that a learner owns.

    Parameters
    ----------
    position
        The next offset to learn from.
    ready
        Whether everything before the group's position is learnt.
    learnt
        What was learnt and is not yet published.
    """

    position: int
    ready: bool = False
    learnt: list[Learnt[U]] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(learnt.images for learnt in self.learnt)


class Acquired(NamedTuple):
    """A partition is owned now. Its images from offset ``start`` to ``stop`` must be learnt again."""

    start: int
    stop: int
    change: Change[Any, Any]


@dataclass(frozen=True, eq=False)
class Publication(Generic[G]):
    """Records for ``sums`` that one transaction writes.

    The transaction must also commit ``positions``, as the present member of the group. These are the ends of its
    micro-batch, and the positions of all other partitions in the delta. So whoever takes over one of these partitions
    waits for the outcome of the transaction.
    """

    delta: Delta[G] | None = None
    checkpoint: Checkpoint[G] | None = None
    admission: Admission | None = None
    positions: Clock = field(default_factory=dict)

    @property
    def records(self) -> list[GroupRecord[G]]:
        return [record for record in (self.delta, self.checkpoint, self.admission) if record]


class PartitionOwner(ABC, Generic[U, G]):
    """What all owners have in common. By itself it publishes nothing, and follows nobody.

    Attributes
    ----------
    name
        Name of this learner in this session.
    known
        The labels that it has met. It refuses more of them than any learner may learn.
    deletable
        Nobody needs the records of ``sums`` before this offset.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.deletable = 0
        self._owned: dict[int, OwnedPartition[U]] = {}
        self._open: Publication[G] | None = None
        self.known: set[str] = set()

    @property
    @abstractmethod
    def clock(self) -> Clock:
        """Where this learner begins with a partition that it does not own yet."""

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each owned partition."""
        return {partition: owned.position for partition, owned in self._owned.items()}

    @property
    def full(self) -> bool:
        """Whether to stop learning until what was published has come back."""
        return False

    @property
    def awaiting(self) -> bool:
        """Whether something published has not come back yet."""
        return False

    @property
    def complete(self) -> bool:
        """Whether everything learnt is published and has come back."""
        return True

    @property
    def reach(self) -> Reach:
        """How far a snapshot would reach now."""
        return Reach(sum(self.positions.values()))

    def read(self, record: GroupRecord[G], position: int) -> Change[U, G]:  # noqa: ARG002
        """Take in a committed record of ``sums``. This owner follows nobody and ignores it."""
        return Change()

    def unknown(self, labels: Iterable[str | None]) -> tuple[str, ...]:  # noqa: ARG002
        """Those of the labels that must be admitted before an image is settled. This owner asks nobody."""
        return ()

    def refuses(self, label: str) -> bool:
        """Whether images with this label are never learnt, there being as many classes as a learner may have."""
        if is_refused(label, self.known):
            return True
        self.known.add(label)
        return False

    # -- partitions come and go

    def set_assignment(self, partitions: Collection[int]) -> Change[U, G]:
        """These partitions are assigned to this learner now. All others are lost.

        None of them is ready before it is taken over, even if it was owned before: another learner may have had it in
        between. Raises ValueError if a transaction is open.
        """
        self._check_closed()
        change = self._lose(self._owned.keys() - set(partitions))
        for owned in self._owned.values():
            owned.ready = False
        return change

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        """Own a partition. ``committed`` is the group's position in it, None if there is none.

        If nobody has learnt from it yet, this learner begins at ``first``, the first offset that the topic still has.
        Raises RecoveryError if more was learnt than is ``committed``, ValueError if a transaction is open.
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
        """Learn again what somebody has committed. Raises ValueError if a transaction is open."""
        self._check_closed()
        return self._learn(partition, learnt)

    def mark_ready(self, partition: int, position: int) -> None:
        """Everything before ``position`` is learnt: the partition is taken over."""
        self._owned[partition].position = position
        self._owned[partition].ready = True

    def _lose(self, partitions: Iterable[int]) -> Change[U, G]:
        """Give up these partitions, and what was learnt from them and not published."""
        lost = [self._owned.pop(partition) for partition in set(partitions) & self._owned.keys()]
        return Change(removed=[learnt.update for owned in lost for learnt in owned.learnt])

    # -- its own work

    def begin(self, ends: Mapping[int, int], *, at_rest: bool = False) -> Publication[G]:
        """Open a transaction. Returns what it must carry besides a micro-batch that ends at ``ends``.

        It always commits positions, so that the broker refuses it if this learner is no longer a member. Without a
        micro-batch it commits those of all partitions. ``at_rest`` publishes whatever there is.

        Raises FencedError if a partition is not taken over, ValueError if a transaction is open already.
        """
        self._check_ready(ends)
        publication = self._publication(at_rest)
        published = publication.delta.spans if publication.delta else ()
        others = {p: self._owned[p].position for p in (published if ends else self._owned)}
        self._open = replace(publication, positions={**others, **ends})
        return self._open

    def _check_ready(self, ends: Collection[int] = ()) -> None:
        self._check_closed()
        half_taken = {p for p, owned in self._owned.items() if not owned.ready}
        if lost := (set(ends) - self._owned.keys()) | half_taken:
            raise FencedError(f"partitions {sorted(lost)} are not owned by {self.name}: take them over first")

    def committed(self, parts: Mapping[int, Learnt[U]]) -> Change[U, G]:
        """The open transaction was committed: ``parts`` are learnt. Raises ValueError if none is open."""
        self._close()
        return self._learn_all(parts)

    def aborted(self) -> None:
        """The open transaction was aborted, or may have been: take over all partitions again.

        Raises ValueError if none is open.
        """
        self._close()

    def _publication(self, at_rest: bool) -> Publication[G]:  # noqa: ARG002
        return Publication()

    def _learn_all(self, parts: Mapping[int, Learnt[U]]) -> Change[U, G]:
        changes = [self._learn(partition, learnt) for partition, learnt in parts.items()]
        return Change(added=[update for change in changes for update in change.added])

    @abstractmethod
    def _learn(self, partition: int, learnt: Learnt[U]) -> Change[U, G]:
        """Keep what was learnt from an owned partition."""

    def _close(self) -> Publication[G]:
        if self._open is None:
            raise ValueError("no transaction is open")
        publication, self._open = self._open, None
        return publication

    def _check_closed(self) -> None:
        if self._open is not None:
            raise ValueError("end the open transaction first")


class SharingOwner(PartitionOwner[U, G]):
    """An owner whose group has a log: what is shared is a function of it.

    Parameters
    ----------
    name
        Name of this learner in this session. No other learner ever has the same.
    shared
        What the group shares, as far as the log was read.
    """

    def __init__(self, name: str, shared: Shared[G]) -> None:
        super().__init__(name)
        self.shared = shared
        self._made = 0

    @property
    def clock(self) -> Clock:
        return self.shared.clock

    def unknown(self, labels: Iterable[str | None]) -> tuple[str, ...]:
        """Those of the labels that the group has room for and has not admitted yet."""
        missing = (label for label in labels if label is not None and label not in self.shared.classes)
        return () if self.shared.refuses("") else tuple(dict.fromkeys(missing))

    def refuses(self, label: str) -> bool:
        return self.shared.refuses(label)

    def admit(self, labels: Iterable[str]) -> Publication[G]:
        """Open a transaction that names these labels, in the log and so to all learners of the group.

        Raises FencedError if a partition is not taken over, ValueError if a transaction is open already.
        """
        self._check_ready()
        self._open = Publication(admission=Admission(self._id(), tuple(labels)), positions=self.positions)
        return self._open

    def _id(self) -> str:
        self._made += 1
        return f"{self.name}-{self._made}"
