"""The producer: whatever happens to it, the topic holds every record of the stream once."""

import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import Queue

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.broker import Broker, Consumer, Message, Position, connect
from pipeline.broker.sqlite.broker import SqliteTransaction
from pipeline.data.stream import Stream
from pipeline.errors import FencedError, MarketstreamError, SettingsError
from pipeline.records.images import decode, encode
from pipeline.records.topics import ends
from producers import replay as program
from producers.replay import MOST_RECORDS, MaxLag, main, replay
from tests.producers.process import TOPIC, stream

ROOT = Path(__file__).parents[2]
URL = re.compile(r"http://\S+")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/stream.db"


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = connect(url)
    yield broker
    broker.close()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def sent(broker: Broker, topic: str = "images") -> list[Message]:
    """All messages, partition by partition."""
    return [m for part, extent in broker.extents(topic).items() for m in broker.read(part, extent.first, extent.end)]


def holds_exactly(broker: Broker, small: Stream, images: int) -> bool:
    """Whether the topic holds the first images of the stream, each once, unchanged and in order by partition."""
    expected = [encode(small.record(i), "images") for i in range(images)]
    messages = sorted(sent(broker), key=lambda message: message.key or b"")
    offsets: dict[int, int] = {}
    for message in messages:
        if message.offset != offsets.get(message.partition, 0):
            return False
        offsets[message.partition] = message.offset + 1
    return [(m.key, m.value, m.headers) for m in messages] == [(r.key, r.value, r.headers) for r in expected]


def test_all_of_a_scenario_is_sent_once_and_a_second_start_sends_nothing(broker: Broker, stop: threading.Event) -> None:
    small = stream(1200)
    first = replay(broker, small, TOPIC, stop)
    assert (first.start, first.position, first.complete) == (0, 1200, True)
    again = replay(broker, small, TOPIC, stop)
    assert (again.start, again.position, again.complete) == (1200, 1200, True)
    assert holds_exactly(broker, small, 1200)


def test_a_run_goes_on_with_more_images_of_the_same_scenario(broker: Broker, stop: threading.Event) -> None:
    small = stream(1200)
    assert replay(broker, stream(1200, first=700), TOPIC, stop).complete
    assert replay(broker, small, TOPIC, stop).start == 700
    assert holds_exactly(broker, small, 1200)


def test_another_run_sends_the_stream_again(broker: Broker, stop: threading.Event) -> None:
    assert replay(broker, stream(100), TOPIC, stop).complete
    assert replay(broker, stream(100, "again"), TOPIC, stop).start == 0
    assert len({message.key for message in sent(broker)}) == 200


def test_a_run_of_another_scenario_or_seed_is_refused(broker: Broker, stop: threading.Event) -> None:
    replay(broker, stream(100, "mine"), TOPIC, stop)
    with pytest.raises(
        SettingsError, match=r"'mine' sent 100 images of another scenario or seed .* choose another --run"
    ):
        replay(broker, stream(100, "mine", seed=1), TOPIC, stop)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("transaction", range(4))
def test_a_crash_before_or_after_any_commit_leaves_no_gap_and_no_duplicate(
    broker: Broker, stop: threading.Event, monkeypatch: pytest.MonkeyPatch, transaction: int, after: bool
) -> None:
    class CrashError(Exception):
        pass

    commits = iter(range(100))
    whole = SqliteTransaction.commit

    def commit(self: SqliteTransaction, transactional_id: str, epoch: int) -> None:
        crash = next(commits) == transaction
        if crash and not after:
            raise CrashError
        whole(self, transactional_id, epoch)
        if crash:
            raise CrashError

    monkeypatch.setattr(SqliteTransaction, "commit", commit)
    small = stream(1800)
    with pytest.raises(CrashError):
        replay(broker, small, TOPIC, stop)
    assert replay(broker, small, TOPIC, stop).complete
    assert holds_exactly(broker, small, 1800)


def test_a_second_producer_of_the_same_run_takes_it_over(url: str, broker: Broker, stop: threading.Event) -> None:
    small, other = stream(1200), connect(url)

    def take_over(position: int) -> None:
        if position == MOST_RECORDS:
            assert replay(other, small, TOPIC, stop).start == MOST_RECORDS

    with pytest.raises(FencedError):
        replay(broker, small, TOPIC, stop, progress=take_over)
    other.close()
    assert holds_exactly(broker, small, 1200)


