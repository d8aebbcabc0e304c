"""What all learners of a group share: sums, the clock that says how far they reach, and nothing else.

The topic ``sums`` is a log of records, and shared sums are a function of a prefix of that log. So learners that have
read equally far hold the same sums, whoever they are and whatever became of them before. Three kinds of record:

- a *delta*: what some partitions added between two offsets each. It is added if it begins at the clock, skipped if it
  ends at or before it; anything else means that this learner is wrong;
- a *retraction*: what images add that are to be taken back, subtracted once;
- a *checkpoint*: shared sums as a value, so that nobody has to read the log from its beginning.

No broker, no clock on the wall, no file. The sums may be any values with + and −.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from pipeline.errors import OutOfStepError

Clock = Mapping[int, int]
"""The next offset of each partition; 0 for a partition that is left out."""


class Additive(Protocol):
    """Values with + and −, such as ``Sums``."""

    def __add__(self, other: Any) -> Self: ...

    def __sub__(self, other: Any) -> Self: ...


G = TypeVar("G", bound=Additive)


@dataclass(frozen=True, eq=False)
class Delta(Generic[G]):
    """What partitions added: ``sums`` over the images of each partition with start <= offset < stop.

    ``id`` is one that no other record of the group has. ``images`` says how many of them had labels.
    """

    id: str
    spans: Mapping[int, tuple[int, int]]
    sums: G
    images: int


@dataclass(frozen=True, eq=False)
class Retraction(Generic[G]):
    """What images added that are taken back. All of them lie before ``clock``; a second one of the same id is none."""

    id: str
    clock: Clock
    sums: G


@dataclass(frozen=True, eq=False)
class Shared(Generic[G]):
    """Shared sums.

    Parameters
    ----------
    sums
        What they started with, and every delta and retraction that was read.
    clock
        How far they reach.
    position
        Offset in ``sums``. Every record that begins before it is in; of those that begin at or after it, some may be.
    retracted
        The ids of all retractions.
    """

    sums: G
    clock: Clock = field(default_factory=dict)
    position: int = 0
    retracted: frozenset[str] = frozenset()

    def lacks(self, record: "GroupRecord[G]") -> bool:
        """Whether the record has yet to be added. Raises OutOfStepError."""
        match record:
            case Delta():
                return self._lacks(record)
            case Retraction():
                self._check_reach(record)
                return record.id not in self.retracted
        return False

    def plus(self, record: "GroupRecord[G]") -> Self:
        """With a record that they lack."""
        match record:
            case Delta():
                stops = {partition: stop for partition, (_, stop) in record.spans.items()}
                return replace(self, sums=self.sums + record.sums, clock={**self.clock, **stops})
            case Retraction():
                return replace(self, sums=self.sums - record.sums, retracted=self.retracted | {record.id})
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
    """Shared sums as a record. What lies before their position need not be kept."""

    id: str
    shared: Shared[G]


GroupRecord = Delta[G] | Retraction[G] | Checkpoint[G]
