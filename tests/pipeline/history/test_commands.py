"""Looking back at what was learnt: list, show, stretch, verify, as a person at a terminal or a program would."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers import learn
from pipeline.broker import Record, Topic
from pipeline.errors import MarketstreamError, RecoveryError, SettingsError, SnapshotError, TopicError
from pipeline.features import make
from pipeline.history.commands import main
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.snapshots import predict
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import Snapshot
from tests.consumers.harness import FILTERS, ROOT, Place, records
from tests.pipeline.synthetic import stream

Capture = pytest.CaptureFixture[str]
IMAGES = 600


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """600 images, learnt in micro-batches of 32, with a snapshot (s0 to s2) after at least 200. Only to be read."""
    place = Place(tmp_path_factory.mktemp("past"))
    place.send(records(IMAGES))
    learn.main(place.flags("--images", IMAGES, "--snapshot-images", 200))
    return place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def flags(place: Place, command: str, *more: object) -> list[str]:
    where = ("--broker", place.url, "--topic-prefix", place.prefix, "--group", place.group)
    return [command, *where, "--snapshots", str(place.folder / "snapshots"), *map(str, more)]


def history(place: Place, capsys: Capture, *more: object, status: int = 0) -> dict[str, Any]:
    """What the program prints for other programs."""
    capsys.readouterr()
    command, *rest = map(str, more)
    assert main(flags(place, command, *rest, "--json")) == status
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def text(place: Place, capsys: Capture, *more: object, status: int = 0) -> str:
    """What the program prints for people."""
    capsys.readouterr()
    command, *rest = map(str, more)
    assert main(flags(place, command, *rest)) == status
    return capsys.readouterr().out


def file(place: Place, number: int) -> Path:
    return place.folder / "snapshots" / place.group / f"snapshot-{number:010}.safetensors"


def digest_between(first: int, end: int) -> str:
    """The digest of a learner that was given these images of the stream and no others."""
    images, labels = stream(IMAGES)
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    learner.add(learner.settle(learner.quote(images[first:end]), labels[first:end]))
    return learner.sums().digest(ClearingIdentity.of(FILTERS, "squared").digest)


def test_the_list_tells_every_micro_batch_and_snapshot_in_the_order_of_time(past: Place, capsys: Capture) -> None:
    result = history(past, capsys, "list", "--last", 1000)
    batches = [row for row in result["rows"] if row["kind"] == "micro-batch"]
    files = [row for row in result["rows"] if row["kind"] == "snapshot"]
    assert (len(batches), len(files)) == (result["micro_batches"], result["snapshots"]) == (19, 3)
    assert [row["time"] for row in result["rows"]] == sorted(row["time"] for row in result["rows"])
    assert [row["settled_images"] for row in batches] == np.cumsum([row["images"] for row in batches]).tolist()
    assert sum(row["images"] * row["accuracy"] for row in batches) == pytest.approx(
        sum(p["predicted"] == p["label"] for p in past.predictions())
    )
    assert [(row["name"], row["digest"]) for row in files] == [
        (f"s{i}", digest_between(0, row["settled_images"])) for i, row in enumerate(files)
    ]
    assert files[-1]["settled_images"] == batches[-1]["settled_images"] == IMAGES


@pytest.mark.parametrize("last", [1, 5, 21])
def test_the_newest_are_the_end_of_the_whole_list(past: Place, capsys: Capture, last: int) -> None:
    whole = history(past, capsys, "list", "--last", 1000)
    newest = history(past, capsys, "list", "--last", last)
    assert newest == whole | {"rows": whole["rows"][-last:]}


def test_the_table_fits_into_a_terminal_and_says_how_many_there_are(
    past: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = text(past, capsys, "list", "--last", 22).splitlines()
    assert lines[-1] == "group learn: 19 micro-batches and 3 snapshots"
    assert len(lines) == 22 + 2
    digest = past.newest().digest
    assert any(line.split()[2:] == ["snapshot", "s2", line.split()[4], "600", digest[:8]] for line in lines)
    assert text(past, capsys, "list", "--last", 2).splitlines()[-1] == (
        "group learn: the newest 2 of 19 micro-batches and 3 snapshots"
    )


def test_a_group_that_has_done_nothing_has_an_empty_list(past: Place, capsys: Capture) -> None:
    result = history(past, capsys, "list", "--group", "other")
    assert result == {"micro_batches": 0, "snapshots": 0, "rows": []}
    assert text(past, capsys, "list", "--group", "other") == "group other: 0 micro-batches and 0 snapshots\n"


def test_groups_on_one_broker_have_lists_of_their_own(place: Place, capsys: Capture) -> None:
    place.send(records(64))
    place.learn(capsys, "--images", 64)
    place.send(records(64, seed=1))
    place.learn(capsys, "--images", 64, "--freeze")
    assert history(place, capsys, "list")["micro_batches"] == 2
    frozen = history(place, capsys, "list", "--group", "learn-frozen")
    assert [row["settled_images"] for row in frozen["rows"]] == [0, 0]


def test_damage_is_shown_and_does_not_hide_the_rest(
    place: Place, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    place.send(records(64))
    place.learn(capsys, "--images", 64)
    bad = Record("updates", b"{}", b"learn")
    place.send([bad, bad])
    file(place, 0).write_bytes(b"damaged")
    result = history(place, capsys, "list")
    assert (result["micro_batches"], result["snapshots"]) == (2, 1)
    assert str(file(place, 0)) in result["rows"][-1]["problem"]
    assert "passed over 2 of the journal's records, first topic updates, offset 2: not a micro-batch" in caplog.text
    assert "damaged" in text(place, capsys, "list").splitlines()[-2]
    with pytest.raises(TopicError, match="offset 3: not a micro-batch that this program can read"):
        main(flags(place, "show", 3))


def test_a_micro_batch_is_shown_as_it_was_journalled(past: Place, capsys: Capture) -> None:
    for message in past.topic("updates"):
        entry = json.loads(message.value)
        shown = history(past, capsys, "show", message.offset)
        assert {name: (c["images"], c["correct"]) for name, c in shown["classes"].items()} == {
            name: (total, entry["right"][name]) for name, total in entry["total"].items()
        }
        for key in ("from", "to", "images", "generation", "learnt", "time", "group"):
            assert shown[key] == entry[key]
        assert shown["dead_letters"] == entry["dead"]


def test_a_snapshot_is_shown_the_same_by_number_and_by_file(past: Place, capsys: Capture) -> None:
    shown = history(past, capsys, "show", "s2")
    assert history(past, capsys, "show", file(past, 2)) == shown
    snapshot = past.newest()
    assert shown["digest"] == snapshot.digest
    assert (shown["settled_images"], shown["clock"], shown["base"]) == (IMAGES, {"0": IMAGES}, "")
    assert {name: c["settled_images"] for name, c in shown["classes"].items()} == snapshot.sums.counts
    served = past.predictions()
    for name, c in shown["classes"].items():
        right = [p["predicted"] == name for p in served if p["label"] == name]
        assert (c["images"], c["correct"]) == (len(right), sum(right))


def test_people_are_shown_the_same_facts(past: Place, capsys: Capture) -> None:
    shown = text(past, capsys, "show", "s2")
    snapshot = past.newest()
    assert snapshot.digest in shown
    assert snapshot.topic_id in shown
    assert f"seed: {snapshot.identity.seed}" in shown
    batch = text(past, capsys, "show", 18)
    assert "0: 576" in batch
    assert "0: 600" in batch


def test_a_name_of_a_class_is_printed_as_it_is(place: Place, capsys: Capture) -> None:
    images, _ = stream(4)
    name = "[bold]:smile:"
    sums = Sums.zero(FILTERS.width)
    learner = Clearing(make(FILTERS, "blas"), sums)
    learner.add(learner.settle(learner.quote(images), [name] * 4))
    snapshots.write(Snapshot(learner.sums(), ClearingIdentity.of(FILTERS, "squared")), place.folder / "s.safetensors")
    assert name in text(place, capsys, "show", place.folder / "s.safetensors")


@pytest.mark.parametrize(
    ("command", "error", "problem"),
    [
        (["show", "s7"], SnapshotError, r"no snapshot s7 in .*learn: there are s0, s1, s2$"),
        (["show", "s7", "--group", "other"], SnapshotError, r"no snapshot s7 in .*other: there are none$"),
        (["show", "missing"], SnapshotError, r"^missing: no such snapshot$"),
        (["show", "19"], TopicError, r"topic updates holds no micro-batch 19 of group learn: .* 'list' shows numbers"),
        (["show", "0", "--group", "other"], TopicError, "no micro-batch 0 of group other"),
        (["list", "--last", "0"], SettingsError, "--last: expected a whole number of at least 1, but it is '0'"),
        (["list", "--topic-prefix", "x."], TopicError, r"there is no topic 'x\.updates'"),
        (["verify", "--group", "other"], SnapshotError, "no snapshot in .*other: check --snapshots"),
        (["stretch", "s1", "s0", "-o", "x"], SnapshotError, r"in partition 0 it reaches offset \d+\): name the older"),
        (["stretch", "s1", "s1", "-o", "x"], SnapshotError, "nothing was learnt between the two"),
        (["stretch", "s0", "s1", "-o", "."], SettingsError, "--out: . exists already: choose another name"),
        (["stretch", "s0", "s1", "-o", "snapshot-0000000009.safetensors"], SettingsError, "choose another name"),
        (["verify", "s0", "--from", "s1"], RecoveryError, "reaches offset .*: name an older one"),
    ],
)
def test_what_cannot_be_done_is_said(
    past: Place, command: list[str], error: type[MarketstreamError], problem: str
) -> None:
    with pytest.raises(error, match=problem) as caught:
        main([*flags(past, command[0]), *command[1:]])
    assert "\n" not in str(caught.value)


def test_the_model_of_a_stretch_is_that_of_its_images_alone(past: Place, tmp_path: Path, capsys: Capture) -> None:
    older, newer = (snapshots.read(file(past, number)) for number in (0, 2))
    out = tmp_path / "new" / "stretch.safetensors"
    result = history(past, capsys, "stretch", "s0", file(past, 2), "-o", out)
    assert result["digest"] == digest_between(older.sums.images, newer.sums.images) == snapshots.read(out).digest
    assert sum(c["settled_images"] for c in result["classes"].values()) == newer.sums.images - older.sums.images
    model = snapshots.read(out)
    images, labels = stream(50, seed=3)
    served = predict.predict(predict.learner_of(model), list(images))
    assert [one["predicted"] for one in served] == labels
    with pytest.raises(SnapshotError, match="no learner wrote this snapshot"):
        main(flags(past, "verify", out))


def test_a_learner_goes_on_from_a_stretch_where_the_newer_snapshot_ends(place: Place, capsys: Capture) -> None:
    place.send(records(IMAGES))
    place.learn(capsys, "--images", 300, "--snapshot-images", 100)
    out = place.folder / "stretch.safetensors"
    history(place, capsys, "stretch", "s0", "s1", "-o", out)
    first, middle = (snapshots.read(file(place, number)).clock[0] for number in (0, 1))
    again = place.learn(capsys, "--group", "again", "--snapshot", out, "--images", IMAGES - middle)
    assert again["digest"] == digest_between(first, IMAGES)
    place.learn(capsys, "--images", 300)
    assert history(place, capsys, "verify", "--group", "again", "--from", out)["same"]
    # The stretch is where that group began, so it is an older snapshot of it too.
    newest = place.folder / "snapshots" / "again" / "snapshot-0000000000.safetensors"
    rest = history(place, capsys, "stretch", out, newest, "-o", place.folder / "rest.safetensors")
    assert rest["digest"] == digest_between(middle, IMAGES)


def test_classes_that_did_not_come_in_a_stretch_are_not_predicted_from_it(place: Place, capsys: Capture) -> None:
    for classes in (("left", "right"), ("left", "up")):
        some = [record for record in records(300) if dict(record.headers)["ce_label"].decode() in classes]
        place.send(some)
        place.learn(capsys, "--images", len(some))
    out = place.folder / "stretch.safetensors"
    assert set(history(place, capsys, "stretch", "s0", "s1", "-o", out)["classes"]) == {"left", "up"}
    assert set(predict.learner_of(snapshots.read(out)).classes) == {"left", "up"}


def test_snapshots_that_do_not_belong_together_make_no_stretch(past: Place, tmp_path: Path) -> None:
    older, newer = (snapshots.read(file(past, number)) for number in (0, 2))
    counts = dict.fromkeys(older.sums.counts, 0)
    fewer = replace(newer, model=Sums(newer.sums.A, newer.sums.T, counts))
    for other, problem in (
        (replace(newer, identity=replace(newer.identity, seed="1")), r"different identities \(seed 0 is not 1\)"),
        (replace(newer, topic_id="another"), "learnt from different topics"),
        (replace(newer, base="another"), "began with different models"),
        (replace(newer, scores=None), "began with different models"),
        (fewer, r"holds \d+ images more of class '\w+'\): name the older one first"),
    ):
        path = tmp_path / "other.safetensors"
        snapshots.write(other, path)
        out = tmp_path / "stretch.safetensors"
        with pytest.raises(SnapshotError, match=problem):
            main(flags(past, "stretch", file(past, 0), path, "-o", out))
        assert not out.exists()


@pytest.mark.parametrize("which", [[], ["s0"], ["s2", "--from", "s0"], ["s1", "--from", "s1"]])
def test_a_snapshot_is_verified_from_the_topic(past: Place, capsys: Capture, which: list[str]) -> None:
    result = history(past, capsys, "verify", *which)
    assert result["same"]
    path = file(past, int(which[0][1]) if which else 2)
    assert result["file"] == str(path)
    assert result["digest"] == result["topic_digest"] == snapshots.read(path).digest


def test_verifying_prints_one_line(past: Place, capsys: Capture) -> None:
    digest = past.newest().digest
    assert text(past, capsys, "verify") == f"same: {file(past, 2)} has {digest}, topic images makes {digest}\n"


def test_a_snapshot_that_holds_something_else_differs(past: Place, tmp_path: Path, capsys: Capture) -> None:
    snapshot = past.newest()
    A = snapshot.sums.A.copy()
    A[-1] += 1
    path = tmp_path / "changed.safetensors"
    snapshots.write(replace(snapshot, model=Sums(A, snapshot.sums.T, snapshot.sums.counts)), path)
    result = history(past, capsys, "verify", path, status=1)
    assert (result["same"], result["topic_digest"]) == (False, snapshot.digest)
    assert result["digest"] != snapshot.digest
    assert text(past, capsys, "verify", path, status=1).startswith("differs: ")


def test_dead_letters_and_several_partitions_are_no_difference(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.images.MOST_CLASSES", 4)
    some = records(200)
    bad = [Record(r.topic, r.value[:-1], r.key, r.headers) for r in some[:40]]
    unlabelled = [Record(r.topic, r.value, r.key, tuple(h for h in r.headers if h[0] != "ce_label")) for r in some[:40]]
    fifth = [
        Record(r.topic, r.value, r.key, tuple((k, b"fifth" if k == "ce_label" else v) for k, v in r.headers))
        for r in some[:40]
    ]
    place.send([*bad, *some, *unlabelled, *fifth, *bad], partitions=1)
    summary = place.learn(capsys, "--images", 360)
    assert (summary["dead_letters"], summary["settled_images"]) == (120, 200)
    result = history(place, capsys, "verify")
    assert (result["same"], result["records"]) == (True, 360)


def test_several_partitions_are_verified_each_to_its_clock(place: Place, capsys: Capture) -> None:
    place.send(records(200), partitions=3)
    place.learn(capsys, "--images", 120, "--snapshot-images", 50)
    result = history(place, capsys, "verify")
    assert (result["same"], result["records"]) == (True, 120)
    assert history(place, capsys, "verify", "--from", "s0")["same"]


def test_a_snapshot_is_verified_on_top_of_the_model_that_it_began_with(tmp_path: Path, capsys: Capture) -> None:
    first, second = Place(tmp_path / "a"), Place(tmp_path / "b")
    first.send(records(100))
    first.learn(capsys, "--images", 100)
    second.send(records(100, seed=1))
    second.learn(capsys, "--images", 100, "--snapshot", file(first, 0))
    with pytest.raises(SnapshotError, match=r"model of digest \w{64}, which no file below .* holds: .* with --from"):
        main(flags(second, "verify"))
    assert history(second, capsys, "verify", "--from", file(first, 0))["same"]
    beside = second.folder / "snapshots" / "models"
    beside.mkdir()
    (beside / "base.safetensors").write_bytes(file(first, 0).read_bytes())
    (beside / "damaged.safetensors").write_bytes(b"")
    assert history(second, capsys, "verify")["same"]


def test_images_that_are_gone_are_named_and_an_older_snapshot_helps(place: Place, capsys: Capture) -> None:
    for seed in range(5):
        place.send(records(100, seed))
    place.learn(capsys, "--images", 500)
    with place.broker() as broker:
        broker.ensure_topics([Topic("images", 1, retention_records=500)])
    for seed in range(5, 9):
        place.send(records(100, seed))
    place.learn(capsys, "--images", 400)
    with pytest.raises(RecoveryError, match=r"images from offset 0 to \d+ are gone, .* older snapshot .* --from"):
        main(flags(place, "verify"))
    assert history(place, capsys, "verify", "--from", "s0")["same"]


def test_a_topic_made_anew_or_cut_short_is_said(past: Place, tmp_path: Path) -> None:
    for other, problem in (
        (replace(past.newest(), topic_id="another"), r"another topic than images, or that was made anew .*--broker"),
        (replace(past.newest(), clock={0: 601}), "reaches offset 601, but the topic ends at 600: records were lost"),
    ):
        path = tmp_path / "other.safetensors"
        snapshots.write(other, path)
        with pytest.raises(RecoveryError, match=problem):
            main(flags(past, "verify", path))


def test_the_program_ends_with_the_status_and_one_line(past: Place) -> None:
    for command, status in (("verify", 0), ("show", 1)):
        arguments = flags(past, command, *(["s7"] if status else []))
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.history", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert len((done.stdout + done.stderr).splitlines()) == 1
        assert ("error: no snapshot s7" if status else "same: ") in done.stdout + done.stderr
