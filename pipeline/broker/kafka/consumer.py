"""The consumer on Kafka: a member of a group, whose membership changes inside ``poll`` and nowhere else."""

import time
from typing import Any

from kafka import KafkaConsumer as Client
from kafka import TopicPartition, errors
from kafka.structs import MemberState

from pipeline.broker import Member, Message, Partition, refusals
from pipeline.broker.kafka import patches
from pipeline.broker.kafka.connection import ANSWER_SECONDS, Connection
from pipeline.errors import TopicError

JOIN_SECONDS = 30.0
"""The others of the group have to come round to their next poll before a new member gets its share."""

STEP_SECONDS = 0.1
"""The library comes back with records or at its time-out: so soon is a change of the group noticed."""

LONGEST_PAUSE = 600.0
"""Seconds between two polls before a member counts as hung. Recovery may take minutes."""

READING: dict[str, Any] = {
    "isolation_level": "read_committed",
    "auto_offset_reset": "none",
    "enable_auto_commit": False,
    "allow_auto_create_topics": False,
    "fetch_max_wait_ms": 500,
    "max_partition_fetch_bytes": 1 << 19,
    "metrics_enabled": False,
}


def place(partition: Partition) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number)


def message(record: Any) -> Message:
    """What the library read, as ours."""
    headers = tuple([(name, value or b"") for name, value in record.headers])
    return Message(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value or b"", headers
    )


def gone(client: Any, error: errors.OffsetOutOfRangeError) -> TopicError:
    [(where, position), *_] = error.args[0].items()
    first = client.beginning_offsets([where])[where]
    end = client.end_offsets([where])[where]
    return refusals.gone(where.topic, where.partition, position, f"{first} and the end {end}")


class KafkaConsumer:
    """A member of a group, given some partitions of one topic. It joins at once, if the others let it."""

    def __init__(self, connection: Connection, *, group: str, topic: str, session_timeout: float) -> None:
        self._connection, self._topic, self._group = connection, topic, group
        self._client = connection.make(
            Client,
            group_id=group,
            partition_assignment_strategy=patches.ASSIGNORS,
            session_timeout_ms=int(1000 * session_timeout),
            heartbeat_interval_ms=int(100 * session_timeout),
            max_poll_interval_ms=int(1000 * LONGEST_PAUSE),
            **READING,
        )
        self.member, self.assignment = Member(group), frozenset[Partition]()
        try:
            self._client.subscribe([topic])
            with connection.translating(f"topic {topic!r}"):
                self._client.partitions_for_topic(topic)  # or a first generation would share out no partitions
            deadline = time.monotonic() + JOIN_SECONDS
            while self.member.generation < 0 and time.monotonic() < deadline:
                self.poll(1, deadline - time.monotonic())
        except BaseException:
            self.close()
            raise

    @property
    def rebalancing(self) -> bool:
        return patches.is_rebalancing(self._client)

    def poll(self, max_records: int, timeout: float) -> list[Message]:
        """As in the protocol. Without a broker it waits for one, as if there were no records; ``lag`` tells."""
        deadline = time.monotonic() + timeout
        while True:
            step = min(STEP_SECONDS, max(0.0, deadline - time.monotonic()))
            batches = self._fetch(1000 * step, max_records)
            if self._has_changed():
                for where, records in batches.items():
                    if where in self._client.assignment():
                        self._client.seek(where, records[0].offset)
                return []
            if batches or time.monotonic() >= deadline:
                return [message(record) for records in batches.values() for record in records]

    def seek(self, partition: Partition, offset: int) -> None:
        """The next poll reads that partition from ``offset`` on. Raises TopicError."""
        try:
            self._client.seek(place(partition), offset)
        except ValueError as error:
            raise TopicError(
                f"cannot seek to offset {offset} of {partition}: {error}; this consumer has "
                f"{sorted(p.number for p in self.assignment)} of {self._topic!r}"
            ) from error

    def lag(self) -> dict[Partition, int]:
        with self._connection.translating(f"lag of group {self._group!r}"):
            places = [place(partition) for partition in self.assignment]
            ends = self._client.end_offsets(places, 1000 * ANSWER_SECONDS) if places else {}
            positions = {where: self._position(where) for where in ends if where in self._client.assignment()}
        return {
            Partition(where.topic, where.partition): max(0, ends[where] - position)
            for where, position in positions.items()
            if position is not None
        }

    def close(self) -> None:
        self._client.close(autocommit=False, timeout_ms=3000)

    def _fetch(self, milliseconds: float, max_records: int) -> dict[TopicPartition, list[Any]]:
        with self._connection.translating(f"topic {self._topic!r}"):
            try:
                found: dict[TopicPartition, list[Any]] = self._client.poll(milliseconds, max_records)
            except errors.NoOffsetForPartitionError as error:
                self._client.seek_to_beginning(*error.args[0])
                return {}
            except errors.OffsetOutOfRangeError as error:
                raise gone(self._client, error) from error
        return found

    def _position(self, where: TopicPartition) -> int | None:
        while True:  # the error names any partition that has no position, not just the one asked for
            try:
                position: int | None = self._client.position(where, 1000 * ANSWER_SECONDS)
                return position
            except errors.NoOffsetForPartitionError as error:
                self._client.seek_to_beginning(*error.args[0])

    def _has_changed(self) -> bool:
        """Take over what the library knows of the membership."""
        metadata, member = self._client.group_metadata(), self.member
        if metadata.state is MemberState.STABLE:  # before, it is of the next generation, but has no share yet
            member = Member(self._group, metadata.generation_id, metadata.member_id)
        assignment = frozenset(Partition(*where) for where in self._client.assignment())
        changed = (member, assignment) != (self.member, self.assignment)
        self.member, self.assignment = member, assignment
        return changed