def test_stop_ends_it_after_a_whole_transaction_and_it_goes_on_from_there(
    broker: Broker, stop: threading.Event
) -> None:
    small = stream(1200)
    outcome = replay(broker, small, TOPIC, stop, progress=lambda position: stop.set() if position else None)
    assert (outcome.position, outcome.complete) == (MOST_RECORDS, False)
    assert holds_exactly(broker, small, MOST_RECORDS)
    assert replay(broker, small, TOPIC, threading.Event()).start == MOST_RECORDS


def test_a_rate_is_kept_with_small_transactions(broker: Broker, stop: threading.Event) -> None:
    positions: list[int] = []
    outcome = replay(broker, stream(200), TOPIC, stop, rate=400, progress=positions.append)
    assert max(b - a for a, b in pairwise(positions)) <= 100
    assert outcome.complete
    assert 200 / 400 - 0.25 <= outcome.seconds < 5


def test_a_rate_below_one_image_in_a_slice_sends_one_at_a_time(broker: Broker, stop: threading.Event) -> None:
    outcome = replay(broker, stream(20), TOPIC, stop, rate=0.5, progress=lambda p: stop.set() if p else None)
    assert outcome.position == 1


def test_max_lag_is_never_exceeded(url: str, broker: Broker, stop: threading.Event) -> None:
    """A consumer that commits whatever it gets, slowly; the producer must wait for it again and again."""
    broker.ensure_topics([TOPIC])
    consumer, committer = broker.consumer("slow", "images"), broker.producer("slow")
    results: list[int] = []

    def produce() -> None:
        mine = connect(url)
        results.append(replay(mine, stream(1200), TOPIC, stop, max_lag=MaxLag(80, "slow")).position)
        mine.close()

    thread = threading.Thread(target=produce)
    thread.start()
    got = 0
    while got < 1200:
        messages = consumer.poll(50, 10.0)
        assert messages, "nothing came for ten seconds"
        assert sum(extent.end for extent in broker.extents("images").values()) <= got + 80
        got += len(messages)
        with committer.transaction() as transaction:
            positions = {partition: Position(end) for partition, end in ends(messages).items()}
            transaction.commit_offsets(consumer.member, positions)
    thread.join()
    assert results == [1200]


