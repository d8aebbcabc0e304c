"""The consumer with ``marketplace``: what was served can be rebuilt to the bit, from base and journal alone."""

import json
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consumers.learn import main
from consumers.recovery.marketplace import JournalLog
from pipeline.broker import Partition, connect
from pipeline.broker.sqlite.broker import SqliteTransaction
from pipeline.errors import (
    GroupBusyError,
    MarketstreamError,
    OutcomeUnknownError,
    RecoveryError,
    SettingsError,
    SnapshotError,
)
from pipeline.history import commands as history
from pipeline.learners.identity import MarketplaceIdentity
from pipeline.learners.marketplace import make
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.network import Shape
from pipeline.learners.marketplace.terms import PUBLISHED, STREAM, Terms
from pipeline.records.topics import Topics
from pipeline.snapshots import predict
from tests.consumers.harness import Place, each_once, records
from tests.pipeline.synthetic import stream

Capture = pytest.CaptureFixture[str]

BASE = Base.untrained(Shape(28, (2, 4), (5, 3)), 0)
SIZE = 32


class CrashError(Exception):
    pass


def digest_of(count: int, terms: Terms = STREAM, size: int = SIZE) -> str:
    """The digest of a learner that was given the same micro-batches without a broker."""
    images, labels = stream(count)
    learner = Marketplace(BASE, make(BASE.shape, "blas"), terms)
    for start in range(0, count, size):
        some = slice(start, start + size)
        learner.add(learner.settle(learner.quote(images[some]), labels[some]))
        learner.clear()
    return learner.base().digest


def paths(place: Place, *more: object) -> tuple[object, ...]:
    """The flags of a learner ``marketplace`` with a small network."""
    file = place.folder / "base.safetensors"
    if not file.exists():
        BASE.write(file)
    return ("--learner", "marketplace", "--base", file, "--batch-wait", 30, *more)


def failing_commit(number: int, after: bool, error: Callable[[], Exception]) -> Callable[..., None]:
    """In place of the embedded broker's commit: the one of that number fails, before or after it took place."""
    commits, whole = iter(range(1000)), SqliteTransaction.commit

    def commit(self: SqliteTransaction, transactional_id: str, epoch: int) -> None:
        now = next(commits) == number
        if after or not now:
            whole(self, transactional_id, epoch)
        if now:
            raise error()

    return commit


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def learnt(place: Place, capsys: Capture) -> dict[str, Any]:
    """The summary of a run over ten full micro-batches."""
    place.send(records(320))
    return place.learn(capsys, *paths(place, "--images", 320, "--snapshot-images", 100))


def without_images(place: Place) -> None:
    with place.broker() as broker:
        broker.delete_before(Partition("images", 0), 320)


