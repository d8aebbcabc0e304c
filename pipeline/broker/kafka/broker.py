"""The broker on Apache Kafka 3.0 or newer, through kafka-python: transactions, groups of many consumers.

Control records take offsets too: a range of offsets may hold fewer records than it is long, or none at all.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, TypeVar

from kafka import IsolationLevel, KafkaAdminClient, errors
from kafka import KafkaConsumer as Client
from kafka.admin import OffsetSpec, TransactionState

from pipeline.broker import Extent, Message, Partition, Position, Topic
from pipeline.broker.kafka.connection import ANSWER_SECONDS, Connection
from pipeline.broker.kafka.consumer import READING, KafkaConsumer, place
from pipeline.broker.kafka.producer import KafkaProducer, largest_batch
from pipeline.broker.kafka.tail import KafkaTail
from pipeline.broker.refusals import check_count, check_number, no_topic
from pipeline.errors import BrokerBusyError, TopicError
from pipeline.settings import Settings

PATIENCE = 30.0
"""Seconds to wait for a broker at the start. Later on whoever is in trouble has a patience of its own."""

STABLE_SECONDS = 12.0
"""How long a position may stay open after its transaction has timed out: brokers look for that now and then."""

POLL_SECONDS = 0.02
"""How soon a reader notices that nothing but control records is left."""

_EXISTS = errors.TopicAlreadyExistsError.errno
_LARGEST_SEGMENT = 1 << 30

Kept = TypeVar("Kept", bound=Any)


class KafkaBroker:
    """A connection to the brokers at ``kafka://HOST:PORT[,HOST:PORT...]``. For any thread, one at a time.

    Parameters
    ----------
    patience
        Seconds to wait for a broker that does not answer.

    Raises SettingsError; BrokerBusyError if no broker answers, as does everything below; BrokerError if it refuses.
    """

    shares_groups = True

    def __init__(self, url: str, settings: Settings, patience: float = PATIENCE) -> None:
        self._connection = Connection(url, settings)
        self._settings = settings
        self._counts: dict[str, int] = {}
        self._groups: dict[str, Any] = {}
        self._close = ExitStack()
        self._admin = self._kept(self._connection.make(KafkaAdminClient, patience))

    def ensure_topics(self, topics: Iterable[Topic]) -> None:
        """Create what does not exist; what exists keeps its configuration. Raises TopicError."""
        wanted = {topic.name: topic for topic in topics}
        request = {name: self._specification(topic) for name, topic in wanted.items()}
        created = self._connection.ask("topics", partial(self._admin.create_topics, request, raise_errors=False))
        for result in created["topics"]:
            if result["error_code"] not in (0, _EXISTS):
                raise TopicError(f"{self._connection.url}: topic {result['name']!r}: {result['error_message']}")
        self._connection.ask("topics", partial(self._admin.wait_for_topics, list(wanted)))
        for name, topic in wanted.items():
            found = len(self._describe(name)["partitions"])
            check_count(topic, found, self._connection.url)

    def topic_id(self, topic: str) -> str:
        """A name that a topic made anew under the old name does not share. Raises TopicError."""
        return str(self._describe(topic)["topic_id"])

    def extents(self, topic: str) -> dict[Partition, Extent]:
        """What each partition holds, up to the first record of an open transaction. Raises TopicError."""
        parts = [Partition(topic, number) for number in range(self._partitions(topic))]
        return {part: Extent(*span) for part, span in zip(parts, self._offsets(parts), strict=True)}

    def end(self, partition: Partition) -> int:
        """The offset after the last record, with records of open transactions counted. Raises TopicError."""
        self._partitions(partition.topic, partition.number)
        [end] = self._ask_offsets([partition], OffsetSpec.LATEST, IsolationLevel.READ_UNCOMMITTED)
        return end

    def committed(self, group: str, topic: str, numbers: Collection[int] | None = None) -> dict[Partition, Position]:
        """The group's committed positions. Waits for open transactions that would move them. Raises TopicError."""
        every = range(self._partitions(topic))
        parts = [Partition(topic, number) for number in (every if numbers is None else sorted(numbers))]
        client, result = self._group(group), {}
        for part in parts:
            found = self._connection.ask(
                f"positions of group {group!r}",
                partial(
                    client.committed,
                    place(part),
                    metadata=True,
                    timeout_ms=int(1000 * (STABLE_SECONDS + self._settings.session_timeout)),
                ),
            )
            if found is not None:
                result[part] = Position(found.offset, found.metadata or "")
        return result

    def members(self, group: str) -> int:
        """How many consumers the group has; one that was killed counts until its session is over."""
        found = self._connection.ask(f"group {group!r}", partial(self._admin.describe_groups, [group]))
        return len(found[group]["members"])

    def read(self, partition: Partition, start: int, stop: int) -> Iterator[Message]:
        """Committed messages with start <= offset < stop that are there now, in order. Raises TopicError.

        Records that are removed while this reads raise TopicError too, so that none is missing.
        """
        self._partitions(partition.topic, partition.number)
        [(first, end)] = self._offsets([partition])
        position, stop, heard = max(start, first), min(stop, end), time.monotonic()
        if position >= stop:
            return
        with closing(KafkaTail(self._connection, partition, position)) as tail:
            while position < stop:
                messages = tail.poll(POLL_SECONDS)
                yield from (message for message in messages if message.offset < stop)
                # Where only control records are left, the position moves without a message.
                if tail.position > position:
                    position, heard = tail.position, time.monotonic()
                elif time.monotonic() - heard > ANSWER_SECONDS:
                    raise BrokerBusyError(
                        f"{self._connection.url}: {partition}: no answer for {ANSWER_SECONDS:g} s at offset "
                        f"{position}; try again, or start the broker"
                    )

    def tail(self, partition: Partition, start: int) -> KafkaTail:
        """Read a partition from ``start`` on. Raises TopicError."""
        self._partitions(partition.topic, partition.number)
        return self._kept(KafkaTail(self._connection, partition, start))

    def delete_before(self, partition: Partition, offset: int) -> None:
        """Remove records before ``offset``. Raises TopicError."""
        self._partitions(partition.topic, partition.number)
        remove = partial(self._admin.delete_records, {place(partition): offset})
        self._connection.ask(f"old records of {partition}", remove)

    def producer(self, transactional_id: str) -> KafkaProducer:
        """Take over the transactional id: older producers of that id are fenced, what they left open is aborted."""
        producer = KafkaProducer(
            self._connection,
            transactional_id=transactional_id,
            partitions=self._partitions,
            pending=self._is_pending,
            record_bytes=self._settings.record_bytes,
            transaction_seconds=self._settings.session_timeout,
        )
        return self._kept(producer)

    def consumer(self, group: str, topic: str) -> KafkaConsumer:
        """A new member of a group. Raises TopicError."""
        self._partitions(topic)
        seconds = self._settings.session_timeout
        return self._kept(KafkaConsumer(self._connection, group=group, topic=topic, session_timeout=seconds))

    def close(self) -> None:
        """Close this connection, and the producers and consumers that came from it."""
        self._close.close()

    def _specification(self, topic: Topic) -> dict[str, object]:
        if topic.retention_records is not None:
            raise TopicError(
                f"topic {topic.name!r}: Kafka keeps by size, not by number of records; set retention_bytes, "
                "not retention"
            )
        largest = largest_batch(self._settings.record_bytes)
        configs = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": str(largest),
            "message.timestamp.type": "LogAppendTime",
        }
        if topic.retention_bytes is not None:  # whole segments are removed, so there have to be several
            configs["retention.bytes"] = str(topic.retention_bytes)
            configs["segment.bytes"] = str(max(largest, min(_LARGEST_SEGMENT, topic.retention_bytes // 4)))
        return {
            "num_partitions": topic.partitions or 1,
            "replication_factor": self._settings.replication,
            "configs": configs,
        }

    def _describe(self, topic: str) -> dict[str, Any]:
        [found] = self._connection.ask(f"topic {topic!r}", lambda: self._admin.describe_topics([topic]))
        if found["error_code"] in (errors.UnknownTopicOrPartitionError.errno, errors.InvalidTopicError.errno):
            raise no_topic(topic, self._connection.url)
        with self._connection.translating(f"topic {topic!r}"):
            if found["error_code"]:
                raise errors.for_code(found["error_code"])(f"topic {topic!r}")
        self._counts[topic] = len(found["partitions"])
        result: dict[str, Any] = found
        return result

    def _partitions(self, topic: str, number: int = 0) -> int:
        """How many there are, asked for once. Raises TopicError if there is no such topic, or none of that number."""
        if topic not in self._counts:
            self._describe(topic)
        check_number(topic, number, self._counts[topic])
        return self._counts[topic]

    def _is_pending(self, transactional_id: str) -> bool:
        try:
            found = self._admin.describe_transactions([transactional_id])[transactional_id]
        except errors.RetriableError:
            return True
        return bool(found.state in (TransactionState.PREPARE_COMMIT, TransactionState.PREPARE_ABORT))

    def _offsets(self, partitions: list[Partition]) -> list[tuple[int, int]]:
        """First offset and last stable offset of each."""
        stable = IsolationLevel.READ_COMMITTED
        ends = (self._ask_offsets(partitions, spec, stable) for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST))
        return list(zip(*ends, strict=True))

    def _ask_offsets(self, partitions: list[Partition], spec: OffsetSpec, isolation: IsolationLevel) -> list[int]:
        places = [place(partition) for partition in partitions]
        ask = partial(self._admin.list_partition_offsets, dict.fromkeys(places, spec), isolation)
        found = self._connection.ask(f"offsets of {partitions[0].topic!r}", ask)
        return [found[where].offset for where in places]

    def _group(self, group: str) -> Any:
        """A client that asks for a group's positions, and never joins it."""
        if group not in self._groups:
            self._groups[group] = self._kept(self._connection.make(Client, group_id=group, **READING))
        return self._groups[group]

    def _kept(self, client: Kept) -> Kept:
        """Until this connection is closed."""
        return self._close.enter_context(closing(client))