@contextmanager
def producing(url: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A producer of its own process, which is killed, if it has not ended, at the end of the block."""
    command = [sys.executable, "-m", "tests.producers.process", url, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def await_messages(consumer: Consumer, wanted: int) -> None:
    while wanted > 0:
        messages = consumer.poll(wanted, 30.0)
        assert messages, "nothing came for thirty seconds"
        wanted -= len(messages)


def test_killed_at_random_moments_it_leaves_every_record_once(url: str, broker: Broker) -> None:
    images, dice = 16_000, random.Random(3)
    broker.ensure_topics([TOPIC])
    watch = broker.consumer("watch", "images")
    for _ in range(3):
        with producing(url, images, 2000) as process:
            await_messages(watch, dice.randrange(1, 1000))
            process.kill()
            assert process.wait() == -signal.SIGKILL
    assert 0 < len(sent(broker)) < images
    with producing(url, images) as process:
        assert process.communicate()[0].split() == [str(images), "True"]
    assert holds_exactly(broker, stream(images), images)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(url: str, broker: Broker, number: signal.Signals) -> None:
    broker.ensure_topics([TOPIC])
    watch = broker.consumer("watch", "images")
    with producing(url, 1000, 100) as process:
        await_messages(watch, 1)
        process.send_signal(number)
        position, complete = process.communicate()[0].split()
        assert (process.returncode, complete) == (0, "False")
    assert holds_exactly(broker, stream(1000), int(position))


@pytest.fixture
def command(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The command line, with synthetic images."""
    small = stream(400)
    data = {split.name: split for split in small.splits}
    monkeypatch.setattr(program, "load_splits", lambda *_: data)
    phases = "[{name: first, images: 60, classes: {all: 1}}, {name: rest, images: 240, classes: {all: 1}}]"
    (tmp_path / "tiny.yaml").write_text(f"name: tiny\nabout: For tests.\nphases: {phases}\n")
    own = ("--broker", url, "--producer-metrics-port", "0")
    return lambda *flags: main([str(tmp_path / "tiny.yaml"), *own, *flags])


def test_json_says_what_was_done(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--json", "--images", "120", "--seed", "4") == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("seconds") > 0
    assert result.pop("images_per_second") > 0
    whole = {"scenario": "tiny", "run": "tiny-4", "images": 120, "sent": 120, "position": 120, "complete": True}
    assert result == whole
    assert command("--json", "--images", "120", "--seed", "4") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["sent"], again["images_per_second"], again["complete"]) == (0, 0, True)


def test_flags_name_topic_partitions_run_and_encoding(command: Callable[..., int], broker: Broker) -> None:
    flags = ("--topic-prefix", "test-", "--partitions", "3", "--run", "mine", "--encoding", "png", "--rate", "0")
    assert command(*flags) == 0
    assert len(broker.extents("test-images")) == 3
    records = [decode(message.value, message.headers) for message in sent(broker, "test-images")]
    assert sorted(record.id for record in records) == [f"mine/{i:08d}" for i in range(300)]
    assert all(dict(message.headers)["content-type"] == b"image/png" for message in sent(broker, "test-images"))


def test_a_complete_run_says_so_in_the_log(command: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        command()
        assert "tiny-0: 0 of 300 images, phase first" in caplog.text
        assert "tiny-0 is complete: 300 images sent" in caplog.text
        command()
    assert "tiny-0 is already complete, at image 300; choose another --run to begin again" in caplog.text


def scraped(address: str) -> dict[tuple[str, ...], float]:
    """A page of metrics: values by name and the values of the labels."""
    with urllib.request.urlopen(address) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {
            (s.name, *(v for _, v in sorted(s.labels.items()))): s.value for family in families for s in family.samples
        }


def test_prometheus_sees_what_was_sent_and_which_phase_is_replayed(
    command: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    address: Queue[str] = Queue()
    handler = logging.Handler()
    handler.emit = lambda record: address.put(found[0]) if (found := URL.findall(record.getMessage())) else None  # type: ignore[method-assign]
    pages: list[dict[tuple[str, ...], float]] = []

    def watch() -> None:
        page = address.get(timeout=30)
        while not pages or pages[-1]["marketplace_replayed_images_total", "rest"] < 25:
            pages.append(scraped(page))
        os.kill(os.getpid(), signal.SIGINT)

    caplog.set_level(logging.INFO)
    program.log.addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            command("--max-lag", "100")  # nobody learns: after 25, 25, 10 and 25 images it waits
            watching.result()
    finally:
        program.log.removeHandler(handler)
    last = pages[-1]
    assert last["marketplace_replayed_images_total", "first"] == 60
    assert last["marketplace_replayed_images_total", "rest"] == 25
    assert [last["marketplace_replay_phase", phase, "tiny"] for phase in ("first", "rest")] == [0, 1]
    assert last["process_resident_memory_bytes",] > 0


def test_a_second_producer_on_the_same_port_is_refused_and_says_what_to_do(command: Callable[..., int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SettingsError, match=rf"127.0.0.1:{port} .*choose another --producer-metrics-port, or 0"):
            command("--producer-metrics-port", port)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--rate", "-1", "a number of at least 0"),
        ("--rate", "nan", "a number of at least 0"),
        ("--rate", "fast", "a number of at least 0"),
        ("--images", "0", "a whole number of at least 1"),
        ("--seed", "1.5", "a whole number of at least 0"),
        ("--max-lag", "0", "a whole number of at least 1"),
        ("--run", "a b", "letters, digits"),
        ("--partitions", "0", "greater than or equal to 1"),
    ],
)
def test_a_bad_flag_is_refused_by_name_in_one_line(
    command: Callable[..., int], flag: str, value: str, expected: str
) -> None:
    with pytest.raises(MarketstreamError) as caught:
        command(flag, value)
    assert str(caught.value).startswith(flag)
    assert expected in str(caught.value)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)
