"""What the embedded broker adds to the contract: one file, its lock, its retention, and what can go wrong."""

import os
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.broker import Consumer, Extent, Partition, Position, Record, Topic, connect
from pipeline.broker.sqlite.broker import SqliteBroker
from pipeline.broker.sqlite.log import RETENTION_SLACK
from pipeline.errors import (
    BrokerBusyError,
    BrokerError,
    FencedError,
    GroupBusyError,
    SettingsError,
    StorageError,
    TopicError,
)
from tests.pipeline.broker.process import child, poll

TOPIC = "images"
PARTITION = Partition(TOPIC, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.db"


@pytest.fixture
def broker(path: Path) -> Iterator[SqliteBroker]:
    with closing(SqliteBroker(path)) as broker:
        broker.ensure_topics([Topic(TOPIC)])
        yield broker


def write(broker: SqliteBroker, count: int, size: int = 1000, position: tuple[Consumer, int] | None = None) -> None:
    with closing(broker.producer("writer")) as producer, producer.transaction() as transaction:
        transaction.produce(Record(TOPIC, b"%d" % i + bytes(size)) for i in range(count))
        if position:
            consumer, offset = position
            transaction.commit_offsets(consumer.member, {PARTITION: Position(offset)})


# The file


def test_urls_with_three_slashes_are_relative_and_with_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    connect("sqlite:///new/directories/a.db").close()
    connect(f"sqlite:///{tmp_path}/b c%20.db").close()
    assert (tmp_path / "new/directories/a.db").is_file()
    assert (tmp_path / "b c%20.db").is_file()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite://host/a.db", "sqlite:a.db", "sqlite:///a?b=c", "sqlite:///a#b"]
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="sqlite:///FILE"):
        SqliteBroker.from_url(url)


@pytest.mark.parametrize("empty_file", [False, True])  # True: what a process leaves that is killed at once
def test_connections_that_race_to_make_the_file_and_its_topics_agree(path: Path, empty_file: bool) -> None:
    if empty_file:
        path.touch()
    barrier = threading.Barrier(4)

    def topic_id(_: int) -> str:
        barrier.wait()
        with closing(SqliteBroker(path)) as broker:
            broker.ensure_topics([Topic(TOPIC)])
            return broker.topic_id(TOPIC)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(topic_id, range(4)))) == 1


def test_topics_are_made_all_or_none(broker: SqliteBroker) -> None:
    with pytest.raises(TopicError, match="has 1 partitions, not 2"):
        broker.ensure_topics([Topic("new"), Topic(TOPIC, 2)])
    with pytest.raises(TopicError, match="no topic 'new'"):
        broker.topic_id("new")


def test_the_wal_stays_small_while_a_consumer_reads(broker: SqliteBroker, path: Path) -> None:
    consumer, largest = broker.consumer("g", TOPIC), 0
    for _ in range(40):
        write(broker, 40, size=100_000)
        poll(consumer, 40)
        largest = max(largest, path.with_name("stream.db-wal").stat().st_size)
    assert largest < 48 << 20  # of 160 MB


def test_offsets_are_consecutive(broker: SqliteBroker) -> None:
    write(broker, 200)
    write(broker, 100)
    assert [message.offset for message in broker.read(PARTITION, 0, 999)] == list(range(300))
    assert broker.extents(TOPIC) == {PARTITION: Extent(0, 300)}
    assert broker.consumer("g", TOPIC).lag() == {PARTITION: 300}


# Groups


def test_a_second_consumer_of_a_group_is_refused_until_the_first_has_closed(broker: SqliteBroker, path: Path) -> None:
    first = broker.consumer("learn", TOPIC)
    broker.consumer("other", TOPIC)
    with pytest.raises(GroupBusyError, match=rf"'learn'.*{path}.*another group"):
        broker.consumer("learn", TOPIC)
    first.close()
    broker.consumer("learn", TOPIC)


def test_a_group_is_held_by_another_process_until_that_is_killed(broker: SqliteBroker, path: Path) -> None:
    with child(f"sqlite:///{path}", "hold", "learn", TOPIC) as holder:
        holder.hear()
        with pytest.raises(GroupBusyError):
            broker.consumer("learn", TOPIC)
        holder.process.kill()
        holder.process.wait()
        broker.consumer("learn", TOPIC)


def test_a_group_name_can_be_any_text(broker: SqliteBroker) -> None:
    broker.consumer("../a b/é", TOPIC)
    with pytest.raises(GroupBusyError):
        broker.consumer("../a b/é", TOPIC)


def test_a_consumer_whose_group_has_another_one_now_cannot_commit(broker: SqliteBroker) -> None:
    old = broker.consumer("g", TOPIC)
    old.close()
    new = broker.consumer("g", TOPIC)
    with pytest.raises(FencedError, match="'g'"):
        write(broker, 1, position=(old, 1))
    assert broker.extents(TOPIC) == {PARTITION: Extent(0, 0)}
    write(broker, 1, position=(new, 1))
    assert broker.committed("g", TOPIC) == {PARTITION: Position(1)}


# Waiting


