"""The demo as a newcomer runs it, with the first images only."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.snapshots.snapshot import read

pytestmark = pytest.mark.xdist_group("one demo")

ROOT = Path(__file__).parents[1]
IMAGES = 2560


def demo(folder: Path, images: int, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "demo", "--images", str(images), "--folder", str(folder), "--json"]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def summary_of(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr
    summary: dict[str, Any] = json.loads(ended.stdout)
    return summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "demo"


@pytest.fixture(scope="module")
def ended(folder: Path) -> "subprocess.CompletedProcess[str]":
    return demo(folder, IMAGES)


def newest_digest(folder: Path) -> str:
    return read(max((folder / "snapshots").rglob("*.safetensors"))).digest


def test_it_ends_by_itself_and_every_image_was_learnt(folder: Path, ended: "subprocess.CompletedProcess[str]") -> None:
    summary = summary_of(ended)
    assert summary["records"] == summary["labelled_images"] == summary["settled_images"] == IMAGES
    assert summary["dead_letters"] == 0
    assert sorted(summary["classes"]) == list("0123456789")
    assert summary["digest"] == newest_digest(folder)


def test_the_digits_come_up_from_nothing(ended: "subprocess.CompletedProcess[str]") -> None:
    summary = summary_of(ended)
    assert summary["accuracy"] > 0.6
    assert all(score["rolling"] > 0.5 for score in summary["classes"].values())


def test_it_says_where_everything_lies(folder: Path, ended: "subprocess.CompletedProcess[str]") -> None:
    summary_of(ended)
    snapshot = next((folder / "snapshots").rglob("*.safetensors"))
    for path in (folder / "accuracy.png", folder / "stream.db", snapshot):
        assert str(path) in ended.stderr
        assert path.stat().st_size > 1000
    with Image.open(folder / "accuracy.png") as image:
        image.load()
    assert (folder / "producer.log").exists()


def test_run_again_it_empties_its_own_folder_whatever_the_environment_says(
    folder: Path, ended: "subprocess.CompletedProcess[str]"
) -> None:
    summary_of(ended)
    (folder / "left-behind").touch()
    again = demo(folder, 256, MARKETSTREAM_TOPIC_PREFIX="mine.", MARKETSTREAM_GROUP="us", MARKETSTREAM_FILTERS="8")
    summary = summary_of(again)
    assert summary["settled_images"] == 256
    assert summary["digest"] == newest_digest(folder)
    assert not (folder / "left-behind").exists()
    assert (folder / "accuracy.png").exists()


def test_a_folder_that_it_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = demo(tmp_path, 256)
    assert (ended.returncode, ended.stdout) == (1, "")
    expected = f"error: {tmp_path} was not made by a demo, and will not be emptied: choose another --folder\n"
    assert ended.stderr == expected
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("mine.txt", "mine")]
