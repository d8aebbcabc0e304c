"""A broker for the model check only: what Kafka promises about logs, transactions and groups, and no more.

Whatever Kafka leaves open is left to the scheduler: when the end of a transaction becomes known to each partition that
it wrote to, when a transaction times out, who is expelled from the group and what the others are given. The real
broker is in tests/kafka.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import FencedError

SUMS, POSITIONS, PREDICTIONS = "sums", "positions", "predictions"


class GoneError(Exception):
    """Offsets that were deleted."""


class BusyError(Exception):
    """An earlier transaction of the same id is not at its end yet."""


@dataclass(eq=False)
class Transaction:
    """``outcome`` is None while it is open; ``untold`` are the partitions that do not know of it yet."""

    owner: str
    epoch: int
    touched: set[str] = field(default_factory=set)
    positions: dict[int, int] = field(default_factory=dict)
    predictions: list[int] = field(default_factory=list)
    first: int | None = None
    outcome: bool | None = None
    untold: set[str] = field(default_factory=set)


@dataclass
class Kafka:
    """One partition ``sums``, the images of a topic (a bit of ``images`` each), one group, and transactions."""

    sums: list[tuple[Transaction, Any]] = field(default_factory=list)
    first: int = 0
    predictions: list[int] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    unfinished: list[Transaction] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    generation: int = 0
    assignment: dict[str, frozenset[int]] = field(default_factory=dict)

    # -- the log

    @property
    def end(self) -> int:
        """The end of ``sums``, uncommitted records counted."""
        return len(self.sums)

    @property
    def stable_end(self) -> int:
        """The last stable offset of ``sums``."""
        if not self.unfinished:
            return self.end
        starts = [t.first for t in self.unfinished if t.first is not None and (t.outcome is None or SUMS in t.untold)]
        return min(starts, default=self.end)

    def read(self, start: int, end: int) -> list[tuple[int, Any]]:
        """Committed records up to ``end`` or the last stable offset. Raises GoneError."""
        if start < self.first:
            raise GoneError(start)
        return self.history(start, end)

    def history(self, start: int, end: int) -> list[tuple[int, Any]]:
        """The same, with what was deleted."""
        stop = min(end, self.stable_end)
        return [
            (offset, content)
            for offset, (transaction, content) in enumerate(self.sums[start:stop], start)
            if content is not None and transaction.outcome
        ]

    def delete_before(self, offset: int) -> None:
        self.first = max(self.first, offset)

    def stable_positions(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        """None as long as the position of one of these may be moved by a transaction that has begun to."""
        undecided = [t for t in self.unfinished if t.outcome is None or POSITIONS in t.untold]
        if any(t.positions.keys() & set(partitions) for t in undecided):
            return None
        return {partition: self.positions[partition] for partition in partitions if partition in self.positions}

    # -- transactions

    def init(self, owner: str) -> int:
        """Take over a transactional id; the new epoch. Raises BusyError."""
        mine = [t for t in self.unfinished if t.owner == owner]
        self.epochs[owner] = self.epochs.get(owner, -1) + 1
        for transaction in mine:
            if transaction.outcome is None:
                self._decide(transaction, False)
        if mine:
            raise BusyError
        return self.epochs[owner]

    def begin(self, owner: str, epoch: int) -> Transaction:
        transaction = Transaction(owner, epoch)
        self._check(transaction)
        self.unfinished.append(transaction)
        return transaction

    def produce(self, transaction: Transaction, content: Any) -> None:
        """Append to ``sums``."""
        self._check(transaction)
        transaction.touched.add(SUMS)
        if transaction.first is None:
            transaction.first = self.end
        self.sums.append((transaction, content))

    def predict(self, transaction: Transaction, images: list[int]) -> None:
        self._check(transaction)
        transaction.touched.add(PREDICTIONS)
        transaction.predictions += images

    def commit_positions(
        self, transaction: Transaction, member: str, generation: int, positions: Mapping[int, int]
    ) -> None:
        """Only the generation is checked, as in Kafka: not whether the member has those partitions."""
        self._check(transaction)
        if generation != self.generation or member not in self.assignment:
            raise FencedError(f"generation {generation} of {member} has gone by")
        transaction.touched.add(POSITIONS)
        transaction.positions.update(positions)

    def end_transaction(self, transaction: Transaction, commit: bool) -> None:
        self._check(transaction)
        self._decide(transaction, commit)

    def time_out(self, transaction: Transaction) -> None:
        """The broker aborts what was open for too long, and fences whoever had it open."""
        self.epochs[transaction.owner] += 1
        self._decide(transaction, False)

    def tell(self, transaction: Transaction, partition: str) -> None:
        """The end of a transaction becomes known to one of its partitions, where it takes an offset of its own."""
        transaction.untold.remove(partition)
        if partition == SUMS:
            self.sums.append((transaction, None))
        elif transaction.outcome and partition == POSITIONS:
            self.positions.update(transaction.positions)
        elif transaction.outcome:
            self.predictions += transaction.predictions
        if not transaction.untold:
            self.unfinished.remove(transaction)

    def is_over(self, transaction: Transaction) -> bool:
        """Whether all partitions know the end of it."""
        return transaction.outcome is not None and not transaction.untold

    def _check(self, transaction: Transaction) -> None:
        if self.epochs.get(transaction.owner) != transaction.epoch or transaction.outcome is not None:
            raise FencedError(f"transactional id {transaction.owner} was taken over, or its transaction timed out")

    def _decide(self, transaction: Transaction, commit: bool) -> None:
        transaction.outcome, transaction.untold = commit, set(transaction.touched)
        if not transaction.untold:
            self.unfinished.remove(transaction)

    # -- the group

    def rebalance(self, members: set[str], partitions: int, choose: Callable[[int], int]) -> None:
        """A new generation; each partition goes to any of the members."""
        self.generation += 1
        names = sorted(members)
        owners = [names[choose(len(names))] for _ in range(partitions)] if names else []
        self.assignment = {name: frozenset(p for p, owner in enumerate(owners) if owner == name) for name in names}

    def look(self, member: str) -> tuple[int, frozenset[int]] | None:
        """The generation, and what this member has in it; None if it was expelled."""
        return (self.generation, self.assignment[member]) if member in self.assignment else None
