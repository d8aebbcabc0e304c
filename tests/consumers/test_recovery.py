"""The consumer after a crash, a lost connection or lost files: it goes on where the broker says, or says why not."""

import signal
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumers.learn import main
from pipeline.broker import Topic
from pipeline.broker.sqlite.broker import SqliteBroker, SqliteTransaction
from pipeline.errors import BrokerBusyError, OutcomeUnknownError, RecoveryError
from tests.consumers.harness import Place, digest_of, each_once, records

Capture = pytest.CaptureFixture[str]


class CrashError(Exception):
    pass


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("crash", [0, 1, 5, 9])
def test_a_crash_around_any_commit_changes_nothing(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, crash: int, after: bool
) -> None:
    place.send(records(320))
    commits = iter(range(1000))
    whole = SqliteTransaction.commit

    def commit(self: SqliteTransaction, transactional_id: str, epoch: int) -> None:
        now = next(commits) == crash
        if now and not after:
            raise CrashError
        whole(self, transactional_id, epoch)
        if now:
            raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(SqliteTransaction, "commit", commit)
        with pytest.raises(CrashError):
            main(place.flags("--images", 320, "--snapshot-images", 100))
    done = max(0, crash + after - 1)  # the first commit only admits the labels
    summary = place.learn(capsys, "--images", 320 - 32 * done)
    assert summary["digest"] == digest_of(320)
    assert summary["labelled_images"] == 320
    assert each_once(place.predictions(), 320)


def test_trouble_before_the_first_image_is_waited_out(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.send(records(64))
    troubles = iter([BrokerBusyError("trouble")])
    whole = SqliteBroker.producer

    def producer(self: SqliteBroker, transactional_id: str) -> object:
        if trouble := next(troubles, None):
            raise trouble
        return whole(self, transactional_id)

    monkeypatch.setattr(SqliteBroker, "producer", producer)
    monkeypatch.setattr("consumers.learn.SHORTEST_WAIT", 0.01)
    with caplog.at_level("INFO"):
        summary = place.learn(capsys, "--images", 64)
    assert (summary["digest"], summary["records"]) == (digest_of(64), 64)
    assert "metrics at http://127.0.0.1:" in caplog.text
    assert summary["seconds"] < 60  # counted from the first micro-batch on


@pytest.mark.parametrize(
    ("error", "happened"), [(BrokerBusyError, False), (OutcomeUnknownError, False), (OutcomeUnknownError, True)]
)
def test_trouble_in_a_commit_is_waited_out(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: type[Exception], happened: bool
) -> None:
    place.send(records(320))
    commits = iter(range(1000))
    whole = SqliteTransaction.commit

    def commit(self: SqliteTransaction, transactional_id: str, epoch: int) -> None:
        trouble = next(commits) in (3, 4)
        if happened or not trouble:
            whole(self, transactional_id, epoch)
        if trouble:
            raise error("trouble")

    registry = CollectorRegistry()
    monkeypatch.setattr(SqliteTransaction, "commit", commit)
    monkeypatch.setattr("consumers.learn.SHORTEST_WAIT", 0.01)
    monkeypatch.setattr("consumers.learn.CollectorRegistry", lambda: registry)
    summary = place.learn(capsys, "--images", 320)
    assert summary["digest"] == digest_of(320)
    assert summary["records"] == 320
    assert each_once(place.predictions(), 320)
    kind, outcome = ("busy", "aborted") if error is BrokerBusyError else ("unknown", "unknown")
    for name, labels, expected in (
        ("transactions", {"outcome": outcome}, 2),
        ("transactions", {"outcome": "committed"}, 9 if happened else 11),
        ("broker_errors", {"kind": kind}, 2),
        ("reconnects", {}, 2),
        ("rebalances", {}, 0),
    ):
        assert registry.get_sample_value(f"marketplace_{name}_total", labels) == expected
    assert registry.get_sample_value("marketplace_at_work") == 0


def test_a_crash_in_the_middle_of_a_snapshot_changes_nothing(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send(records(320))

    def sync(_: Path) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files._sync_folder", sync)
        with pytest.raises(CrashError):
            main(place.flags("--images", 320, "--snapshot-images", 100))
    done = place.position()
    assert done >= 128
    assert place.learn(capsys, "--images", 320 - done)["digest"] == digest_of(320)


def test_kill_9_at_any_moment_changes_nothing(place: Place, capsys: Capture) -> None:
    """Killed when it has come this far; by the time the signal arrives it is somewhere in the next micro-batches."""
    total = 6400
    place.send(records(total))
    with place.broker() as broker:
        broker.ensure_topics([Topic("predictions")])
        watch = broker.consumer("watch", "predictions")
        for _ in range(3):
            with place.learner("--batch-size", 16, "--snapshot-images", 200) as process:
                seen = 0
                while seen < 300:
                    served = watch.poll(300, 30.0)
                    assert served, "nothing came for thirty seconds"
                    seen += len(served)
                process.send_signal(signal.SIGKILL)
    position = place.position()
    assert 0 < position < total
    summary = place.learn(capsys, "--images", total - position, "--batch-size", 256)
    assert summary["digest"] == digest_of(total)
    assert summary["labelled_images"] == total
    assert each_once(place.predictions(), total)


def test_a_topic_made_anew_is_refused(place: Place, capsys: Capture) -> None:
    place.send(records(100))
    place.learn(capsys, "--images", 100)
    for file in place.folder.glob("stream.db*"):
        file.unlink()
    place.send(records(100))
    with pytest.raises(RecoveryError, match=r"made anew since the snapshots .* choose another --group"):
        main(place.flags("--images", 0))


def test_images_that_are_needed_and_gone_are_named(place: Place, capsys: Capture) -> None:
    place.send(records(1000))
    place.learn(capsys, "--images", 1000)
    place.lose_snapshots()
    with place.broker() as broker:
        broker.ensure_topics([Topic("images", 1, retention_records=100)])
    place.send(records(400, seed=1))
    with pytest.raises(RecoveryError, match=r"images from offset 0 to \d+ are needed .* the topic begins at \d+"):
        main(place.flags("--images", 0))


def test_lost_snapshots_are_rebuilt_from_the_topic(place: Place, capsys: Capture) -> None:
    place.send(records(300))
    place.learn(capsys, "--images", 300)
    place.lose_snapshots()
    again = place.learn(capsys, "--images", 0)
    assert (again["digest"], again["labelled_images"]) == (digest_of(300), 300)


def test_a_damaged_newest_snapshot_is_passed_over(place: Place, capsys: Capture) -> None:
    place.send(records(320))
    place.learn(capsys, "--images", 320, "--snapshot-images", 100)
    newest = max(place.folder.rglob("*.safetensors"))
    data = bytearray(newest.read_bytes())
    data[-1000] ^= 1
    newest.write_bytes(data)
    assert place.learn(capsys, "--images", 0)["digest"] == digest_of(320)
