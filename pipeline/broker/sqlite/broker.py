"""The embedded broker: a log in one SQLite file, for several processes on one machine.

Everything in a transaction survives the end of a process, kill -9 included. A power failure or a crash of
the system may undo the last transactions (SQLite's WAL with synchronous=NORMAL), newest first and each of
them whole, so that the file stays consistent.

A group has one consumer at a time. Next to FILE lie FILE-wal, FILE-shm (SQLite's own) and lock files.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar
from urllib.parse import urlsplit

from pipeline.broker import Extent, Member, Message, Partition, Position, Record, Topic
from pipeline.broker.refusals import check_count
from pipeline.broker.sqlite.consumer import SqliteConsumer, SqliteTail, is_taken
from pipeline.broker.sqlite.database import BUSY_TIMEOUT, Database
from pipeline.broker.sqlite.log import MAX_PARTITIONS, append, delete, extent, fetch, find_topic, pack
from pipeline.errors import FencedError, SettingsError, TopicError

_READ_RECORDS = 64  # at a time: few enough to hold in memory when they are the largest allowed


class SqliteTransaction:
    """Collects in memory what ``commit`` writes, so that the file is locked only while it does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topic = cache(partial(find_topic, database))
        self._records: defaultdict[int, list[bytes]] = defaultdict(list)
        self._positions: list[tuple[Member, int, int, Position]] = []

    def produce(self, records: Iterable[Record]) -> None:
        """Append records, all of them or, if one is refused, none. Raises TopicError, RecordTooLargeError."""
        packed = [(self._topic(record.topic).low_for(record), pack(record)) for record in records]
        for low, record in packed:
            self._records[low].append(record)

    def commit_offsets(self, member: Member, positions: Mapping[Partition, Position]) -> None:
        """Move the group's positions with the transaction. Raises TopicError.

        A member whose group has had another consumer since makes the transaction raise FencedError.
        """
        for partition, position in positions.items():
            topic = self._topic(partition.topic)
            topic.low(partition.number)
            self._positions.append((member, topic.id, partition.number, position))

    def commit(self, transactional_id: str, epoch: int) -> None:
        """Write everything. Raises FencedError if the producer or a member is no longer the newest."""
        with self._database.write() as connection:
            self._fence(connection, "producers", "epoch", transactional_id, epoch)
            for member in {member for member, *_ in self._positions if member.generation >= 0}:
                self._fence(connection, "groups", "generation", member.group, member.generation)
            now = time.time_ns() // 1_000_000
            for low, records in self._records.items():
                append(connection, low, records, now)
            connection.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?)",
                ((m.group, topic, number, p.offset, p.note) for m, topic, number, p in self._positions),
            )

    def _fence(self, connection: Connection, table: str, column: str, name: str, mine: int) -> None:
        if connection.execute(f"SELECT {column} FROM {table} WHERE id = ?", (name,)).fetchone() != (mine,):
            raise FencedError(
                f"{self._database.path}: a newer process works as {name!r} ({table}); nothing of this "
                "transaction was written; stop this process or the other one"
            )


class SqliteProducer:
    """Writes, in transactions. Owns ``database``, its connection."""

    def __init__(self, database: Database, transactional_id: str) -> None:
        self._database, self._id = database, transactional_id
        self._epoch = database.next_number("producers", "epoch", transactional_id)

    @contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """As in the protocol; the file is locked only at the end of the block."""
        transaction = SqliteTransaction(self._database)
        yield transaction
        transaction.commit(self._id, self._epoch)

    def close(self) -> None:
        self._database.close()


Client = TypeVar("Client", SqliteProducer, SqliteConsumer)