def test_waiting_takes_next_to_no_processor_time(broker: SqliteBroker) -> None:
    consumer = broker.consumer("g", TOPIC)
    before = time.process_time()
    assert consumer.poll(1, 0.5) == []
    assert time.process_time() - before < 0.2


def test_a_commit_of_another_thread_wakes_a_waiting_poll_at_once(broker: SqliteBroker) -> None:
    consumer, waits = broker.consumer("g", TOPIC), []
    for _ in range(5):
        writer = threading.Timer(0.02, write, (broker, 1))
        writer.start()
        started = time.monotonic()
        poll(consumer, 1)
        waits.append(time.monotonic() - started)
        writer.join()
    assert min(waits) < 0.5  # the safety net is at 1 s


def test_control_c_ends_a_waiting_poll(broker: SqliteBroker) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    consumer = broker.consumer("g", TOPIC)
    killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        consumer.poll(1, 30.0)
    killer.join()
    signal.signal(signal.SIGINT, before)


# Retention


def test_at_least_the_newest_are_kept_and_not_many_more(broker: SqliteBroker) -> None:
    broker.ensure_topics([Topic(TOPIC, retention_records=500)])
    for turn in range(1, 30):
        write(broker, 100)
        extent = broker.extents(TOPIC)[PARTITION]
        assert extent.end == 100 * turn
        assert min(500, extent.end) <= extent.end - extent.first <= 500 + RETENTION_SLACK
    assert len(list(broker.read(PARTITION, 0, 10_000))) == extent.end - extent.first
    assert extent.first > 2000


def test_retention_can_be_changed_and_touches_its_own_partition_only(broker: SqliteBroker) -> None:
    broker.ensure_topics([Topic("pair", 2)])
    with closing(broker.producer("p")) as producer, producer.transaction() as transaction:
        transaction.produce(Record("pair", b"", partition=i % 2) for i in range(1000))
    broker.ensure_topics([Topic("pair", 2, retention_records=10)])
    with closing(broker.producer("p")) as producer, producer.transaction() as transaction:
        transaction.produce([Record("pair", b"", partition=0)])
    assert broker.extents("pair") == {Partition("pair", 0): Extent(256, 501), Partition("pair", 1): Extent(0, 500)}


def test_the_space_of_removed_records_is_used_again(broker: SqliteBroker, path: Path) -> None:
    broker.ensure_topics([Topic(TOPIC, retention_records=100)])
    for _ in range(100):
        write(broker, 100, size=5000)
    broker.close()
    assert path.stat().st_size < 10 << 20  # of 50 MB


def test_a_position_whose_records_are_gone_is_refused_with_the_offsets(broker: SqliteBroker) -> None:
    broker.ensure_topics([Topic(TOPIC, retention_records=100)])
    write(broker, 10)
    consumer = broker.consumer("g", TOPIC)
    poll(consumer, 3)
    write(broker, 1000)
    with pytest.raises(TopicError, match=r"'images', partition 0: position 3 is gone, .* kept is 778"):
        consumer.poll(10, 0)
    consumer.seek(PARTITION, 778)
    assert poll(consumer, 1)[0].offset == 778
    assert poll(broker.consumer("a new group", TOPIC), 1)[0].offset == 778


def test_records_gone_from_one_partition_lose_nothing_of_another(broker: SqliteBroker) -> None:
    broker.ensure_topics([Topic("pair", 2, retention_records=10)])
    consumer = broker.consumer("g", "pair")
    for partition in consumer.assignment:
        consumer.seek(partition, 0)
    with closing(broker.producer("p")) as producer, producer.transaction() as transaction:
        transaction.produce(Record("pair", b"", partition=0) for _ in range(5))
        transaction.produce(Record("pair", b"", partition=1) for _ in range(500))
    with pytest.raises(TopicError, match=r"partition 1: position 0 is gone, .* kept is 256"):
        consumer.poll(100, 0)
    consumer.seek(Partition("pair", 1), 256)
    read = [(message.partition, message.offset) for message in poll(consumer, 15)]
    assert sorted(read) == [(0, i) for i in range(5)] + [(1, i) for i in range(256, 266)]


def test_a_reader_that_retention_overtakes_is_told_so(broker: SqliteBroker) -> None:
    write(broker, 1000)
    messages = broker.read(PARTITION, 0, 1000)
    next(messages)
    broker.ensure_topics([Topic(TOPIC, retention_records=10)])
    write(broker, 1)
    with pytest.raises(TopicError, match="gone"):
        list(messages)


@pytest.mark.parametrize("topic", [Topic("t", 0), Topic("t", 1025), Topic("t", 1, 0), Topic("t", 1, retention_bytes=1)])
def test_topics_that_cannot_be_are_refused(broker: SqliteBroker, topic: Topic) -> None:
    with pytest.raises(TopicError, match="'t'"):
        broker.ensure_topics([topic])


# What can go wrong


