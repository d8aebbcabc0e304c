"""The share of a learner ``marketplace``: every micro-batch once, one after the other.

Its steps depend on the order and on the borders of micro-batches, so it has a group to itself, and what was committed
is never settled again: it is applied as the journal tells it.
"""

from dataclasses import dataclass

from pipeline.errors import RecoveryError
from pipeline.group.membership import Learnt, PartitionOwner
from pipeline.group.shared import Clock
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.settling import MarketplaceUpdate


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a micro-batch led to; ``begin`` and ``end`` are the clock of its partitions before and after it."""

    begin: Clock
    end: Clock
    update: MarketplaceUpdate


class InOrderOwner(PartitionOwner[Step]):
    """Steps of all partitions, in the order of the journal.

    Parameters
    ----------
    clock
        How far the learner has come, in every partition.
    learner
        Grows with every step.
    """

    def __init__(self, name: str, clock: Clock, learner: Marketplace) -> None:
        super().__init__(name)
        self._clock, self._learner = dict(clock), learner

    @property
    def clock(self) -> Clock:
        return self._clock

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        start, stop = super().acquire(partition, committed, first)
        if committed is None:
            self._clock[partition] = stop
        return start, stop

    def relearn(self, partition: int, learnt: Learnt[Step]) -> None:
        super().relearn(partition, learnt)
        self._learner.clear()  # or all of a long journal would wait in memory

    def mark_ready(self, partition: int, position: int) -> None:
        """As above. Raises RecoveryError if the journal ended before."""
        if (reach := self._clock.get(partition, 0)) != position:
            raise RecoveryError(
                f"partition {partition}: the group stands at {position}, but its snapshots and its journal end at "
                f"{reach}: put back a snapshot that reaches further, or choose another --group"
            )
        super().mark_ready(partition, position)

    def _learn(self, partition: int, learnt: Learnt[Step]) -> None:  # noqa: ARG002
        step = learnt.update
        if not self._has(step):
            self._learner.add(step.update)
            self._clock |= step.end
        for place in step.end.keys() & self._held.keys():
            self._held[place].position = self._clock[place]

    def _has(self, step: Step) -> bool:
        """Whether the step was taken already. Raises RecoveryError if one is missing before it."""
        if all(stop <= self._clock.get(partition, 0) for partition, stop in step.end.items()):
            return True
        at = {partition: self._clock.get(partition, start) for partition, start in step.begin.items()}
        if at != dict(step.begin):
            raise RecoveryError(
                f"the journal goes on at {dict(step.begin)}, but what was learnt ends at {at}: records of it are gone; "
                "put back a snapshot that reaches further, or choose another --group"
            )
        return False
