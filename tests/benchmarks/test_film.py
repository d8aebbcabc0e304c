"""The film shows the images that were predicted, framed as they were predicted."""

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import film
from consumers import learn
from pipeline.broker import Record
from pipeline.errors import MarketstreamError, TopicError
from pipeline.records.images import decode, encode
from pipeline.records.topics import Topics
from tests.consumers.harness import Place, records
from tests.pipeline.synthetic import CLASSES

IMAGES = 600
OLD = CLASSES[:2]
WINDOW = 20

Capture = pytest.CaptureFixture[str]


def in_two_phases(some: list[Record]) -> Iterator[Record]:
    """First the images of two classes, then those of the other two; each tenth one has lost its label."""
    images = [decode(record.value, record.headers) for record in some]
    for phase, mine in (("first", True), ("second", False)):
        for i, image in enumerate(images):
            if (image.label in OLD) == mine:
                yield encode(image._replace(source=f"/test/{phase}", label=image.label if i % 10 else None), "images")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.send(in_two_phases(records(IMAGES)))
    with redirect_stdout(StringIO()):
        learn.main(place.flags("--images", IMAGES))
    return place


def read(place: Place, group: str = "learn") -> film.Story:
    with place.broker() as broker:
        return film.read(broker, Topics(), group, WINDOW)


def test_old_classes_are_those_of_the_first_phase(place: Place) -> None:
    story = read(place)
    assert story.old == set(OLD)
    assert [m.images for m in story.moments] == [256, 512, 600]
    old, new = story.means(old=True), story.means(old=False)
    assert np.isnan(new[0])
    assert 0 < new[1] <= new[2] <= 1
    assert old[2] > 0.9
    with place.broker() as broker:
        assert [m.images for m in film.read(broker, Topics(), "learn", WINDOW, 300).moments] == [256, 300]


def test_the_images_of_a_moment_are_those_that_were_predicted(place: Place) -> None:
    served = read(place).moments[1].served
    with place.broker() as broker:
        shown = film.pixels(broker, Topics(), served)
    sent = {image.id: image for r in records(IMAGES) for image in [decode(r.value, r.headers)]}
    assert [image.tobytes() for image in shown] == [sent[s["id"]].pixels for s in served]


def test_frames_are_green_where_right_red_where_wrong_grey_without_label_and_new_classes_come_last(
    place: Place,
) -> None:
    labels = ["up", "left", "left", None]
    served = [{"label": label, "predicted": "left"} for label in labels]
    page = film.grid(np.zeros((4, 28, 28), np.uint8), served, read(place).old)
    colours = [page.getpixel((film.TILE * i, 0)) for i in range(4)]
    assert colours == [film.RIGHT, film.RIGHT, film.UNKNOWN, film.WRONG]
    assert page.getpixel((film.TILE // 2, film.TILE // 2)) == (0, 0, 0)


def test_a_film_is_written(place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.folder / "film.gif"
    monkeypatch.setattr(
        sys, "argv", ["film", "--broker", place.url, "--out", str(path), "--start", "256", "--json", "--frames", "2"]
    )
    assert film.main() == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(path),
        "frames": 2,
        "bytes": path.stat().st_size,
        "old": sorted(OLD),
    }
    with Image.open(path) as shown:
        assert (shown.format, getattr(shown, "n_frames", 1)) == ("GIF", 2)
        assert shown.size == (16 * film.TILE + 8 + 460, film.HEIGHT)


def test_a_group_without_predictions_and_a_part_without_images_are_named(place: Place, tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="topic predictions holds no prediction of group nobody"):
        read(place, "nobody")
    with pytest.raises(MarketstreamError, match="--start 600"):
        film.chosen(read(place), 600, 5)
    frames = [Image.new("RGB", (8, 8))]
    with pytest.raises(MarketstreamError, match="the film cannot be written"):
        film.write(frames, tmp_path / "no" / "film.gif", 1)