def test_a_file_locked_for_too_long_is_an_error_and_afterwards_works(path: Path) -> None:
    with closing(SqliteBroker(path, busy_timeout=0.05)) as broker, closing(sqlite3.connect(path)) as other:
        broker.ensure_topics([Topic(TOPIC)])
        producer = broker.producer("p")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerBusyError, match=rf"{path}.*0\.05 s"), producer.transaction() as transaction:
            transaction.produce([Record(TOPIC, b"lost")])
        other.rollback()
        with producer.transaction() as transaction:
            transaction.produce([Record(TOPIC, b"kept")])
        assert [message.value for message in broker.read(PARTITION, 0, 9)] == [b"kept"]


def test_a_full_disk_writes_nothing_and_works_again_when_there_is_room(broker: SqliteBroker, path: Path) -> None:
    broker.ensure_topics([Topic("other")])
    producer, consumer = broker.producer("p"), broker.consumer("g", TOPIC)
    producer._database.query("PRAGMA max_page_count = 40")  # no public way to fill a disk

    def attempt() -> None:
        with producer.transaction() as transaction:
            transaction.commit_offsets(consumer.member, {PARTITION: Position(1)})
            transaction.produce([Record("other", b"small")])
            transaction.produce(Record(TOPIC, bytes(10_000)) for _ in range(200))

    with pytest.raises(StorageError, match=rf"{path}: disk full"):
        attempt()
    assert broker.extents(TOPIC) == {PARTITION: Extent(0, 0)}
    assert broker.extents("other") == {Partition("other", 0): Extent(0, 0)}
    assert broker.committed("g", TOPIC) == {}
    producer._database.query("PRAGMA max_page_count = 1000000")
    attempt()
    assert broker.extents(TOPIC) == {PARTITION: Extent(0, 200)}
    assert broker.committed("g", TOPIC) == {PARTITION: Position(1)}


def test_a_file_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 100)
    with pytest.raises(StorageError, match=rf"{path}.*no file of marketstream.*move it"):
        SqliteBroker(path)
    assert path.read_bytes() == b"not a database at all " * 100


def test_the_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE records (a)")
    with pytest.raises(StorageError, match="another program"):
        SqliteBroker(path)


@pytest.mark.parametrize("version", [2, 4])
def test_a_file_of_another_version_is_refused(path: Path, version: int) -> None:
    SqliteBroker(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StorageError, match=rf"another marketstream.*schema {version}.*that version"):
        SqliteBroker(path)


def test_flipped_bytes_anywhere_are_an_error_or_change_nothing(broker: SqliteBroker, path: Path) -> None:
    with closing(broker.producer("writer")) as producer, producer.transaction() as transaction:
        transaction.produce(Record(TOPIC, b"%d" % i * 200, b"key", (("name", b"value"),)) for i in range(1000))
    right = list(broker.read(PARTITION, 0, 1000))
    broker.close()
    good, errors = path.read_bytes(), []
    for position in range(len(good) // 3, len(good), len(good) // 97):
        broken = bytearray(good)
        broken[position : position + 4] = bytes(255 - byte for byte in good[position : position + 4])
        path.write_bytes(broken)
        try:
            with closing(SqliteBroker(path)) as damaged:
                assert list(damaged.read(PARTITION, 0, 1000)) == right
        except BrokerError as error:
            errors.append(str(error))
    assert len(errors) > 30
    assert sum(str(path) in error and "put a good copy" in error for error in errors) > 30


def test_zeroed_pages_are_an_error(broker: SqliteBroker, path: Path) -> None:
    write(broker, 500)
    broker.close()
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(100_000))
    with closing(SqliteBroker(path)) as damaged, pytest.raises(StorageError, match="damaged"):
        list(damaged.read(PARTITION, 0, 500))


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory that this process may read but not write, root or not."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with closing(SqliteBroker(directory / "stream.db")) as broker:
            broker.ensure_topics([Topic(TOPIC)])
        for file in directory.iterdir():
            file.chmod(0o444)
        directory.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # no permission stops root
            os.seteuid(65534)
        yield directory
        os.seteuid(user)
        directory.chmod(0o755)


def test_a_file_or_directory_that_is_read_only_is_an_error(unprivileged: Path) -> None:
    for name in ("stream.db", "new.db", "new/stream.db"):
        with pytest.raises(StorageError, match=rf"{unprivileged}.*check"):
            SqliteBroker(unprivileged / name).ensure_topics([Topic("new")])


def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "stream.db"):
        with pytest.raises(StorageError, match=str(path)):
            SqliteBroker(path)


def test_a_file_that_was_removed_meanwhile_is_an_error(broker: SqliteBroker, path: Path) -> None:
    producer = broker.producer("p")
    path.unlink()
    with pytest.raises(BrokerError, match=str(path)), producer.transaction() as transaction:
        transaction.produce([Record(TOPIC, b"")])


def test_a_producer_and_a_consumer_may_change_threads(broker: SqliteBroker) -> None:
    consumer, producer = broker.consumer("g", TOPIC), broker.producer("p")
    got: list[bytes] = []

    def work() -> None:
        with producer.transaction() as transaction:
            transaction.produce([Record(TOPIC, b"x")])
        got.extend(message.value for message in poll(consumer, 1))
        producer.close()
        consumer.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert got == [b"x"]
    broker.consumer("g", TOPIC)
