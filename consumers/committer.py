"""Sends what a micro-batch led to: one transaction each, all or nothing."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from consumers.microbatch import MicroBatch
from consumers.recovery.state import State
from pipeline.broker import Broker, Member, Partition, Position, Record
from pipeline.errors import OutcomeUnknownError
from pipeline.group.membership import Publication
from pipeline.monitoring.metrics import Metrics
from pipeline.records.topics import Topics


class Committer:
    """A producer, and the transactions of one learner. After a failure make a new one.

    Parameters
    ----------
    transactional_id
        No other process that is alive has it.
    state
        Knows how to write down what it publishes, and what to note beside positions.
    """

    def __init__(self, broker: Broker, topics: Topics, transactional_id: str, metrics: Metrics, state: State) -> None:
        self._producer = broker.producer(transactional_id)
        self._topics, self._metrics, self._state = topics, metrics, state

    def commit(self, batch: MicroBatch) -> None:
        """Predictions, dead letters, journal, what is published, and positions."""
        records = [*batch.records(self._topics), *self._state.encoded(batch.publication)]
        self._transact(records, batch.reading.member, batch.publication.positions)

    def publish(self, publication: Publication[Any], member: Member) -> None:
        """What is published alone, and the positions that say on whose behalf."""
        self._transact(self._state.encoded(publication), member, publication.positions)

    def close(self) -> None:
        self._producer.close()

    def _transact(self, records: Iterable[Record], member: Member, positions: Mapping[int, int]) -> None:
        note = self._state.in_order.note if self._state.in_order else ""
        noted = {Partition(self._topics.images, number): Position(at, note) for number, at in positions.items()}
        with self._counted(), self._producer.transaction() as transaction:
            transaction.produce(records)
            transaction.commit_offsets(member, noted)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        outcome = "aborted"
        try:
            yield
            outcome = "committed"
        except OutcomeUnknownError:
            outcome = "unknown"
            raise
        finally:
            self._metrics.transactions.labels(outcome).inc()
