"""Topics and records of the embedded broker as rows: where they go, how they are packed and checked.

A row holds records that were written together, for SQLite works, and Python lets other threads in, row by row.
Its id is ``topic << 50 | partition << 40 | offset of the first one``, so that a partition is one range of ids.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import itemgetter
from zlib import crc32

import orjson

from pipeline.broker.protocol import Extent, Message, Partition, Record
from pipeline.broker.sqlite_database import Database
from pipeline.errors import RecordTooLargeError, TopicError

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
        if not 0 <= number < self.partitions:
            raise TopicError(
                f"topic {self.name!r} has no partition {number}, only 0 to {self.partitions - 1}; use one of those"
            )
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
    raise TopicError(
        f"there is no topic {name!r} in {database.path}; check name and prefix, or start its producer first"
    )


def pack(record: Record) -> bytes:
    """A record as bytes. Raises RecordTooLargeError.

    A line of JSON (the key's length or null, then name and length of each header), and after it key, header
    values and value, end to end.
    """
    lengths = tuple([(name, len(value)) for name, value in record.headers])
    shape = _shape(None if record.key is None else len(record.key), lengths)
    values = [value for _, value in record.headers]
    packed = b"".join([shape, record.key or b"", *values, record.value])
    if len(packed) > MAX_RECORD:
        raise RecordTooLargeError(
            f"topic {record.topic!r}: a record of {len(packed):,} bytes, but {MAX_RECORD:,} are the most; split it"
        )
    return packed


def unpack(topic: str, partition: int, offset: int, timestamp: int, packed: bytes) -> Message:
    """The inverse of pack. Raises ValueError or TypeError if it is damaged."""
    names, has_key, cut = _cuts(packed[: packed.index(b"\n")])
    value, key, *values = cut(packed)
    headers = tuple(zip(names, values, strict=True))
    return Message(topic, partition, offset, timestamp, key if has_key else None, value, headers)


@lru_cache(maxsize=1024)  # the records of a stream have few shapes
def _shape(key_length: int | None, headers: tuple[tuple[str, int], ...]) -> bytes:
    return orjson.dumps([key_length, headers], option=orjson.OPT_APPEND_NEWLINE)


@lru_cache(maxsize=1024)
def _cuts(shape: bytes) -> tuple[list[str], bool, Callable[[bytes], tuple[bytes, ...]]]:
    """The headers' names, whether there is a key, and what cuts a body into value, key and header values."""
    key_length, headers = orjson.loads(shape)
    end = len(shape) + 1
    cuts = []
    for length in (key_length or 0, *(length for _, length in headers)):
        cuts.append(slice(end, end + length))
        end += length
    return [name for name, _ in headers], key_length is not None, itemgetter(slice(end, None), *cuts)


def _rows(records: Sequence[bytes], timestamp: int) -> Iterator[Row]:
    """Packed records as rows of many: a line of JSON, their lengths, and then the records, end to end.

    The checksum is there because SQLite notices damage to the structure of its pages, not to what they hold.
    """
    some: list[bytes] = []
    size = 0
    for place, record in enumerate(records, 1):
        some.append(record)
        size += len(record)
        if place == len(records) or len(some) == ROW_RECORDS or size >= ROW_BYTES:
            body = b"".join([orjson.dumps([len(each) for each in some]), b"\n", *some])
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
    messages: list[Message] = []
    while len(messages) < limit:
        try:
            more = _fetch(database, topic, number, start + len(messages), limit - len(messages))
        except TopicError:
            if not messages:  # else the next call raises it again, and what was found is not lost
                raise
            break
        messages += more
        if not more:
            break
    return messages


def _fetch(database: Database, topic: StoredTopic, number: int, start: int, limit: int) -> list[Message]:
    """The same, from one row only."""
    low = topic.low(number)
    found = database.query(_ROW_AT, {"low": low, "at": low + start, "high": low + _MAX_OFFSET})
    if not found:
        return []
    [(row_id, count, timestamp, body, checksum, has_next)] = found
    if row_id > low + start:
        raise TopicError(
            f"topic {topic.name!r}, partition {number}: position {start} is gone, the first record kept is "
            f"{row_id - low}; seek there if what lies between may be lost, and raise the retention"
        )
    skip = low + start - row_id
    try:
        if crc32(body) + timestamp != checksum:
            raise ValueError("checksum")
        records = _cut(body, count)[skip : skip + limit]
        if not records and has_next:
            raise ValueError("offset")
        return [unpack(topic.name, number, offset, timestamp, packed) for offset, packed in enumerate(records, start)]
    except (TypeError, ValueError) as error:
        raise database.damaged(f"topic {topic.name!r}, partition {number}, offset {start}") from error


def _cut(body: bytes, count: int) -> list[bytes]:
    """The packed records of a row. Raises ValueError or TypeError if the row is damaged."""
    end = body.index(b"\n")
    ends = [*accumulate(orjson.loads(body[:end]), initial=end + 1)]
    if len(ends) != count + 1 or ends[-1] != len(body):
        raise ValueError("lengths")
    return [body[start:stop] for start, stop in pairwise(ends)]
