"""Seeded bugs, one in each rule of the protocol: the model check must find every one of them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import FencedError
from pipeline.group.membership import Acquired, Change, PartitionOwner, Publication
from pipeline.group.publishing import PublishingOwner
from pipeline.group.shared import Checkpoint, Delta, GroupRecord, Retraction, Shared
from tests.simulation.kafka import Transaction
from tests.simulation.learner import Learner, LearnerLog


class _AddsTwice(PublishingOwner[Any, Any]):
    """Takes its own delta for somebody else's when it comes back."""

    def _change(self, record: GroupRecord[Any]) -> Change[Any, Any]:
        self._awaited.discard(record.id)
        return super()._change(record)


class AddedTwice(Learner):
    owner_type = _AddsTwice


class _NeverSkips(Shared[Any]):
    def _lacks(self, delta: Delta[Any]) -> bool:
        super()._lacks(delta)
        return True


class _OwnsWithoutSkipping(PublishingOwner[Any, Any]):
    def read(self, record: GroupRecord[Any], position: int) -> Change[Any, Any]:
        s = self.shared
        self.shared = _NeverSkips(s.sums, s.clock, s.position, s.retracted)
        return super().read(record, position)


class NotSkipped(Learner):
    owner_type = _OwnsWithoutSkipping


class _Keeps(PublishingOwner[Any, Any]):
    def _lose(self, partitions: Iterable[int]) -> Change[Any, Any]:
        super()._lose(partitions)
        return Change()


class UnpublishedKept(Learner):
    """What was not published of a partition that was taken away stays in the sums."""

    owner_type = _Keeps


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
            if self.kafka.epochs[self.transactional_id] != transaction.epoch or transaction.outcome is not None:
                raise


class _Forgets(Shared[Any]):
    def lacks(self, record: GroupRecord[Any]) -> bool:
        return isinstance(record, Retraction) or super().lacks(record)


class _OwnsWithoutMemory(PublishingOwner[Any, Any]):
    def read(self, record: GroupRecord[Any], position: int) -> Change[Any, Any]:
        s = self.shared
        self.shared = _Forgets(s.sums, s.clock, s.position, s.retracted)
        return super().read(record, position)


class RetractionAppliedTwice(Learner):
    owner_type = _OwnsWithoutMemory


class _ReadsOnlyTheLatest(LearnerLog):
    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:  # noqa: ARG002
        return dict(self.kafka.positions)


class PositionsReadBeforeTheyAreStable(Learner):
    """Does not wait for an open transaction that moves the positions."""

    log_type = _ReadsOnlyTheLatest


class _Trusts(PublishingOwner[Any, Any]):
    def set_assignment(self, partitions: Collection[int]) -> Change[Any, Any]:
        change = super().set_assignment(partitions)
        self._kept = set(self._owned)
        return change

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        found = super().acquire(partition, committed, first)
        return found._replace(stop=found.start) if partition in self._kept else found


class KeptPartitionsTrusted(Learner):
    """Takes a partition that it had before for one that nobody else had in between."""

    owner_type = _Trusts


class _Remembers(PublishingOwner[Any, Any]):
    def aborted(self) -> None:
        self.committed({})


class AbortedTakenForCommitted(Learner):
    owner_type = _Remembers


class _PublishesAgain(PublishingOwner[Any, Any]):
    def _publication(self, at_rest: bool) -> Publication[Any]:
        self._awaited = set()
        return super()._publication(at_rest)


class PublishedAgainBeforeItCameBack(Learner):
    owner_type = _PublishesAgain


class OnlyTheEndsCommitted(Learner):
    """Publishes of partitions whose positions it does not commit: nobody who takes one over waits for the outcome."""

    def positions(self, publication: Publication[Any], ends: Mapping[int, int]) -> Mapping[int, int]:
        return ends or publication.positions


class DeletedUpToTheCheckpoint(Learner):
    """Deletes all records before the end of what was read, instead of those that the newest checkpoint covers."""

    def delete(self, owner: PublishingOwner[Any, Any]) -> None:  # noqa: ARG002
        self.kafka.delete_before(self.log.next)


class _ForgetsPieces(LearnerLog):
    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Any], int]], bool]:
        records, reached = super().read_sums(end)
        return [(record, self.next) for record, _ in records], reached


class CheckpointAmidPieces(Learner):
    """Says of a checkpoint that it covers all that was read, also the first piece of what is not complete."""

    log_type = _ForgetsPieces


class _DecidesAlone(PublishingOwner[Any, Any]):
    def unknown(self, labels: Iterable[str | None]) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def refuses(self, label: str) -> bool:
        return PartitionOwner.refuses(self, label)


class ClassesDecidedByEachForItself(Learner):
    """Refuses what it meets when it knows as many labels as there is room for, as before there were admissions."""

    owner_type = _DecidesAlone


class _SettlesTooSoon(PublishingOwner[Any, Any]):
    def unknown(self, labels: Iterable[str | None]) -> tuple[str, ...]:
        named = tuple(name for name in super().unknown(labels) if name not in self.known)
        self.known.update(named)
        return named

    def refuses(self, label: str) -> bool:
        return super().refuses(label) and label not in self.known


class SettledBeforeTheAdmissionCameBack(Learner):
    """Takes a label that it has named for one that there is room for."""

    owner_type = _SettlesTooSoon


class _ForgetsAdmissions(PublishingOwner[Any, Any]):
    def _publication(self, at_rest: bool) -> Publication[Any]:
        found = super()._publication(at_rest)
        if found.checkpoint:
            bare = Checkpoint(found.checkpoint.id, replace(found.checkpoint.shared, admitted=()))
            return replace(found, checkpoint=bare)
        return found


class AdmissionsLeftOutOfCheckpoints(Learner):
    owner_type = _ForgetsAdmissions


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
    DeletedUpToTheCheckpoint,
    CheckpointAmidPieces,
    ClassesDecidedByEachForItself,
    SettledBeforeTheAdmissionCameBack,
    AdmissionsLeftOutOfCheckpoints,
]
