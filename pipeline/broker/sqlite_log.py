"""Topics and records of the embedded broker as rows: where they go, how they are packed and checked.

A record's row id is ``topic << 50 | partition << 40 | offset``, so that a partition is one range of ids.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from zlib import crc32

import orjson

from pipeline.broker.protocol import Extent, Message, Partition, Record
from pipeline.broker.sqlite_database import Database
from pipeline.errors import RecordTooLargeError, TopicError

MAX_PARTITIONS = 1 << 10
MAX_RECORD = 64 << 20  # bytes of value, key and headers as they are stored
RETENTION_SLACK = 256  # records that a partition may hold above its retention: it is not trimmed each time
_MAX_OFFSET = 1 << 40

Row = tuple[int, bytes, int]  # timestamp, body, checksum

_EDGES = """
    (SELECT min(id) FROM records WHERE id >= :low AND id < :high),
    (SELECT max(id) FROM records WHERE id >= :low AND id < :high)
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
        if not 0 <= number < self.partitions:
            raise TopicError(
                f"topic {self.name!r} has no partition {number}, only 0 to {self.partitions - 1}; use one of those"
            )
        return self.id << 50 | number << 40

    def low_for(self, record: Record) -> int:
        """The row id of offset 0 of the partition that a record belongs to. Raises TopicError."""
        if record.partition is not None:
            return self.low(record.partition)
        return self.low(0 if record.key is None else crc32(record.key) % self.partitions)


def find_topic(database: Database, name: str) -> StoredTopic:
    """The topic of that name. Raises TopicError if there is none."""
    for found in database.query("SELECT name, id, uid, partitions FROM topics WHERE name = ?", (name,)):
        return StoredTopic(*found)
    raise TopicError(
        f"there is no topic {name!r} in {database.path}; check name and prefix, or start its producer first"
    )


def pack(record: Record, timestamp: int) -> Row:
    """A record as a row, without its id. Raises RecordTooLargeError.

    The body is a line of JSON (the key's length or null, then name and length of each header), and after it
    key, header values and value, end to end. The checksum is there because SQLite notices damage to the
    structure of its pages, not to what they hold.
    """
    lengths = [(name, len(value)) for name, value in record.headers]
    shape = orjson.dumps([None if record.key is None else len(record.key), lengths])
    values = [value for _, value in record.headers]
    body = b"".join([shape, b"\n", record.key or b"", *values, record.value])
    if len(body) > MAX_RECORD:
        raise RecordTooLargeError(
            f"topic {record.topic!r}: a record of {len(body):,} bytes, but {MAX_RECORD:,} are the most; split it"
        )
    return timestamp, body, crc32(body) + timestamp


def unpack(topic: str, partition: int, offset: int, timestamp: int, body: bytes, checksum: int) -> Message:
    """The inverse of pack. Raises ValueError or TypeError if the row is damaged."""
    if crc32(body) + timestamp != checksum:
        raise ValueError("checksum")
    names, has_key, cut = _cuts(body[: body.index(b"\n")])
    value, key, *values = cut(body)
    headers = tuple(zip(names, values, strict=True))
    return Message(topic, partition, offset, timestamp, key if has_key else None, value, headers)


@lru_cache(maxsize=1024)  # the records of a stream have few shapes
def _cuts(shape: bytes) -> tuple[list[str], bool, Callable[[bytes], tuple[bytes, ...]]]:
    """The headers' names, whether there is a key, and what cuts a body into value, key and header values."""
    key_length, headers = orjson.loads(shape)
    end = len(shape) + 1
    cuts = []
    for length in (key_length or 0, *(length for _, length in headers)):
        cuts.append(slice(end, end + length))
        end += length
    return [name for name, _ in headers], key_length is not None, itemgetter(slice(end, None), *cuts)


def append(connection: sqlite3.Connection, low: int, rows: Sequence[Row]) -> None:
    """Write rows at the end of the partition whose offset 0 is row id ``low``, and trim its beginning."""
    retention, first, last = connection.execute(
        f"SELECT retention, {_EDGES} FROM topics WHERE id = :topic",
        {"low": low, "high": low + _MAX_OFFSET, "topic": low >> 50},
    ).fetchone()
    start = low if last is None else last + 1
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?, ?)",
        ((row_id, *row) for row_id, row in enumerate(rows, start)),
    )
    end = start + len(rows)
    if retention is not None and end - (start if first is None else first) > retention + RETENTION_SLACK:
        connection.execute("DELETE FROM records WHERE id >= ? AND id < ?", (low, end - retention))


def extent(database: Database, topic: StoredTopic, number: int) -> Extent:
    """The offsets that a partition holds. Raises TopicError if there is no such partition."""
    low = topic.low(number)
    [(first, last)] = database.query(f"SELECT {_EDGES}", {"low": low, "high": low + _MAX_OFFSET})
    return Extent(0, 0) if last is None else Extent(first - low, last + 1 - low)


def fetch(database: Database, topic: StoredTopic, number: int, start: int, limit: int) -> list[Message]:
    """Up to ``limit`` messages from offset ``start`` on, [] if that is the end.

    Raises TopicError if the record at ``start`` was removed, StorageError if one is damaged.
    """
    low = topic.low(number)
    rows = database.query(
        "SELECT id, timestamp, body, checksum FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (low + start, low + _MAX_OFFSET, limit),
    )
    if rows and rows[0][0] != low + start:
        raise TopicError(
            f"topic {topic.name!r}, partition {number}: position {start} is gone, the first record kept is "
            f"{rows[0][0] - low}; seek there if what lies between may be lost, and raise the retention"
        )
    name = topic.name
    messages: list[Message] = []
    try:
        for offset, (row_id, timestamp, body, checksum) in enumerate(rows, start):
            if row_id != low + offset:
                raise ValueError("offset")
            messages.append(unpack(name, number, offset, timestamp, body, checksum))
    except (TypeError, ValueError) as error:
        raise database.damaged(f"topic {name!r}, partition {number}, offset {start + len(messages)}") from error
    return messages
