"""The producer on Kafka: one transaction after the other, each of them all or nothing."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition, errors
from kafka import KafkaProducer as Client

from pipeline.broker import Member, Partition, Position, Record
from pipeline.broker.kafka import patches
from pipeline.broker.kafka.connection import ANSWER_SECONDS, Connection
from pipeline.broker.kafka.consumer import place
from pipeline.broker.refusals import check_size
from pipeline.errors import BrokerError, FencedError, OutcomeUnknownError

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 17
LINGER_MS = 5
COMPRESSION = "lz4"

DELIVERY_SECONDS = 15.0
RETRY_SECONDS = 0.05
PENDING_SECONDS = 0.001, 0.05
ABORT_SECONDS = 3.0
CLOSE_SECONDS = 3.0


def largest_batch(record_bytes: int) -> int:
    """Bytes of the largest request and batch, where the largest record has so many of value and key."""
    return max(record_bytes, BATCH_BYTES) + (1 << 16)


class KafkaTransaction:
    """An open transaction. Sends as it goes; readers of committed records don't see it."""

    def __init__(self, client: Any, partitions: Callable[[str, int], int], record_bytes: int) -> None:
        self._client = client
        self._partitions = partitions
        self._record_bytes = record_bytes
        self.sent: list[Any] = []
        self.positions: dict[Member, dict[TopicPartition, OffsetAndMetadata]] = {}

    def produce(self, records: Iterable[Record]) -> None:
        """Send records, all of them or, if one is refused, none. Raises TopicError, RecordTooLargeError."""
        checked = [(record, self._place(record)) for record in records]
        for topic in {record.topic for record, _ in checked}:
            self._client.partitions_for(topic)  # or the first record would wait, for a thread that sleeps
        with patches.waking_once(self._client):
            for record, partition in checked:
                headers = list(record.headers)
                self.sent.append(
                    self._client.send(record.topic, record.value, key=record.key, headers=headers, partition=partition)
                )

    def commit_offsets(self, member: Member, positions: Mapping[Partition, Position]) -> None:
        """Move the group's positions with the transaction. Raises TopicError.

        A member whose generation has gone by makes the transaction raise FencedError.
        """
        offsets = self.positions.setdefault(member, {})
        for partition, position in positions.items():
            self._partitions(partition.topic, partition.number)
            offsets[place(partition)] = OffsetAndMetadata(position.offset, position.note, -1)

    def _place(self, record: Record) -> int | None:
        """The partition, or None if the key decides."""
        advice = "split it, or raise record_bytes and the topic's max.message.bytes"
        check_size(record.topic, len(record.value) + len(record.key or b""), self._record_bytes, advice)
        count = self._partitions(record.topic, record.partition or 0)
        return None if record.partition is None and record.key is not None and count > 1 else record.partition or 0


class KafkaProducer:
    """Writes, in transactions. After an error of the broker it is done for: make a new one.

    Parameters
    ----------
    partitions
        The number of partitions of a topic; raises TopicError if there is no topic, or no partition of that number.
    pending
        Whether a transactional id may have a transaction whose end is not known to all partitions yet.
    record_bytes
        The largest record, in bytes of value and key.
    transaction_seconds
        An open transaction is aborted by the broker after so long: nobody waits longer for one that was killed.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        transactional_id: str,
        partitions: Callable[[str, int], int],
        pending: Callable[[str], bool],
        record_bytes: int,
        transaction_seconds: float,
    ) -> None:
        self._connection, self._id = connection, transactional_id
        self._partitions, self._pending, self._record_bytes = partitions, pending, record_bytes
        self._failed: BrokerError | None = None
        self._client = connection.make(
            Client,
            transactional_id=transactional_id,
            enable_idempotence=True,
            acks="all",
            transaction_timeout_ms=int(1000 * transaction_seconds),
            delivery_timeout_ms=int(1000 * DELIVERY_SECONDS),
            max_block_ms=int(1000 * ANSWER_SECONDS),
            max_request_size=largest_batch(record_bytes),
            retry_backoff_ms=int(1000 * RETRY_SECONDS),
            allow_auto_create_topics=False,
            batch_size=BATCH_BYTES,
            linger_ms=LINGER_MS,
            compression_type=COMPRESSION,
            metrics_enabled=False,
        )
        patches.let_newer_producers_win(self._client)
        try:
            with connection.translating(f"transactional id {transactional_id!r}"):
                self._client.init_transactions()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[KafkaTransaction]:
        """As in the protocol."""
        if self._failed:
            raise type(self._failed)(str(self._failed))
        transaction = KafkaTransaction(self._client, self._partitions, self._record_bytes)
        try:
            self._client.begin_transaction()
            yield transaction
            self._send(transaction)
        except errors.KafkaError as error:  # before the commit nothing was written
            raise self._give_up(self._error(error)) from error
        except BaseException:
            self._abort()
            raise
        self._commit()

    def close(self) -> None:
        patches.close_producer(self._client, CLOSE_SECONDS)

    def _send(self, transaction: KafkaTransaction) -> None:
        """Positions, and the rest of the records."""
        for member, offsets in transaction.positions.items():
            metadata = ConsumerGroupMetadata(member.group, member.generation, member.name)
            patches.send_offsets(self._client, offsets, metadata, ANSWER_SECONDS)
        self._client.flush(ANSWER_SECONDS)
        for future in transaction.sent:
            if future.failed():
                raise future.exception

    def _commit(self) -> None:
        began = time.monotonic()
        try:
            patches.commit(self._client, ANSWER_SECONDS)
            self._await_settled(ANSWER_SECONDS)
        except errors.KafkaError as error:
            raise self._give_up(self._commit_error(error, time.monotonic() - began)) from error

    def _await_settled(self, seconds: float) -> None:
        """Wait until all partitions know the end of the transaction: the broker answers before it has told them.

        What was committed can be read from then on. Before, the library would begin the next transaction with a
        failure and a wait.
        """
        deadline, pause = time.monotonic() + seconds, PENDING_SECONDS[0]
        while self._pending(self._id):
            if time.monotonic() > deadline:
                raise errors.KafkaTimeoutError(f"not known to all partitions after {seconds:g} s")
            time.sleep(pause)
            pause = min(2 * pause, PENDING_SECONDS[1])

    def _commit_error(self, error: errors.KafkaError, seconds: float) -> BrokerError:
        result = self._error(error)
        # The library sends a commit again after a lost connection, not before RETRY_SECONDS. A refusal that came
        # sooner was the answer to the first one; a later one may come after a commit that did happen.
        if isinstance(result, FencedError) and seconds < RETRY_SECONDS:
            return result
        return OutcomeUnknownError(
            f"{self._connection.url}: transactional id {self._id!r}: no clear answer to a commit ({error}); "
            "make a new producer, then look at the positions"
        )

    def _error(self, error: errors.KafkaError) -> BrokerError:
        error = patches.first_error(self._client) or error
        return self._connection.translated(error, f"transactional id {self._id!r}")

    def _give_up(self, error: BrokerError) -> BrokerError:
        self._failed = error
        self._abort()
        return error

    def _abort(self) -> None:
        """Abort, so that no reader has to wait for the broker to do it. It will, where this fails."""
        try:
            patches.abort(self._client, ABORT_SECONDS)
            self._await_settled(ABORT_SECONDS)
        except errors.KafkaError as error:
            self._failed = self._failed or self._error(error)
            log.debug("%s: abort: %s", self._id, error)
