"""Classifying image files with what was learnt, as a person with a snapshot would."""

import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import MarketstreamError, RecordError, SnapshotError
from pipeline.features import Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.settings import Settings
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.predict import load, main
from pipeline.snapshots.snapshot import Folder, Snapshot
from tests.pipeline.synthetic import CLASSES, stream

ROOT = Path(__file__).parents[3]
FILTERS = Filters(seed=0, count=4)
IDENTITY = ClearingIdentity.of(FILTERS, "squared")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def learnt() -> Sums:
    """The sums of a small learner that has seen 300 images."""
    images, labels = stream(300)
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    learner.add(learner.settle(learner.quote(images), labels))
    return learner.sums()


@pytest.fixture
def folder(tmp_path: Path, learnt: Sums, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present directory: a snapshot and twelve images that the learner has not seen."""
    monkeypatch.chdir(tmp_path)
    snapshots.write(Snapshot(learnt, IDENTITY), Path("s.safetensors"))
    for i, image in enumerate(stream(12, seed=1)[0]):
        Image.fromarray(image).save(f"{i:02}.png")
    return tmp_path


LABELS = stream(12, seed=1)[1]
FILES = [f"{i:02}.png" for i in range(12)]


def classify(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "--snapshot", "s.safetensors", *arguments])
    assert main() == 0


@pytest.mark.usefixtures("folder")
def test_images_are_classified(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    classify(monkeypatch, "--json", *FILES)
    results: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [r["image"] for r in results] == FILES
    assert [r["predicted"] for r in results] == LABELS
    for result in results:
        scores = list(result["scores"].values())
        assert set(result["scores"]) == set(CLASSES)
        assert next(iter(result["scores"])) == result["predicted"]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.usefixtures("folder")
def test_the_table_names_the_class_and_the_runner_up(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    classify(monkeypatch, "--json", FILES[0])
    best = list(json.loads(capsys.readouterr().out)[0]["scores"].items())
    classify(monkeypatch, FILES[0])
    row = next(line for line in capsys.readouterr().out.splitlines() if FILES[0] in line)
    assert row.replace("│", " ").split() == [FILES[0], *(t for name, s in best[:2] for t in (name, f"{s:.2f}"))]


def test_a_long_path_is_shown_whole(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{'long-' * 30}name.png"
    (folder / FILES[0]).rename(name)
    classify(monkeypatch, name)
    cells = [line.split("│")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(cell.strip() for cell in cells) == name


def test_colour_is_made_grey(folder: Path) -> None:
    with Image.open(FILES[0]) as image:
        image.convert("RGB").save("colour.png")
    assert np.array_equal(load(folder / "colour.png"), stream(12, seed=1)[0][0])


def png(content: bytes, side: int) -> bytes:
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [1, 27, 29, 1000])
def test_another_size_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(zlib.compress(bytes(side * (side + 1))), side))
    with pytest.raises(RecordError, match=f"^{path}: {side}×{side} pixels; 28×28 are needed$") as error:
        load(path)
    assert error.value.reason == "shape"


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_an_enormous_image_is_refused(tmp_path: Path, side: int) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(b"", side))
    with pytest.raises(RecordError, match=f"^{path}: "):
        load(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a", png(b"nothing", 28)])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"^{path}: cannot be read as an image: ") as error:
        load(path)
    assert error.value.reason == "pixels"


@pytest.mark.parametrize("name", ["missing.png", ".", "x" * 300])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match=f"^{tmp_path / name}: "):
        load(tmp_path / name)


def test_no_damage_to_an_image_is_any_other_error(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(stream(1)[0][0]).save(buffer, "PNG")
    path, sound = tmp_path / "image.png", buffer.getvalue()
    damaged = [sound[:length] for length in range(len(sound))]
    damaged += [sound[:i] + bytes([sound[i] ^ 0xFF]) + sound[i + 1 :] for i in range(len(sound))]
    damaged += [sound[:i] + bytes([sound[i] ^ 0x01]) + sound[i + 1 :] for i in range(len(sound))]
    for content in damaged:
        path.write_bytes(content)
        with suppress(RecordError):
            assert load(path).shape == (28, 28)


@pytest.mark.usefixtures("folder")
def test_one_bad_file_is_named_and_nothing_is_printed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordError, match=r"^bad\.png: "):
        classify(monkeypatch, FILES[0], "bad.png", FILES[1])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("folder")
def test_a_snapshot_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.write(Snapshot(Sums.zero(FILTERS.width), IDENTITY), Path("s.safetensors"))
    with pytest.raises(SnapshotError, match=r"^s\.safetensors: nothing was learnt yet$"):
        classify(monkeypatch, FILES[0])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("part", ["trunk", "preprocessing", "schema"])
def test_a_snapshot_of_another_version_is_refused(part: str, learnt: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(IDENTITY, **{part: "another"})
    snapshots.write(Snapshot(learnt, other), Path("s.safetensors"))
    with pytest.raises(SnapshotError, match=f"another version: {part} another is not "):
        classify(monkeypatch, FILES[0])


@pytest.mark.usefixtures("folder")
def test_a_damaged_snapshot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("s.safetensors").write_bytes(Path("s.safetensors").read_bytes()[:-1])
    with pytest.raises(MarketstreamError, match=r"^s\.safetensors: damaged"):
        classify(monkeypatch, FILES[0])


def test_the_program_says_what_is_wrong_in_one_line_and_exits_with_1(folder: Path) -> None:
    files = [str(folder / name) for name in ("s.safetensors", "no.png")]
    command = [sys.executable, "-m", "pipeline.snapshots.predict", "--snapshot", *files]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: {files[1]}: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.usefixtures("folder")
def test_without_a_snapshot_it_takes_the_newest_of_the_group_that_is_sound(capsys: Capture, learnt: Sums) -> None:
    kept = Folder.of(Settings(snapshots=Path("state"), topic_prefix="mine.", group="g"))
    kept.save(Snapshot(learnt, IDENTITY))
    kept.save(Snapshot(learnt, IDENTITY)).write_bytes(b"damaged")
    assert main(["--snapshots", "state", "--topic-prefix", "mine.", "--group", "g", "--json", FILES[0]]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["predicted"] == LABELS[0]
    with pytest.raises(MarketstreamError, match=r"no snapshot in state/mine\.other"):
        main(["--snapshots", "state", "--topic-prefix", "mine.", "--group", "other", FILES[0]])
