"""Taking images back: what is left is the model of one that never saw them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from consumers import learn
from pipeline.broker import Message
from pipeline.errors import SettingsError, SnapshotError
from pipeline.features import make
from pipeline.history.commands import main
from pipeline.history.retract import Choice
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import ImageRecord
from tests.consumers.harness import FILTERS, Place, records
from tests.pipeline.synthetic import CLASSES, stream

Capture = pytest.CaptureFixture[str]
IMAGES = 400
ZERO = Sums.zero(FILTERS.width)
OURS = ClearingIdentity.of(FILTERS, "squared").digest


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.send(records(IMAGES), partitions=2)
    return place


def history(place: Place, capsys: Capture, command: str, *more: object) -> dict[str, Any]:
    """What the program prints for other programs."""
    where = ("--broker", place.url, "--topic-prefix", place.prefix, "--group", place.group)
    capsys.readouterr()
    main([command, *where, "--snapshots", str(place.folder / "snapshots"), *map(str, more), "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def digest_without(*places: int, label: str = "") -> str:
    """The digest of a learner that never saw those images."""
    images, labels = stream(IMAGES)
    kept = [i for i, name in enumerate(labels) if i not in places and name != label]
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    learner.add(learner.settle(learner.quote(images[kept]), [labels[i] for i in kept]))
    return learner.sums().digest(ClearingIdentity.of(FILTERS, "squared").digest)


def test_first_it_says_what_it_would_take_back_and_does_nothing(place: Place, capsys: Capture) -> None:
    before = place.learn(capsys, "--images", IMAGES)["digest"]
    found = history(place, capsys, "retract", "--label", CLASSES[0])
    count = stream(IMAGES)[1].count(CLASSES[0])
    assert (found["done"], found["images"], found["classes"]) == (False, count, {CLASSES[0]: count})
    assert place.learn(capsys, "--images", 0)["digest"] == before


def test_what_was_taken_back_was_never_seen_also_by_learners_that_start_later(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES, "--snapshot-images", 100)
    assert history(place, capsys, "retract", "--label", CLASSES[0], "--yes")["done"]
    assert history(place, capsys, "retract", "--id", "0/00007", "--yes")["images"] <= 1
    places = (7,)
    for _ in range(2):
        again = place.learn(capsys, "--images", 0)
        assert again["digest"] == digest_without(*places, label=CLASSES[0])
    place.lose_snapshots()
    assert place.learn(capsys, "--images", 0)["digest"] == digest_without(*places, label=CLASSES[0])


def test_an_image_is_taken_back_once(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    assert history(place, capsys, "retract", "--id", "0/00003", "--yes")["images"] == 1
    again = history(place, capsys, "retract", "--key", "0/00003", "--yes")
    assert (again["images"], again["done"]) == (0, False)
    assert place.learn(capsys, "--images", 0)["digest"] == digest_without(3)


def test_a_learner_at_work_takes_back_too(place: Place, capsys: Capture) -> None:
    with place.broker() as broker:
        learn.main(place.flags("--images", 64))
        with place.learner() as process:
            while place.position() < IMAGES:
                assert process.poll() is None, process.communicate()
            assert history(place, capsys, "retract", "--id", "0/00003", "--yes")["done"]
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=60)
        assert broker.extents("sums-learn")
    assert process.returncode == 0, errors
    assert json.loads(out)["digest"] == digest_without(3)


def test_snapshots_can_still_be_verified(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    history(place, capsys, "retract", "--label", CLASSES[1], "--yes")
    more = records(100, seed=1)
    place.send(more, 2)
    place.learn(capsys, "--images", 100)
    assert history(place, capsys, "show", "s1")["retractions"] == 1
    assert history(place, capsys, "show", "s0")["retractions"] == 0
    assert history(place, capsys, "verify", "s0")["same"]
    assert history(place, capsys, "verify", "s1")["same"]
    assert history(place, capsys, "verify", "s1", "--from", "s0")["same"]


def test_a_label_that_no_image_has_is_refused_with_those_there_are(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    there = ", ".join(repr(label) for label in sorted(set(stream(IMAGES)[1])))
    with pytest.raises(SettingsError, match=rf"--label 'dress': topic images holds no image .*; there are {there}"):
        history(place, capsys, "retract", "--label", "dress")


def test_times_choose_too(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    assert history(place, capsys, "retract", "--to", "2001-01-01T00:00:00")["images"] == 0
    assert history(place, capsys, "retract", "--from", "2001-01-01T00:00:00+00:00")["images"] == IMAGES


def test_it_says_what_it_does_not_touch(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    capsys.readouterr()
    where = ["--broker", place.url, "--snapshots", str(place.folder / "snapshots")]
    main(["retract", *where, "--id", "0/00003"])
    out = capsys.readouterr().out
    assert out.startswith("would be taken back: 1 images\n")
    assert "not touched: the images in the topic, their predictions" in out
    assert "to do it, say --yes" in out
    assert "predictions" in history(place, capsys, "retract", "--id", "0/00003")["not_touched"]


@pytest.mark.parametrize(
    ("flags", "expected"), [([], "say which images"), (["--from", "noon"], "--from: expected a time as 2026-01-31T")]
)
def test_without_a_choice_it_refuses(place: Place, capsys: Capture, flags: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        history(place, capsys, "retract", *flags)


def test_a_group_that_has_lost_its_snapshots_takes_back_all_the_same(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    place.lose_snapshots()
    assert history(place, capsys, "retract", "--id", "0/00003", "--yes")["done"]
    assert place.learn(capsys, "--images", 0)["digest"] == digest_without(3)


def test_when_everything_is_taken_back_nothing_is_served_and_the_snapshots_say_so(
    place: Place, capsys: Capture
) -> None:
    before = place.learn(capsys, "--images", IMAGES)
    for label in sorted(set(stream(IMAGES)[1])):
        assert history(place, capsys, "retract", "--label", label, "--yes")["done"]
    place.send(records(40, seed=1), 2)
    after = place.learn(capsys, "--images", 0)  # not one image is learnt
    assert (after["settled_images"], after["digest"]) == (0, Clearing(make(FILTERS, "blas"), ZERO).sums().digest(OURS))
    assert after["generation"] == before["generation"] + 1
    newest = place.newest()
    assert (newest.images, newest.digest, len(newest.retracted)) == (0, after["digest"], len(CLASSES))
    place.learn(capsys, "--images", 20)
    assert [p["predicted"] for p in place.predictions()[-20:]] == [None] * 20


def test_a_retraction_is_in_the_next_snapshot_also_where_no_image_came(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    history(place, capsys, "retract", "--id", "0/00011", "--yes")
    place.learn(capsys, "--images", 0)
    assert place.newest().digest == digest_without(11)


def test_a_group_that_begins_with_a_model_inherits_what_was_taken_back_of_it(place: Place, capsys: Capture) -> None:
    place.learn(capsys, "--images", IMAGES)
    history(place, capsys, "retract", "--id", "0/00003", "--yes")
    place.learn(capsys, "--images", 0)
    model = str(sorted((place.folder / "snapshots").rglob("*.safetensors"))[-1])
    heir = Place(place.folder, place.broker_url, place.prefix, "heir")
    heir.learn(capsys, "--snapshot", model, "--images", 0)
    label = stream(IMAGES)[1][3]
    count = stream(IMAGES)[1].count(label) - 1
    assert history(heir, capsys, "retract", "--label", label, "--yes")["images"] == count
    assert heir.learn(capsys, "--images", 0)["digest"] == digest_without(label=label)


def test_a_group_that_begins_with_a_difference_takes_back_nothing_that_is_not_in_it(
    place: Place, capsys: Capture
) -> None:
    place.learn(capsys, "--images", 200)
    place.learn(capsys, "--images", IMAGES - 200)
    model = str(place.folder / "difference.safetensors")
    history(place, capsys, "difference", "s0", "s1", "-o", model)
    heir = Place(place.folder, place.broker_url, place.prefix, "heir")
    begun = heir.learn(capsys, "--snapshot", model, "--images", 0)
    for label in sorted(set(stream(IMAGES)[1])):
        history(heir, capsys, "retract", "--label", label, "--yes")
    after = heir.learn(capsys, "--images", 0)
    assert begun["settled_images"] == IMAGES - 200
    assert (after["settled_images"], after["digest"]) == (0, Sums.zero(FILTERS.width).digest(OURS))


def test_a_difference_across_a_retraction_is_refused_if_the_older_one_holds_the_image(
    place: Place, capsys: Capture
) -> None:
    place.learn(capsys, "--images", 200)
    place.learn(capsys, "--images", IMAGES - 200)
    history(place, capsys, "retract", "--id", "0/00003", "--yes")
    place.learn(capsys, "--images", 0)
    with pytest.raises(SnapshotError, match="between the two snapshots 1 images were taken back that the older one"):
        history(place, capsys, "difference", "s0", "s2", "-o", place.folder / "across.safetensors")
    assert not (place.folder / "across.safetensors").exists()


def test_a_record_without_a_time_is_chosen_where_no_time_is_asked_for() -> None:
    message = Message("images", 0, 3, -1, b"key", b"", ())
    image = ImageRecord("id", "/s", b"", "dress")
    assert Choice(label="dress").matches(message, image)
    assert Choice(end=5).matches(message, image)
    assert not Choice(begin=0).matches(message, image)


def test_images_of_classes_for_which_there_was_no_room_are_not_taken_back(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.images.MOST_CLASSES", 2)
    place.learn(capsys, "--images", IMAGES, "--batch-size", 1)
    for label in CLASSES:
        history(place, capsys, "retract", "--label", label, "--yes")
    after = place.learn(capsys, "--images", 0)
    assert (after["settled_images"], after["digest"]) == (0, ZERO.digest(OURS))
    place.lose_snapshots()
    assert place.learn(capsys, "--images", 0)["digest"] == ZERO.digest(OURS)


def test_which_classes_there_is_room_for_is_decided_once(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery reads one partition after the other, and not in turn as the learner first did."""
    monkeypatch.setattr("pipeline.records.images.MOST_CLASSES", 3)
    before = place.learn(capsys, "--images", IMAGES, "--batch-size", 2)
    place.lose_snapshots()
    assert place.learn(capsys, "--images", 0)["digest"] == before["digest"]
    assert history(place, capsys, "verify")["same"]
