"""What all learners of a group share: sums, and the clock that says how far they reach.

The topic ``sums`` is a log of records, and shared sums are a function of a prefix of that log. So learners that have
read equally far hold the same sums, whatever happened to them before. There are four kinds of record:

- a *delta* holds what some partitions added, each between two offsets. It is added if it begins at the clock, and
  skipped if it ends at or before the clock. Anything else means that this learner is wrong;
- a *retraction* holds the sums of images that are taken back. It is subtracted once;
- an *admission* names labels. The first ``MOST_CLASSES`` distinct ones are the group's classes, for ever. Nobody
  settles a label before its admission has come back, so whether an image is refused depends on its label alone;
- a *checkpoint* holds the shared sums themselves, so that nobody has to read the log from its beginning.

This code knows no broker, wall clock or file. The sums may be any values with + and −.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from pipeline.errors import OutOfStepError
from pipeline.records.images import admitted_with, is_refused

Clock = Mapping[int, int]
"""The next offset of each partition; 0 for a partition that is left out."""


class Additive(Protocol):
    """Values with + and −, such as ``Sums``."""

    def __add__(self, other: Any) -> Self: ...

    def __sub__(self, other: Any) -> Self: ...


G = TypeVar("G", bound=Additive)


@dataclass(frozen=True, eq=False)
class Delta(Generic[G]):
    """What partitions added.

    Parameters
    ----------
    id
        No other record of the group has it.
    spans
        For each partition (start, stop): the images with start <= offset < stop are in the sums.
    sums
        Over all these images.
    images
        How many of these images have labels.
    labels
        Of these images, in a log that was written before there were admissions: this one admits them.
    """

    id: str
    spans: Mapping[int, tuple[int, int]]
    sums: G
    images: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Retraction(Generic[G]):
    """Sums of images that are taken back. All of them lie before ``clock``. A second record of one id does nothing."""

    id: str
    clock: Clock
    sums: G


@dataclass(frozen=True, eq=False)
class Admission:
    """Labels that the group meets for the first time. Those it has room for become classes."""

    id: str
    labels: tuple[str, ...]


class Reach(NamedTuple):
    """How far a snapshot reaches: the offsets of its clock, all partitions added up, and its retractions."""

    offsets: int = 0
    retractions: int = 0


@dataclass(frozen=True, eq=False)
class Shared(Generic[G]):
    """Shared sums.

    Parameters
    ----------
    sums
        What the group began with, plus all deltas and less all retractions.
    clock
        How far they reach.
    position
        Offset in the topic ``sums``. All records that begin before it are included; later ones may be, too.
    retracted
        The ids of all retractions. The journal says which images each one took back.
    begins
        Where the sums begin: they hold no image before it, though they go on at ``clock``.
    admitted
        The group's classes, in the order of their admission.
    """

    sums: G
    clock: Clock = field(default_factory=dict)
    position: int = 0
    retracted: frozenset[str] = frozenset()
    begins: Clock = field(default_factory=dict)
    admitted: tuple[str, ...] = ()

    def refuses(self, label: str) -> bool:
        """Whether images with this label are never learnt: the group has all classes it may have, and this is none."""
        return is_refused(label, self.classes)

    @cached_property
    def classes(self) -> frozenset[str]:
        """The group's classes."""
        return frozenset(self.admitted)

    @property
    def reach(self) -> Reach:
        """How far a snapshot of them reaches."""
        return Reach(sum(self.clock.values()), len(self.retracted))

    def lacks(self, record: "GroupRecord[G]") -> bool:
        """Whether the record has yet to be added. Raises OutOfStepError if it does not fit the clock."""
        match record:
            case Delta():
                return self._lacks(record)
            case Retraction():
                self._check_reach(record)
                return record.id not in self.retracted
            case Admission():
                return admitted_with(record.labels, self.admitted) != self.admitted
        return False

    def plus(self, record: "GroupRecord[G]") -> Self:
        """These sums and a record that they lack."""
        match record:
            case Delta():
                stops = {partition: stop for partition, (_, stop) in record.spans.items()}
                admitted = admitted_with(record.labels, self.admitted)
                return replace(self, sums=self.sums + record.sums, clock={**self.clock, **stops}, admitted=admitted)
            case Retraction():
                return replace(self, sums=self.sums - record.sums, retracted=self.retracted | {record.id})
            case Admission():
                return replace(self, admitted=admitted_with(record.labels, self.admitted))
        return self

    def _lacks(self, delta: Delta[G]) -> bool:
        at = {partition: self.clock.get(partition, 0) for partition in delta.spans}
        if all(start == at[partition] for partition, (start, _) in delta.spans.items()):
            return True
        if all(stop <= at[partition] for partition, (_, stop) in delta.spans.items()):
            return False
        spans = ", ".join(f"partition {p} from {start} to {stop}" for p, (start, stop) in delta.spans.items())
        raise OutOfStepError(
            f"delta {delta.id}: {spans}, but the sums reach {at}: begin again with the newest checkpoint"
        )

    def _check_reach(self, retraction: Retraction[G]) -> None:
        at = {partition: self.clock.get(partition, 0) for partition in retraction.clock}
        if any(at[partition] < reach for partition, reach in retraction.clock.items()):
            raise OutOfStepError(
                f"retraction {retraction.id}: of images up to {dict(retraction.clock)}, but the sums reach {at}: begin "
                "again with the newest checkpoint"
            )


@dataclass(frozen=True, eq=False)
class Checkpoint(Generic[G]):
    """Shared sums as a record. Records before their position may be deleted."""

    id: str
    shared: Shared[G]


GroupRecord = Delta[G] | Retraction[G] | Checkpoint[G] | Admission
