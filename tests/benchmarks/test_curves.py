"""The picture of rolling accuracy, drawn from the predictions that a learner recorded."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import curves
from consumers import learn
from pipeline.broker import Record
from pipeline.errors import MarketstreamError, TopicError
from pipeline.records.images import decode, encode
from pipeline.records.topics import Topics
from tests.consumers.harness import Place, records
from tests.pipeline.synthetic import CLASSES

IMAGES = 300
WINDOW = 20
PHASES = [(0, "first"), (100, "second"), (200, "first")]

Capture = pytest.CaptureFixture[str]


def of_phases(some: list[Record]) -> list[Record]:
    """The records, a hundred from each phase; every tenth has lost its label."""
    images = [decode(record.value, record.headers) for record in some]
    return [
        encode(image._replace(source=f"/test/{PHASES[i // 100][1]}", label=image.label if i % 10 else None), "images")
        for i, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where two groups of learners have made their predictions."""
    place = Place(tmp_path_factory.mktemp("place"))
    place.send(of_phases(records(IMAGES)))
    with redirect_stdout(StringIO()):
        learn.main(place.flags("--images", IMAGES))
        learn.main(place.flags("--images", 100, "--group", "other"))
    return place


def read(place: Place, group: str = "learn") -> curves.Curves:
    with place.broker() as broker:
        return curves.read(broker, Topics(), group, WINDOW)


def by_hand(predictions: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Where images of a class came, and the share of right ones among its last."""
    mine = [(i, p["predicted"] == name) for i, p in enumerate(predictions, 1) if p["label"] == name]
    last = [[right for _, right in mine[max(0, end - WINDOW) : end]] for end in range(1, len(mine) + 1)]
    return [i for i, _ in mine], [sum(some) / len(some) for some in last]


def test_curves_are_the_rolling_accuracy_of_each_class(place: Place) -> None:
    drawn, predictions = read(place), place.predictions()
    assert set(drawn.points) == set(CLASSES)
    for name, points in drawn.points.items():
        assert points == by_hand(predictions, name)
        assert points[1][0] == 0.0
        assert points[1][-1] > 0.9


def test_images_without_a_label_count_as_images_of_the_stream(place: Place) -> None:
    drawn = read(place)
    assert drawn.images == IMAGES
    assert sum(len(xs) for xs, _ in drawn.points.values()) == IMAGES * 9 // 10


def test_phases_begin_where_the_source_changes(place: Place) -> None:
    assert read(place).phases == PHASES


def test_long_streams_are_drawn_with_fewer_points(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 10)
    predictions = place.predictions()
    for name, (xs, ys) in read(place).points.items():
        assert 2 <= len(xs) <= 11
        whole = dict(zip(*by_hand(predictions, name), strict=True))
        assert ys == [whole[x] for x in xs]


def test_predictions_of_another_group_are_left_out(place: Place) -> None:
    drawn, predictions = read(place, "other"), place.predictions("other")
    assert (drawn.images, drawn.phases) == (100, PHASES[:1])
    assert all(points == by_hand(predictions, name) for name, points in drawn.points.items())


def test_a_group_without_predictions_is_named(place: Place) -> None:
    with pytest.raises(TopicError, match="topic predictions holds no prediction of group nobody"):
        read(place, "nobody")


def test_a_broker_without_predictions_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="predictions"):
        read(Place(tmp_path))


def draw(place: Place, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["curves", "--broker", place.url, *arguments])
    assert curves.main() == 0


def test_a_picture_is_written(place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.folder / "accuracy.png"
    draw(place, monkeypatch, "--out", str(path), "--json")
    assert json.loads(capsys.readouterr().out) == {
        "file": str(path),
        "images": IMAGES,
        "phases": [list(phase) for phase in PHASES],
    }
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (1320, 840))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 4  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["no/such/folder/accuracy.png", "accuracy.xyz"])
def test_a_picture_that_cannot_be_written_is_named(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MarketstreamError, match=name):
        draw(place, monkeypatch, "--out", str(place.folder / name))
