"""All that is patched in kafka-python, and all that it keeps private and we need. Each of it was seen in 3.0.12.

Importing this module patches the library. Each patch has a test that fails as soon as the library does without it, in
``tests/kafka/test_patches.py`` or, where no broker is needed, in ``tests/pipeline/broker/test_patches.py``.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from kafka import ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition, errors
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.compat import KafkaNetClient
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

_Received = tuple[bytes, Exception | None]
_Fetched = tuple[dict[TopicPartition, list[Any]], bool]

# Connections


class ConnectionFailures(logging.Handler):
    """Keeps why the last connection failed. The library tells its log only, and raises a time-out (3.0.12).

    Attributes
    ----------
    last
        Why the last connection failed; empty if none did.
    refused
        The last failure that was a refused login. A later attempt may only see that the broker hangs up.
    """

    last = refused = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "connection to" in text and "failed: " in text:
            self.last = text.partition("failed: ")[2]
            if "Authentication" in self.last:
                self.refused = self.last


failures = ConnectionFailures(logging.WARNING)
_library = logging.getLogger("kafka")
_library.addHandler(failures)
# All else that it logs comes to us as exceptions as well; on a terminal it would bury our own lines.
_library.propagate = False


def make_client(kind: Callable[..., Any], **configs: object) -> Any:
    """Make a client of class ``kind``, and stop its thread if that fails. The library lets it run on (3.0.12)."""
    made: list[KafkaNetClient] = []

    def network(**given: object) -> KafkaNetClient:
        made.append(KafkaNetClient(**given))
        return made[0]

    try:
        return kind(kafka_client=network, **configs)
    except BaseException:
        for client in made:
            client.close()
        raise


def _bytes_first(receive: Callable[[Any], _Received]) -> Callable[[Any], _Received]:
    """Where bytes and the end of a connection come together, give the bytes; the next call finds the end again.

    The library drops such bytes (3.0.12). A broker that refuses a login says so and hangs up at once. Where the client
    is slow, nobody would ever know why.
    """

    @wraps(receive)
    def bytes_first(transport: Any) -> _Received:
        received, error = receive(transport)
        return received, None if received else error

    return bytes_first


for _transport in (KafkaTCPTransport, KafkaSSLTransport):
    _transport._sock_recv = _bytes_first(_transport._sock_recv)


# The consumer

ASSIGNORS: list[Any] = [CooperativeStickyAssignor]
"""Partitions stay where they are in a rebalance. No public module has this assignor (3.0.12)."""


def is_rebalancing(consumer: Any) -> bool:
    """Whether the group rebalances, or is about to. The public state turns when it is too late to commit (3.0.12)."""
    return bool(consumer._coordinator.need_rejoin())


def _look_again(fetch: Callable[..., _Fetched]) -> Callable[..., _Fetched]:
    """Fetch again where an answer came while the library looked for one.

    The library then takes itself for idle, with the records at hand, and sleeps for 0.1 s: at full speed at every tenth
    poll (3.0.12). Where it waits for the answer of another broker just then, it still does, until its time-out.
    """

    @wraps(fetch)
    def look_again(fetcher: Any, *arguments: Any, **named: Any) -> _Fetched:
        records, idle = fetch(fetcher, *arguments, **named)
        return fetch(fetcher, *arguments, **named) if idle and fetcher._completed_fetches else (records, idle)

    return look_again


Fetcher.fetch_records = _look_again(Fetcher.fetch_records)


# The producer


def let_newer_producers_win(producer: Any) -> None:
    """Let a producer fail when a newer one has its transactional id.

    Where a batch is refused for that, the library asks to have the id back ("bumps the epoch"). While the newer
    producer is in a transaction, the broker gives it back, and fences the newer one (3.0.12 with Kafka 4.2.0).
    """
    producer._transaction_manager._supports_epoch_bump = lambda: False


@contextmanager
def waking_once(producer: Any) -> Iterator[None]:
    """Wake the library's thread once, at the end of the block, in which records are sent.

    Where more than one batch waits, the library wakes it at every record (3.0.12): a system call and a change of
    threads, which take longer than the record itself.
    """
    sender = producer._sender
    sender.wakeup = lambda: None
    try:
        yield
    finally:
        del sender.wakeup
        sender.wakeup()


def send_offsets(
    producer: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: ConsumerGroupMetadata, seconds: float
) -> None:
    """Make positions part of the transaction. Raises KafkaTimeoutError; the public method waits for ever (3.0.12)."""
    _await(producer, producer._transaction_manager.send_offsets_to_transaction(offsets, member), seconds)


def commit(producer: Any, seconds: float) -> None:
    """Commit the transaction. Raises KafkaTimeoutError; the public method waits for ever (3.0.12)."""
    _await(producer, producer._transaction_manager.begin_commit(), seconds)


def abort(producer: Any, seconds: float) -> None:
    """Abort the transaction. Raises KafkaTimeoutError; the public method waits for ever (3.0.12)."""
    _await(producer, producer._transaction_manager.begin_abort(), seconds)


def _await(producer: Any, result: Any, seconds: float) -> None:
    producer._sender.wakeup()
    if not result.wait(timeout_ms=1000 * seconds):
        raise errors.KafkaTimeoutError(f"no answer for {seconds:g} s")


def first_error(producer: Any) -> errors.KafkaError | None:
    """What made the producer fail. From then on the library raises errors that are of no kind (3.0.12)."""
    error: errors.KafkaError | None = producer._transaction_manager.last_error
    return error


def close_producer(producer: Any, seconds: float) -> None:
    """Close a producer. Where not all can be sent, the library raises a time-out and lets its thread run (3.0.12)."""
    try:
        producer.close(timeout=seconds)
    except errors.KafkaTimeoutError:
        producer._sender.force_close()
        producer.close(timeout=seconds)
