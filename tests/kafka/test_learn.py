"""Exactly-once learning over a real Kafka broker."""

import json
import random
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consumers.learn import main
from deploy.local.kafka import Server
from pipeline.broker import Topic
from pipeline.broker.kafka.producer import KafkaProducer
from pipeline.errors import OutcomeUnknownError
from tests.consumers.harness import Place, digest_of, each_once, records
from tests.pipeline.synthetic import CLASSES

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, kafka_url: str) -> Place:
    return Place(tmp_path, kafka_url, f"t{uuid.uuid4()}.")


def test_kafka_and_the_embedded_broker_lead_to_the_same_digest(place: Place, capsys: Capture) -> None:
    place.send(records(600), partitions=2)
    summary = place.learn(capsys, "--images", 600)
    assert summary["digest"] == digest_of(600) == place.newest().digest
    assert each_once(place.predictions(), 600)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("crash", [0, 1, 4])
@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
def test_a_crash_around_any_commit_changes_nothing(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, crash: int, after: bool
) -> None:
    place.send(records(320))
    with monkeypatch.context() as patch, failing(patch, crash, after, CrashError), pytest.raises(CrashError):
        main(place.flags("--images", 320, "--snapshot-images", 100))
    done = place.position()  # a broker hands out what it has: not all micro-batches are full
    commits = crash + after  # the first one, and up to three more, only admit labels
    assert max(0, commits - len(CLASSES)) <= done <= 32 * max(0, commits - 1)
    summary = place.learn(capsys, "--images", 320 - done)
    assert summary["digest"] == digest_of(320)
    assert each_once(place.predictions(), 320)


@pytest.mark.parametrize("happened", [False, True])
def test_a_commit_of_unknown_outcome_is_looked_up(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    place.send(records(320))
    with failing(monkeypatch, 3, happened, lambda: OutcomeUnknownError("lost")):
        summary = place.learn(capsys, "--images", 320)
    assert (summary["digest"], summary["records"]) == (digest_of(320), 320)
    assert each_once(place.predictions(), 320)


@contextmanager
def failing(patch: pytest.MonkeyPatch, number: int, after: bool, error: Callable[[], Exception]) -> Iterator[None]:
    """The learner's commit of that number fails, before or after it took place."""
    commits = iter(range(10_000))
    whole = KafkaProducer.transaction

    @contextmanager
    def transaction(self: KafkaProducer) -> Iterator[object]:
        now = next(commits) == number
        with whole(self) as open_transaction:
            yield open_transaction
            if now and not after:
                raise error()
        if now:
            raise error()

    patch.setattr(KafkaProducer, "transaction", transaction)
    yield


def kill_often(place: Place, total: int, times: int, seed: int = 0) -> None:
    """Kill a learner with -9 at random places of the stream."""
    rng = random.Random(seed)
    with place.broker() as broker:
        broker.ensure_topics([Topic(f"{place.prefix}predictions")])
    for n in range(times):
        with place.learner("--batch-size", 16, "--snapshot-images", 200) as process:
            target = int(total * 0.8 * (n + rng.random()) / times)
            place.await_position(process, target + 1)
            process.send_signal(signal.SIGKILL)


def test_kill_9_at_any_moment_changes_nothing(place: Place, capsys: Capture) -> None:
    total = 1600
    place.send(records(total))
    kill_often(place, total, times=3)
    done = len(place.predictions())
    summary = place.learn(capsys, "--images", total - done)
    assert summary["digest"] == digest_of(total)
    assert summary["labelled_images"] == total
    assert each_once(place.predictions(), total)


@pytest.mark.xdist_group("a broker that may be killed")
def test_a_broker_that_is_gone_for_a_while_is_waited_for(tmp_path: Path, own_kafka_server: Server) -> None:
    total = 1600
    place = Place(tmp_path, own_kafka_server.url, f"t{uuid.uuid4()}.")
    place.send(records(total))
    with place.learner("--batch-size", 16, "--images", total) as process:
        place.await_position(process, 300)
        own_kafka_server.kill()
        own_kafka_server.start()
        out, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert json.loads(out)["digest"] == digest_of(total)
    assert each_once(place.predictions(), total)


def test_which_classes_there_is_room_for_is_decided_once(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.images.MOST_CLASSES", 3)
    place.send(records(320), partitions=2)
    before = place.learn(capsys, "--images", 320)
    assert (len(before["classes"]), before["dead_letters"] > 0) == (3, True)
    place.lose_snapshots()
    assert place.learn(capsys, "--images", 0)["digest"] == before["digest"]
