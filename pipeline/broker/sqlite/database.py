"""The SQLite file under the embedded broker: schema, write transactions, and SQLite's errors as ours."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import BrokerBusyError, MarketstreamError, StorageError

APPLICATION = int.from_bytes(b"mkst")
VERSION = 3
BUSY_TIMEOUT = 5.0

# A checkpoint every 32 MB of them keeps the WAL small, and rare enough
# that its two fsyncs don't show. Records are public, so deleted ones need not be wiped.
_PRAGMAS = (
    "page_size = 16384",
    "synchronous = NORMAL",
    "wal_autocheckpoint = 2000",
    "journal_size_limit = 67108864",
    "cache_size = -16384",
    "secure_delete = OFF",
)

# records.id is topic << 50 | partition << 40 | first offset (see sqlite_log): a table clustered by partition and
# offset, with keys of eight bytes. A WITHOUT ROWID table was slower by a third both to write and to read.
_SCHEMA = """
    CREATE TABLE topics (
        id INTEGER PRIMARY KEY CHECK (id < 8192),
        name TEXT NOT NULL UNIQUE,
        uid TEXT NOT NULL,
        partitions INTEGER NOT NULL,
        retention INTEGER
    );
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        timestamp INTEGER NOT NULL,
        body BLOB NOT NULL,
        checksum INTEGER NOT NULL
    );
    CREATE TABLE producers (id TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE groups (id TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE positions (
        group_id TEXT, topic INTEGER, partition INTEGER, offset INTEGER NOT NULL, note TEXT NOT NULL,
        PRIMARY KEY (group_id, topic, partition)
    ) WITHOUT ROWID;
"""


class Database:
    """One connection to the file, which is made if it does not exist. For any thread, one at a time.

    Parameters
    ----------
    path
        The file; its directories are made too.
    busy_timeout
        Seconds to wait for a lock that another process holds.

    Raises BrokerBusyError, StorageError; so do all methods.
    """

    def __init__(self, path: Path, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=busy_timeout, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def query(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        """All rows of a SELECT: the snapshot that it reads from is let go at once."""
        with self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end of the block, rolled back if the block raises."""
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            # Wakes whoever watches the file. Writes to the WAL are events too, but they come before the
            # commit can be seen.
            os.utime(self.path)

    def next_number(self, table: str, column: str, name: str) -> int:
        """Count up what fences the older of two: the epoch of a producer, the generation of a group."""
        with self.write() as connection:
            connection.execute(
                f"INSERT INTO {table} VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET {column} = {column} + 1", (name,)
            )
            [number] = connection.execute(f"SELECT {column} FROM {table} WHERE id = ?", (name,)).fetchone()
        return int(number)

    def close(self) -> None:
        self._connection.close()

    def damaged(self, what: str) -> StorageError:
        """The error to raise for content that cannot be right."""
        return StorageError(
            f"{self.path}: damaged, or no file of marketstream ({what}); move it and its -wal file away, "
            "or put a good copy in its place"
        )

    def _prepare(self) -> None:
        for pragma in _PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        if self._is_empty():
            with FileLock(f"{self.path}.lock", timeout=self.busy_timeout):
                if self._is_empty():
                    self._create()

    def _is_empty(self) -> bool:
        self._connection.execute("BEGIN")  # one snapshot for all three
        application, version, tables = [
            self._connection.execute(sql).fetchone()[0]
            for sql in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        ]
        self._connection.execute("COMMIT")
        if application != APPLICATION and tables:
            raise StorageError(f"{self.path}: the database of another program; give another file")
        if tables and version != VERSION:
            raise StorageError(
                f"{self.path}: written by another marketstream (schema {version}, this one knows {VERSION}); "
                "use that version, or give another file"
            )
        return not tables

    def _create(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION};PRAGMA user_version = {VERSION}; COMMIT"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:  # a mistake in the calling code, such as use after close
            raise
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except Timeout as error:
            raise self._busy() from error
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}; check the path and its permissions") from error

    def _busy(self) -> BrokerBusyError:
        return BrokerBusyError(
            f"{self.path}: another process has kept it locked for {self.busy_timeout:g} s; "
            "try again, or end that process"
        )

    def _translated(self, error: sqlite3.Error) -> MarketstreamError:
        # Text that is no UTF-8 is the one error of the file that comes without a code.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return self._busy()
            case sqlite3.SQLITE_FULL:
                advice = "disk full, nothing of the transaction was written; make room and try again"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
                advice = f"cannot be read and written ({error}); check the permissions of file and directory"
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self.damaged(str(error))
            case _:
                advice = f"cannot be used ({error}); check the disk and the file"
        return StorageError(f"{self.path}: {advice}")