class SqliteBroker:
    """A log in the SQLite file ``path``, which is made if it does not exist.

    Parameters
    ----------
    path
        The file; its directories are made too.
    busy_timeout
        Seconds to wait for other processes to finish their commits before BrokerBusyError.

    Raises BrokerBusyError, StorageError; so does everything below.
    """

    shares_groups = False

    def __init__(self, path: Path, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self._path = path.resolve()  # a group's lock lies beside the file, by whatever name that is reached
        self._busy_timeout = busy_timeout
        self._close = ExitStack()
        self._database = self._close.enter_context(closing(Database(self._path, busy_timeout)))

    @classmethod
    def from_url(cls, url: str) -> "SqliteBroker":
        """Open ``sqlite:///relative/file`` or ``sqlite:////absolute/file``. Raises SettingsError."""
        parts = urlsplit(url)
        path = parts.path[1:]
        if url != f"sqlite:///{path}" or not path or path.endswith("/"):
            raise SettingsError(
                f"broker {url!r}: write sqlite:///FILE, four slashes for an absolute path, no host, ? or #"
            )
        return cls(Path(path))

    def ensure_topics(self, topics: Iterable[Topic]) -> None:
        """Create what does not exist; retention becomes what it says here, if it says so. Raises TopicError."""
        with self._database.write() as connection:
            for topic in topics:
                _check(topic)
                connection.execute(
                    "INSERT INTO topics (name, uid, partitions, retention) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET retention = coalesce(excluded.retention, retention)",
                    (topic.name, str(uuid.uuid4()), topic.partitions or 1, topic.retention_records),
                )
                [found] = connection.execute("SELECT partitions FROM topics WHERE name = ?", (topic.name,)).fetchone()
                check_count(topic, found, self._path)

    def topic_id(self, topic: str) -> str:
        """A name that a topic made anew under the old name does not share. Raises TopicError."""
        return find_topic(self._database, topic).uid

    def extents(self, topic: str) -> dict[Partition, Extent]:
        """What each partition holds. Raises TopicError."""
        stored = find_topic(self._database, topic)
        return {part: extent(self._database, stored, part.number) for part in stored.parts}

    def end(self, partition: Partition) -> int:
        """The offset after the last record: open transactions have not written anything yet. Raises TopicError."""
        return extent(self._database, find_topic(self._database, partition.topic), partition.number).end

    def committed(self, group: str, topic: str, numbers: Collection[int] | None = None) -> dict[Partition, Position]:
        """The group's committed positions. Raises TopicError."""
        rows = self._database.query(
            "SELECT partition, offset, note FROM positions WHERE group_id = ? AND topic = ?",
            (group, find_topic(self._database, topic).id),
        )
        return {
            Partition(topic, number): Position(offset, note)
            for number, offset, note in rows
            if numbers is None or number in numbers
        }

    def members(self, group: str) -> int:
        """Whether the group has its one consumer. One that was killed does not count."""
        return int(is_taken(self._path, group))

    def read(self, partition: Partition, start: int, stop: int) -> Iterator[Message]:
        """Messages with start <= offset < stop that are there now, in order. Raises TopicError.

        Records that are removed while this reads raise TopicError too, so that there is never a gap.
        """
        topic = find_topic(self._database, partition.topic)
        held = extent(self._database, topic, partition.number)
        position, stop = max(start, held.first), min(stop, held.end)
        while position < stop:
            limit = min(_READ_RECORDS, stop - position)
            messages = fetch(self._database, topic, partition.number, position, limit)
            if not messages:
                raise self._database.damaged(f"no offset {position} in {partition}")
            yield from messages
            position += len(messages)

    def tail(self, partition: Partition, start: int) -> SqliteTail:
        """Read a partition from ``start`` on. Raises TopicError."""
        return SqliteTail(self._database, partition, start)

    def delete_before(self, partition: Partition, offset: int) -> None:
        """Remove records before ``offset``, but for those that were written together with later ones."""
        topic = find_topic(self._database, partition.topic)
        with self._database.write() as connection:
            delete(connection, topic.low(partition.number), offset)

    def producer(self, transactional_id: str) -> SqliteProducer:
        """Take over the transactional id: older producers of that id are fenced."""
        return self._open(lambda database: SqliteProducer(database, transactional_id))

    def consumer(self, group: str, topic: str) -> SqliteConsumer:
        """The one consumer of a group. Raises TopicError, GroupBusyError."""
        return self._open(lambda database: SqliteConsumer(database, group, topic))

    def close(self) -> None:
        """Close this connection, and the producers and consumers that came from it."""
        self._close.close()

    def _open(self, make: Callable[[Database], Client]) -> Client:
        database = Database(self._path, self._busy_timeout)
        try:
            return self._close.enter_context(closing(make(database)))
        except BaseException:
            database.close()
            raise


def _check(topic: Topic) -> None:
    if not 1 <= (topic.partitions or 1) <= MAX_PARTITIONS:
        raise TopicError(f"topic {topic.name!r}: {topic.partitions} partitions; give it 1 to {MAX_PARTITIONS:,}")
    if topic.retention_records is not None and topic.retention_records < 1:
        raise TopicError(
            f"topic {topic.name!r}: a retention of {topic.retention_records} records; keep 1 or more, "
            "or all of them (None)"
        )
    if topic.retention_bytes is not None:
        raise TopicError(f"topic {topic.name!r}: SQLite keeps by number of records; set retention, not retention_bytes")
