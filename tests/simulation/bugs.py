"""Seeded bugs, one in each rule of the protocol: the model check must find every one of them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pipeline.errors import FencedError
from pipeline.group.membership import Publication
from pipeline.group.publishing import PublishingOwner
from pipeline.group.shared import Delta, GroupRecord, Retraction, Shared
from tests.simulation.kafka import Transaction
from tests.simulation.learner import Learner, LearnerLog


class _AddsTwice(PublishingOwner[Any, Any]):
    """Takes its own delta for somebody else's when it comes back."""

    def _change(self, record: GroupRecord[Any]) -> None:
        self._awaited.discard(record.id)
        super()._change(record)


class AddedTwice(Learner):
    share_type = _AddsTwice


class _NeverSkips(Shared[Any]):
    def _lacks(self, delta: Delta[Any]) -> bool:
        super()._lacks(delta)
        return True


class _SharesWithoutSkipping(PublishingOwner[Any, Any]):
    def read(self, record: GroupRecord[Any], position: int) -> None:
        p = self.published
        self.published = _NeverSkips(p.sums, p.clock, p.position, p.retracted)
        super().read(record, position)


class NotSkipped(Learner):
    share_type = _SharesWithoutSkipping


class _Keeps(PublishingOwner[Any, Any]):
    def _let_go(self, partitions: Iterable[int]) -> None:
        for partition in set(partitions) & self._held.keys():
            del self._held[partition]


class UnpublishedKept(Learner):
    """What was not published of a partition that was taken away stays in the sums."""

    share_type = _Keeps


class _ReadsCommittedOnly(LearnerLog):
    def end_of_sums(self) -> int:
        return self.kafka.stable_end


class EndOfSumsReadAsCommittedOnly(Learner):
    log_type = _ReadsCommittedOnly


class PublishedAfterFencing(Learner):
    """Goes on with a transaction whose positions were refused."""

    def commit_positions(self, transaction: Transaction, positions: Mapping[int, int]) -> None:
        try:
            super().commit_positions(transaction, positions)
        except FencedError:
            if self.kafka.epochs[self.owner] != transaction.epoch or transaction.outcome is not None:
                raise


class _Forgets(Shared[Any]):
    def lacks(self, record: GroupRecord[Any]) -> bool:
        return isinstance(record, Retraction) or super().lacks(record)


class _SharesWithoutMemory(PublishingOwner[Any, Any]):
    def read(self, record: GroupRecord[Any], position: int) -> None:
        p = self.published
        self.published = _Forgets(p.sums, p.clock, p.position, p.retracted)
        super().read(record, position)


class RetractionAppliedTwice(Learner):
    share_type = _SharesWithoutMemory


class _ReadsOnlyTheLatest(LearnerLog):
    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:  # noqa: ARG002
        return dict(self.kafka.positions)


class PositionsReadBeforeTheyAreStable(Learner):
    """Does not wait for an open transaction that moves the positions."""

    log_type = _ReadsOnlyTheLatest


class _Trusts(PublishingOwner[Any, Any]):
    def set_assignment(self, partitions: Collection[int]) -> None:
        super().set_assignment(partitions)
        self._kept = {p: holding.position for p, holding in self._held.items()}

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        start, stop = super().acquire(partition, committed, first)
        return (start, start) if partition in self._kept else (start, stop)


class KeptPartitionsTrusted(Learner):
    """Takes a partition that it had before for one that nobody else had in between."""

    share_type = _Trusts


class _Remembers(PublishingOwner[Any, Any]):
    def aborted(self) -> None:
        self.committed({})


class AbortedTakenForCommitted(Learner):
    share_type = _Remembers


class _PublishesAgain(PublishingOwner[Any, Any]):
    def _publication(self, at_rest: bool) -> Publication[Any]:
        self._awaited = set()
        return super()._publication(at_rest)


class PublishedAgainBeforeItCameBack(Learner):
    share_type = _PublishesAgain


class OnlyTheEndsCommitted(Learner):
    """Publishes of partitions whose positions it does not commit: nobody who takes one over waits for the outcome."""

    def positions(self, publication: Publication[Any], ends: Mapping[int, int]) -> Mapping[int, int]:
        return ends or publication.positions


class DeletedUpToTheBase(Learner):
    """Deletes all records before the end of what was read, instead of those that the newest base covers."""

    def delete(self, share: PublishingOwner[Any, Any]) -> None:  # noqa: ARG002
        self.kafka.delete_before(self.log.next)


class _ForgetsPieces(LearnerLog):
    def read_group(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Any], int]], bool]:
        records, reached = super().read_group(end)
        return [(record, self.next) for record, _ in records], reached


class BaseAmidPieces(Learner):
    """Says of a base that it covers all that was read, also the first piece of what is not complete."""

    log_type = _ForgetsPieces


BUGS = [
    AddedTwice,
    NotSkipped,
    UnpublishedKept,
    EndOfSumsReadAsCommittedOnly,
    PublishedAfterFencing,
    RetractionAppliedTwice,
    PositionsReadBeforeTheyAreStable,
    KeptPartitionsTrusted,
    AbortedTakenForCommitted,
    PublishedAgainBeforeItCameBack,
    DeletedUpToTheBase,
    BaseAmidPieces,
]
