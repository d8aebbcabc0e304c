"""What a broker is to the rest of the project: topics of ordered partitions, transactions, consumer groups.

The words and the guarantees are Kafka's: a partition is an append-only log whose records have increasing offsets
(with gaps where the broker keeps records of its own); a transaction writes records to any topics, and offsets of a
consumer group, all or nothing; readers see committed records only. ``connect`` picks the implementation by URL.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from pipeline.errors import SettingsError
from pipeline.settings import Settings, load

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of one topic."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Topic:
    """What a topic should be.

    ``partitions`` None: as many as it has, 1 when it is made. ``retention_records`` and ``retention_bytes`` are the
    least that a partition keeps of its newest records (each broker knows one of the two); None: as it is, all of them
    when it is made.
    """

    name: str
    partitions: int | None = None
    retention_records: int | None = None
    retention_bytes: int | None = None


class Record(NamedTuple):  # and no dataclass, as Message: made for every image, and four times as quick to make
    """A record to be written. Without a partition, the key decides; without a key either, partition 0."""

    topic: str
    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None


class Message(NamedTuple):
    """A record as it was read. ``timestamp`` is in milliseconds since the epoch, set by the broker."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Position:
    """How far a group has come in a partition: the next offset to read, and a note kept beside it."""

    offset: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Extent:
    """The offsets that a partition holds: from ``first`` up to, not including, ``end``. Not all need have a record."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Member:
    """On whose behalf offsets are committed. ``generation`` and ``name`` are the broker's own, for fencing."""

    group: str
    generation: int = -1
    name: str = ""


class Transaction(Protocol):
    """An open transaction. Nothing of it can be read by others before it is committed."""

    def produce(self, records: Iterable[Record]) -> None:
        """Append records. Raises TopicError, RecordTooLargeError."""

    def commit_offsets(self, member: Member, positions: Mapping[Partition, Position]) -> None:
        """Move the group's positions, with the rest of the transaction or not at all."""


class Producer(Protocol):
    """Writes, in transactions. A newer producer with the same transactional id fences this one.

    After an error of the broker make a new one: it settles what became of the last transaction.
    """

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Commit at the end of the block, abort if the block raises.

        Raises FencedError, BrokerBusyError and StorageError: nothing was written; OutcomeUnknownError.
        """

    def close(self) -> None: ...


class Consumer(Protocol):
    """A member of a consumer group, reading one topic.

    ``member`` and ``assignment`` change inside ``poll`` and nowhere else, and a poll in which they change returns no
    messages: all that was handed out before belongs to the member of before. Of a partition that is lost, what was
    not committed will be given to another member; commits in the name of a member gone by raise FencedError.
    """

    @property
    def member(self) -> Member: ...

    @property
    def assignment(self) -> frozenset[Partition]: ...

    @property
    def rebalancing(self) -> bool:
        """Whether the next poll may change the member: commit or abort before it."""

    def poll(self, max_records: int, timeout: float) -> list[Message]:
        """Up to ``max_records`` next messages; waits up to ``timeout`` seconds for the first one.

        Starts at the group's committed positions (or where ``seek`` says), at the first record kept where
        there is none. A position whose records are gone raises TopicError with the offsets.
        """

    def seek(self, partition: Partition, offset: int) -> None: ...

    def lag(self) -> dict[Partition, int]:
        """Offsets of each assigned partition that this consumer has not come past yet."""

    def close(self) -> None: ...


class Tail(Protocol):
    """Reads one partition on and on, outside any group. Safe to use from one thread at a time."""

    @property
    def position(self) -> int:
        """All committed messages before it were given, and nothing before it can be committed any more."""

    def poll(self, timeout: float) -> list[Message]:
        """Committed messages from the position on; waits up to ``timeout`` seconds for the first one.

        Raises TopicError if records at the position were removed.
        """

    def close(self) -> None: ...


class Broker(Protocol):
    """A connection to a broker."""

    @property
    def shares_groups(self) -> bool:
        """Whether a group may have several consumers, each with some of the partitions."""

    def ensure_topics(self, topics: Iterable[Topic]) -> None:
        """Create what does not exist. Raises TopicError if one exists with another number of partitions."""

    def topic_id(self, topic: str) -> str:
        """A name that a topic made anew under the old name does not share."""

    def extents(self, topic: str) -> dict[Partition, Extent]:
        """What each partition holds. Raises TopicError if there is no such topic."""

    def end(self, partition: Partition) -> int:
        """The offset after the last record, with records of open transactions counted. Raises TopicError."""

    def committed(self, group: str, topic: str, numbers: Collection[int] | None = None) -> dict[Partition, Position]:
        """The group's committed positions, of these partitions or of all; those without one are left out."""

    def members(self, group: str) -> int:
        """How many consumers the group has; one that was killed may count until its session is over."""

    def read(self, partition: Partition, start: int, stop: int) -> Iterator[Message]:
        """Committed messages with start <= offset < stop that are there now, in order, outside any group.

        Raises TopicError, also if records are removed while this reads: none is missing from what it gives.
        """

    def tail(self, partition: Partition, start: int) -> Tail:
        """Read a partition from ``start`` on."""

    def delete_before(self, partition: Partition, offset: int) -> None:
        """Remove records before ``offset``; a broker may keep some of them. Raises TopicError."""

    def producer(self, transactional_id: str) -> Producer: ...

    def consumer(self, group: str, topic: str) -> Consumer: ...

    def close(self) -> None: ...


def connect(url: str, settings: Settings | None = None) -> Broker:
    """Open ``sqlite:///FILE`` (three slashes and a relative path, four an absolute one), or ``kafka://HOST:PORT,...``.

    ``settings`` say how to log in and how large records are; None: what the environment says.

    Raises SettingsError for any other URL, StorageError if the file cannot be used, BrokerBusyError if no broker
    answers, BrokerError if it refuses the login.
    """
    match urlsplit(url).scheme:
        case "sqlite":
            from pipeline.broker.sqlite.broker import SqliteBroker

            return SqliteBroker.from_url(url)
        case "kafka":
            from pipeline.broker.kafka.broker import KafkaBroker

            return KafkaBroker(url, settings or load({}))
    raise SettingsError(f"broker {url!r}: no such kind of broker; write sqlite:///FILE or kafka://HOST:PORT")
