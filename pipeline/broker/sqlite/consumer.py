"""The consumer of the embedded broker: the lock of its group, its positions, and waiting without polling."""

import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from watchfiles._rust_notify import RustNotify

from pipeline.broker import Member, Message, Partition
from pipeline.broker.sqlite.database import Database
from pipeline.broker.sqlite.log import extent, fetch, find_topic
from pipeline.errors import BrokerBusyError, GroupBusyError, StorageError, TopicError

_TAIL_RECORDS, _TAIL_SECONDS = 64, 0.01
_LONGEST_WAIT = 1.0  # seconds: some network and virtual file systems report no change at all


class SqliteConsumer:
    """The one consumer of a group, given all partitions of one topic. Owns ``database``, its connection.

    Raises TopicError if there is no such topic, GroupBusyError if the group has its consumer.
    """

    rebalancing = False

    def __init__(self, database: Database, group: str, topic: str) -> None:
        self._database = database
        self._topic = find_topic(database, topic)
        self.assignment = frozenset(self._topic.parts)
        with ExitStack() as stack:
            lock = _lock(database.path, group)
            stack.callback(lock.release)
            self._watch = stack.enter_context(_watch(database.path))
            self.member = Member(group, database.next_number("groups", "generation", group))
            committed = "SELECT partition, offset FROM positions WHERE group_id = ? AND topic = ?"
            self._positions: dict[int, int] = dict(database.query(committed, (group, self._topic.id)))
            self._close = stack.pop_all()
        self._next = 0  # the partition whose turn it is

    def poll(self, max_records: int, timeout: float) -> list[Message]:
        """As in the protocol. A signal handler that raises while this waits raises KeyboardInterrupt here."""
        deadline = time.monotonic() + timeout
        while not (messages := self._take(max_records)):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            # The watch began before the records were looked for, so no commit in between is missed.
            milliseconds = max(1, int(1000 * min(remaining, _LONGEST_WAIT)))
            if self._watch.watch(1, 1, milliseconds, None) == "signal":
                raise KeyboardInterrupt
        return messages

    def seek(self, partition: Partition, offset: int) -> None:
        """The next poll reads that partition from ``offset`` on. Raises TopicError."""
        if partition not in self.assignment or offset < 0:
            raise TopicError(
                f"cannot seek to offset {offset} of {partition}: this consumer reads {self._topic.name!r}, "
                f"partitions 0 to {self._topic.partitions - 1}, from offset 0 on"
            )
        self._positions[partition.number] = offset

    def lag(self) -> dict[Partition, int]:
        result = {}
        for partition in self._topic.parts:
            held = extent(self._database, self._topic, partition.number)
            result[partition] = max(0, held.end - self._positions.get(partition.number, held.first))
        return result

    def close(self) -> None:
        self._close.close()
        self._database.close()

    def _take(self, max_records: int) -> list[Message]:
        """What is there, beginning with the partition after the one that gave the last message."""
        messages: list[Message] = []
        for turn in range(self._topic.partitions):
            if len(messages) == max_records:
                break
            number = (self._next + turn) % self._topic.partitions
            limit = max_records - len(messages)
            messages += fetch(self._database, self._topic, number, self._start(number), limit)
        # Only now, so that an error in one partition doesn't lose what the others gave.
        self._positions.update({message.partition: message.offset + 1 for message in messages})
        if messages:
            self._next = (messages[-1].partition + 1) % self._topic.partitions
        return messages

    def _start(self, number: int) -> int:
        position = self._positions.get(number)
        return extent(self._database, self._topic, number).first if position is None else position


class SqliteTail:
    """Reads one partition on and on. The connection is its broker's."""

    def __init__(self, database: Database, partition: Partition, start: int) -> None:
        self._database, self._number, self.position = database, partition.number, start
        self._topic = find_topic(database, partition.topic)
        self._topic.low(partition.number)

    def poll(self, timeout: float) -> list[Message]:
        """What is there, or what comes within ``timeout`` seconds. Raises TopicError if the position is gone."""
        deadline = time.monotonic() + timeout
        while not (messages := fetch(self._database, self._topic, self._number, self.position, _TAIL_RECORDS)):
            if time.monotonic() >= deadline:
                return []
            time.sleep(_TAIL_SECONDS)
        self.position += len(messages)
        return messages

    def close(self) -> None: ...


def is_taken(path: Path, group: str) -> bool:
    """Whether a group has its consumer."""
    try:
        _lock(path, group).release()
    except GroupBusyError:
        return True
    return False


def _lock(path: Path, group: str) -> FileLock:
    """The group's lock, taken. The system frees it when the process ends, however it ends."""
    lock = FileLock(f"{path}.{quote(group, safe='')}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise GroupBusyError(
            f"group {group!r} has its one consumer in {path} already; stop that process, or give this one another group"
        ) from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: {error.strerror}; check the directory's permissions") from error
    return lock


def _watch(path: Path) -> RustNotify:
    try:
        return RustNotify([str(path)], False, False, 0, False, False)
    except OSError as error:
        raise BrokerBusyError(
            f"{path}: the system watches no more files ({error}); end other programs, or raise its limit "
            "(Linux: fs.inotify.max_user_instances)"
        ) from error
