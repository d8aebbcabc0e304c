"""Shares of learners that need not publish: one that has its group to itself, and one that only serves."""

from collections.abc import Collection
from dataclasses import replace

from pipeline.errors import RecoveryError
from pipeline.published import G, Published, Record, Retraction
from pipeline.share import Adder, Holding, Learnt, Publication, Share, U


class Sole(Share[U, G]):
    """For a broker that gives a group one consumer: what it has committed, nobody can take over.

    So all of that is as good as published, and its snapshots are what it begins with. No update is kept, and of
    ``published`` all but the sums counts.
    """

    def __init__(self, name: str, published: Published[G], adder: Adder[U, G]) -> None:
        super().__init__(name, published, adder, 1)

    @property
    def complete(self) -> bool:
        return True

    @property
    def reach(self) -> int:
        return sum(self.positions.values())

    def kept(self) -> Published[G]:
        return replace(self.published, sums=self.adder.sums(), clock=self.positions)

    def read(self, record: Record[G], position: int) -> None:
        """Retractions are all that others write. In a sum, one may well come before its images."""
        if isinstance(record, Retraction) and record.id not in self.published.retracted:
            self.adder.remove_sums(record.sums)
            self.published = replace(self.published, retracted=self.published.retracted | {record.id})
        self.published = replace(self.published, position=position)

    def given(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        clock = self.published.clock.get(partition, 0)
        if committed is not None and committed < clock:
            raise RecoveryError(
                f"partition {partition}: the sums reach offset {clock}, but the group stands at {committed}: "
                "positions were moved or the topic was made anew; choose another --group"
            )
        return super().given(partition, committed, first)

    def _publication(self, at_rest: bool) -> Publication[U, G]:  # noqa: ARG002
        return Publication(None, None)

    def _learn(self, partition: int, learnt: Learnt[U]) -> None:
        self.adder.add(learnt.update)
        self._held[partition].position = learnt.stop


class Frozen(Sole[U, G]):
    """For a learner that only serves: it takes partitions over where its group stands, and learns nothing."""

    def keep(self, partitions: Collection[int]) -> None:  # noqa: ARG002
        self._held.clear()

    def read(self, record: Record[G], position: int) -> None:
        """Whoever serves as it is does not follow the others."""

    def given(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        at = (self.published.clock.get(partition, 0) or first) if committed is None else committed
        self._held[partition] = Holding(at)
        return at, at

    def _learn(self, partition: int, learnt: Learnt[U]) -> None:
        self._held[partition].position = learnt.stop
