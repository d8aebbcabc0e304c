"""Sends what a micro-batch led to: one transaction each, all or nothing."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from consumers.job import Job
from pipeline.broker import Broker, Member, Partition, Position, Record
from pipeline.errors import OutcomeUnknownError
from pipeline.learner import Update
from pipeline.metrics import Metrics
from pipeline.share import Publication
from pipeline.sums import Sums
from pipeline.sums_records import Run, encode
from pipeline.topics import Topics


class Committer:
    """A producer, and the transactions of one learner. After a failure make a new one.

    Parameters
    ----------
    transactional_id
        No other process that is alive has it.
    """

    def __init__(self, broker: Broker, topics: Topics, transactional_id: str, metrics: Metrics, run: Run) -> None:
        self._producer = broker.producer(transactional_id)
        self._topics, self._metrics, self._run = topics, metrics, run

    def commit(self, job: Job) -> None:
        """Predictions, dead letters, journal, what is published, and positions."""
        records = [*job.records(self._topics), *self._encoded(job.publication)]
        self._transact(records, job.reading.member, job.ends)

    def publish(self, publication: Publication[Update, Sums], member: Member, positions: Mapping[int, int]) -> None:
        """What is published alone, and the positions that say on whose behalf."""
        self._transact(self._encoded(publication), member, positions)

    def close(self) -> None:
        self._producer.close()

    def _encoded(self, publication: Publication[Update, Sums]) -> Iterator[Record]:
        topic = self._topics.sums(self._run.group).topic
        for record in publication.records:
            updates = publication.updates if record is publication.delta else ()
            yield from encode(topic, self._run, record, updates)

    def _transact(self, records: Iterable[Record], member: Member, ends: Mapping[int, int]) -> None:
        positions = {Partition(self._topics.images, number): Position(end) for number, end in ends.items()}
        with self._counted(), self._producer.transaction() as transaction:
            transaction.produce(records)
            transaction.commit_offsets(member, positions)

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