def test_it_learns_what_it_learns_without_a_broker(place: Place, learnt: dict[str, Any]) -> None:
    assert learnt["digest"] == digest_of(320) == place.newest().digest
    assert each_once(place.predictions(), 320)
    assert (learnt["generation"], learnt["settled_images"], learnt["labelled_images"]) == (10, 320, 320)
    assert len(list(place.folder.rglob("snapshot-*.safetensors"))) == 3
    assert [p["generation"] for p in place.predictions()] == [i // SIZE for i in range(320)]


def test_the_terms_of_the_articles_come_to_the_same_bits_too(place: Place, capsys: Capture) -> None:
    place.send(records(128))
    flags = paths(place, "--learner", "marketplace-published", "--images")
    place.learn(capsys, *flags, 64, "--snapshot-images", 1000)
    place.lose_snapshots()
    assert place.learn(capsys, *flags, 64)["digest"] == digest_of(128, PUBLISHED)


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("crash", [0, 1, 6])
def test_a_crash_around_any_commit_changes_nothing(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, crash: int, after: bool
) -> None:
    place.send(records(320))
    with monkeypatch.context() as patch:
        patch.setattr(SqliteTransaction, "commit", failing_commit(crash, after, CrashError))
        with pytest.raises(CrashError):
            main(place.flags(*paths(place, "--images", 320, "--snapshot-images", 100)))
    summary = place.learn(capsys, *paths(place, "--images", 320 - SIZE * (crash + after)))
    assert summary["digest"] == digest_of(320)
    assert summary["labelled_images"] == 320
    assert each_once(place.predictions(), 320)


@pytest.mark.parametrize("happened", [False, True])
def test_a_commit_of_unknown_outcome_is_looked_up(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    place.send(records(320))
    commit = failing_commit(5, happened, lambda: OutcomeUnknownError("lost"))
    monkeypatch.setattr(SqliteTransaction, "commit", commit)
    monkeypatch.setattr("consumers.learn.SHORTEST_WAIT", 0.01)
    summary = place.learn(capsys, *paths(place, "--images", 320))
    assert (summary["digest"], summary["records"]) == (digest_of(320), 320)
    assert each_once(place.predictions(), 320)


def test_kill_9_at_any_moment_changes_nothing(place: Place, capsys: Capture) -> None:
    total = 960
    place.send(records(total))
    for target in (200, 500):
        with place.learner(*paths(place, "--snapshot-images", 300)) as process:
            place.await_position(process, target)
            process.send_signal(signal.SIGKILL)
    summary = place.learn(capsys, *paths(place, "--images", total - place.position()))
    assert summary["digest"] == digest_of(total)
    assert each_once(place.predictions(), total)


def test_the_journal_rebuilds_the_model_without_a_single_image(
    place: Place, capsys: Capture, learnt: dict[str, Any]
) -> None:
    newest = max(place.folder.rglob("snapshot-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    without_images(place)
    assert place.learn(capsys, *paths(place, "--images", 0))["digest"] == learnt["digest"]
    place.lose_snapshots()
    again = place.learn(capsys, *paths(place, "--images", 0))
    assert (again["digest"], again["settled_images"]) == (learnt["digest"], 320)


def test_what_was_served_from_several_partitions_is_rebuilt(place: Place, capsys: Capture) -> None:
    place.send(records(300), partitions=3)
    first = place.learn(capsys, *paths(place, "--images", 200))
    second = place.learn(capsys, *paths(place, "--images", 100))
    assert each_once(place.predictions(), 300)
    assert second["generation"] > first["generation"]
    place.lose_snapshots()
    assert place.learn(capsys, *paths(place, "--images", 0))["digest"] == second["digest"]


def test_what_cannot_be_read_is_a_dead_letter_and_unlabelled_images_are_served(place: Place, capsys: Capture) -> None:
    some = records(160)
    unlabelled = [r._replace(headers=tuple(h for h in r.headers if h[0] != "ce_label")) for r in some[64:96]]
    bad = [record._replace(value=b"") for record in some[:SIZE]]
    place.send([*bad, *some[:64], *unlabelled, *some[96:], *bad[:5]])
    flags = paths(place, "--images")
    first = place.learn(capsys, *flags, 100)
    assert (first["dead_letters"], first["settled_images"]) == (32, 64)
    last = place.learn(capsys, *flags, 97)
    assert (last["dead_letters"], last["settled_images"]) == (5, 128)
    place.lose_snapshots()
    assert place.learn(capsys, *flags, 0)["digest"] == last["digest"]


def test_a_frozen_consumer_serves_the_leaders_and_does_not_learn(
    place: Place, capsys: Capture, learnt: dict[str, Any]
) -> None:
    place.send(records(64, seed=1))
    frozen = place.learn(capsys, *paths(place, "--images", 64, "--freeze"))
    assert frozen["digest"] == learnt["digest"]
    assert each_once(place.predictions("learn-frozen"), 64, seed=1)
    assert place.learn(capsys, *paths(place, "--images", 64))["settled_images"] == 384


@pytest.mark.usefixtures("learnt")
def test_another_base_or_learner_is_refused_with_the_difference(place: Place) -> None:
    other = place.folder / "other.safetensors"
    Base.untrained(BASE.shape, 1).write(other)
    flags = paths(place, "--images", 0)
    for more, differs in (
        (("--base", other), rf"base {BASE.digest} is not \w+"),
        (("--seed", 1), "seed 0 is not 1"),
        (
            ("--learner", "marketplace-published"),
            r"vendors \[1, 1, 16\] is not \[4, 4, 4\], last outputs is not parameters",
        ),
    ):
        with pytest.raises(SnapshotError, match=rf"another identity \({differs}.*use the settings"):
            main(place.flags(*flags, *more))
    with pytest.raises(SnapshotError, match="learner marketplace is not clearing"):
        main(place.flags("--images", 0))
    place.lose_snapshots()
    with pytest.raises(RecoveryError, match=r"another identity \(base \w+ is not"):
        main(place.flags(*flags, "--base", other))
    with pytest.raises(
        RecoveryError, match="group learn learns with marketplace, not with clearing: choose another --group"
    ):
        main(place.flags("--images", 0))


def test_a_group_that_learns_with_clearing_is_refused(place: Place, capsys: Capture) -> None:
    place.send(records(64))
    place.learn(capsys, "--images", 64)
    place.lose_snapshots()
    with pytest.raises(RecoveryError, match="learns with clearing, not with marketplace: choose another --group"):
        main(place.flags(*paths(place, "--images", 0)))


@pytest.mark.usefixtures("learnt")
def test_a_journal_that_is_gone_is_named(place: Place) -> None:
    place.lose_snapshots()
    with place.broker() as broker:
        broker.delete_before(Partition("updates", 0), 5)
    with pytest.raises(RecoveryError, match="the journal is needed to rebuild the model"):
        main(place.flags(*paths(place, "--images", 0)))


def test_a_second_learner_of_the_group_is_refused(place: Place) -> None:
    place.send(records(SIZE))
    with closing(connect(place.url)) as broker, closing(broker.consumer("learn", "images")):
        assert broker.members("learn") == 1
        with pytest.raises(GroupBusyError, match="has its one consumer"):
            main(place.flags(*paths(place)))
    with place.broker() as broker:
        assert broker.members("learn") == 0


def test_of_several_members_only_the_one_with_the_first_partition_stays_and_it_waits_for_all(place: Place) -> None:
    place.send(records(SIZE), partitions=3)
    topics = Topics()
    with place.broker() as broker:
        broker.ensure_topics(topics.results())
        log = JournalLog(broker, topics, "learn", identity=MarketplaceIdentity.of(BASE.digest, STREAM), position=0)
        assert log.committed([0, 1]) is None
        assert log.committed([0, 1, 2]) == {}
        with pytest.raises(GroupBusyError, match=r"has its one learner already: .* cannot be shared"):
            log.committed([1, 2])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--learner", "clearing", "--base", "x"),
            "clearing begins with a --snapshot; --base is for --learner mark",
        ),
        (
            ("--learner", "marketplace", "--snapshot", "x"),
            "marketplace begins with a --base, which may be one of its snap",
        ),
        (("--learner", "slda"), "Input should be 'clearing', 'marketplace' or 'marketplace-published'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(place: Place, flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        main(place.flags(*flags))


def test_a_snapshot_is_a_base_to_begin_with(place: Place, capsys: Capture, learnt: dict[str, Any]) -> None:
    snapshot = max(place.folder.rglob("snapshot-*.safetensors"))
    begun = place.learn(capsys, "--learner", "marketplace", "--base", snapshot, "--group", "second", "--images", 64)
    assert (begun["settled_images"], begun["generation"]) == (64, 2)
    assert begun["accuracy"] > learnt["accuracy"]


def test_history_and_predict_do_what_makes_sense_and_refuse_the_rest(
    place: Place, capsys: Capture, learnt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--broker", place.url, "--snapshots", str(place.folder / "snapshots"))

    def told(*words: str) -> Any:
        capsys.readouterr()
        assert history.main([*words, *where, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    rows = told("list")["rows"]
    assert rows[-1]["digest"] == learnt["digest"]
    assert [row["settled_images"] for row in rows if row["kind"] == "micro-batch"] == [*range(SIZE, 321, SIZE)]
    shown = told("show", rows[-1]["name"])
    assert (shown["digest"], shown["base"], shown["settled_images"]) == (learnt["digest"], BASE.digest, 320)
    assert told("show", "0")["images"] == SIZE
    snapshots = [row["name"] for row in rows if row["kind"] == "snapshot"]
    for words in (
        ("stretch", *snapshots[:2], "-o", str(place.folder / "stretch.safetensors")),
        ("verify",),
        ("retract", "--id", "0/00003"),
    ):
        with pytest.raises(MarketstreamError, match="marketplace"):
            history.main([*words, *where])
    image = place.folder / "image.png"
    Image.fromarray(stream(1)[0][0]).save(image)
    file = shown["file"]
    monkeypatch.setattr("sys.argv", ["predict", "--snapshot", file, str(image), "--json"])
    capsys.readouterr()
    assert predict.main() == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["predicted"] in learnt["classes"]
