"""Topics and records of the embedded broker as rows: where they go, how they are packed and checked.

A row holds records that were written together, for SQLite works, and Python lets other threads in, row by row.
Its id is ``topic << 50 | partition << 40 | offset of the first one``, so that a partition is one range of ids.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any
from zlib import crc32

import msgpack

from pipeline.broker import Extent, Message, Partition, Record
from pipeline.broker.refusals import check_number, check_size, gone, no_topic
from pipeline.broker.sqlite.database import Database

MAX_PARTITIONS = 1 << 10
MAX_RECORD = 64 << 20  # bytes of value, key and headers as they are stored
ROW_RECORDS = 256
ROW_BYTES = 1 << 20  # a row that is as large takes no more records
RETENTION_SLACK = 256  # records that a partition may hold above its retention, and a row: it is not trimmed each time
_MAX_OFFSET = 1 << 40

Row = tuple[int, int, bytes, int]  # count, timestamp, body, checksum

_EDGES = """
    (SELECT min(id) FROM records WHERE id >= :low AND id < :high),
    (SELECT id + count FROM records WHERE id >= :low AND id < :high ORDER BY id DESC LIMIT 1)
"""

_ROW_AT = """
    SELECT id, count, timestamp, body, checksum, EXISTS (SELECT 1 FROM records WHERE id > r.id AND id < :high)
    FROM records r
    WHERE id >= coalesce((SELECT max(id) FROM records WHERE id >= :low AND id <= :at), :low) AND id < :high
    ORDER BY id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class StoredTopic:
    """A topic as the file knows it."""

    name: str
    id: int
    uid: str
    partitions: int

    @property
    def parts(self) -> list[Partition]:
        """All partitions."""
        return [Partition(self.name, number) for number in range(self.partitions)]

    def low(self, number: int) -> int:
        """The row id of offset 0 of a partition. Raises TopicError if there is no such partition."""
        check_number(self.name, number, self.partitions)
        return self.id << 50 | number << 40

    def low_for(self, record: Record) -> int:
        """The row id of offset 0 of the partition that a record belongs to. Raises TopicError."""
        if record.partition is not None:
            return self.low(record.partition)
        if record.key is None or self.partitions == 1:
            return self.low(0)
        return self.low(crc32(record.key) % self.partitions)


def find_topic(database: Database, name: str) -> StoredTopic:
    """The topic of that name. Raises TopicError if there is none."""
    for found in database.query("SELECT name, id, uid, partitions FROM topics WHERE name = ?", (name,)):
        return StoredTopic(*found)
    raise no_topic(name, database.path)


def pack(record: Record) -> bytes:
    """A record as MessagePack: key, value and headers. Raises RecordTooLargeError."""
    packed: bytes = msgpack.packb((record.key, record.value, record.headers))
    check_size(record.topic, len(packed), MAX_RECORD, "split it")
    return packed


def _rows(records: Sequence[bytes], timestamp: int) -> Iterator[Row]:
    """Packed records as rows of many, each of them a MessagePack array.

    The checksum is there because SQLite notices damage to the structure of its pages, not to what they hold.
    """
    some: list[bytes] = []
    size = 0
    for place, record in enumerate(records, 1):
        some.append(record)
        size += len(record)
        if place == len(records) or len(some) == ROW_RECORDS or size >= ROW_BYTES:
            body = b"".join([msgpack.Packer().pack_array_header(len(some)), *some])
            yield len(some), timestamp, body, crc32(body) + timestamp
            some, size = [], 0


def append(connection: sqlite3.Connection, low: int, records: Sequence[bytes], timestamp: int) -> None:
    """Write packed records at the end of the partition whose offset 0 is row id ``low``, and trim its beginning."""
    retention, first, end = connection.execute(
        f"SELECT retention, {_EDGES} FROM topics WHERE id = :topic",
        {"low": low, "high": low + _MAX_OFFSET, "topic": low >> 50},
    ).fetchone()
    end = low if end is None else end
    for row in _rows(records, timestamp):
        connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", (end, *row))
        end += row[0]
    if retention is not None and end - (low if first is None else first) > retention + RETENTION_SLACK:
        connection.execute("DELETE FROM records WHERE id >= ? AND id + count <= ?", (low, end - retention))


def delete(connection: sqlite3.Connection, low: int, offset: int) -> None:
    """Remove rows that hold nothing but records before ``offset``. The newest stays: it says where the end is."""
    connection.execute(
        "DELETE FROM records WHERE id >= :low AND id + count <= :stop"
        " AND id < (SELECT max(id) FROM records WHERE id >= :low AND id < :high)",
        {"low": low, "stop": low + offset, "high": low + _MAX_OFFSET},
    )


def extent(database: Database, topic: StoredTopic, number: int) -> Extent:
    """The offsets that a partition holds. Raises TopicError if there is no such partition."""
    low = topic.low(number)
    [(first, end)] = database.query(f"SELECT {_EDGES}", {"low": low, "high": low + _MAX_OFFSET})
    return Extent(0, 0) if end is None else Extent(first - low, end - low)


def fetch(database: Database, topic: StoredTopic, number: int, start: int, limit: int) -> list[Message]:
    """Up to ``limit`` messages from offset ``start`` on, [] if that is the end.

    Raises TopicError if the record at ``start`` was removed, StorageError if one is damaged.
    """
    low, messages = topic.low(number), list[Message]()
    while len(messages) < limit:
        position = start + len(messages)
        found = database.query(_ROW_AT, {"low": low, "at": low + position, "high": low + _MAX_OFFSET})
        if not found:
            break
        [(row_id, held, timestamp, body, checksum, has_next)] = found
        if row_id > low + position:
            if messages:  # the next call raises it, and what was found is not lost
                break
            raise gone(topic.name, number, position, str(row_id - low))
        skip = low + position - row_id
        try:
            if crc32(body) + timestamp != checksum:
                raise ValueError("checksum")
            records = msgpack.unpackb(body, use_list=False)
            if len(records) != held or (skip >= held and has_next):
                raise ValueError("count")
            more = _messages(topic.name, number, position, timestamp, records[skip : skip + limit - len(messages)])
        except (TypeError, ValueError) as error:
            raise database.damaged(f"topic {topic.name!r}, partition {number}, offset {position}") from error
        if not more:
            break
        messages += more
    return messages


def _messages(topic: str, number: int, start: int, timestamp: int, records: Sequence[Any]) -> list[Message]:
    """Unpacked records as messages, from offset ``start`` on. Raises ValueError or TypeError if they are none."""
    if not records:
        return []
    keys, values, headers = zip(*records, strict=True)
    columns = repeat(topic), repeat(number), count(start), repeat(timestamp), keys, values, headers
    return [*map(Message._make, zip(*columns, strict=False))]
