"""The simulation of many learners obeys what can be worked out by hand; what is written is what was found."""

from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.scale import page
from benchmarks.scale.__main__ import divided, simulated
from benchmarks.scale.group import STRETCH, stretches, times
from benchmarks.scale.model import Case, Costs, play
from pipeline.errors import SettingsError
from pipeline.learners.clearing.sums import Sums

SIZES = {"delta_bytes": 10_000_000, "base_bytes": 15_000_000, "image_bytes": 1000, "prediction_bytes": 400}
NOTHING = Costs(0, 0, 0, **SIZES, width=2465)
FREE = Case(NOTHING, image_seconds=1 / 2560, learners=1, publish_images=20_000, link=inf, publish_seconds=inf)


@pytest.mark.parametrize("learners", [1, 4, 16])
def test_where_sharing_costs_nothing_so_many_learners_are_so_many_times_one(learners: int) -> None:
    found = play(FREE, learners)
    assert found.images_per_second == pytest.approx(2560 * learners, rel=0.02)
    assert found.unseen == pytest.approx((learners - 1) * 10_000, rel=0.1)  # half of what each publishes at a time
    assert found.bytes_in == pytest.approx(2560 * 1000 + learners * 2560 / 20_000 * (10e6 + 15e6 / 16), rel=0.1)


def test_reading_what_others_publish_takes_its_time() -> None:
    slow = replace(FREE, costs=replace(NOTHING, read=0.1))
    found = play(slow, 16)
    seconds = 20_000 / 2560  # in which each of sixteen publishes once, and reads sixteen times
    assert found.images_per_second / 16 / 2560 == pytest.approx(seconds / (seconds + 1.6), rel=0.05)


def test_nobody_learns_on_for_ever_before_what_was_published_has_come_back() -> None:
    found = play(replace(FREE, link=1e8), 16)
    assert found.images_per_second < 16 * 2560 / 2
    assert found.broker_out <= 1e8 + found.images_per_second * 1000 * 1.2 + 2e7
    assert found.unpublished <= 2 * 30_000 + 512


@pytest.mark.parametrize("cores_each", [1_000_000, -1])
def test_learners_with_cores_of_their_own_leave_some_for_the_broker(cores_each: int) -> None:
    with pytest.raises(SettingsError, match=rf"--cores-each {cores_each}: 4 learners can have up to \d+ each"):
        divided(cores_each)


def test_each_learner_has_cores_of_its_own_and_the_rest_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[set[int]] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cores: left.append(set(cores)))
    parts = divided(3)
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert sorted(core for part in [*parts, *left] for core in part) == list(range(16))
    assert divided(0) == []


def test_many_times_the_same_sums_are_those_sums_added_up() -> None:
    sums = Sums(np.arange(3, dtype=np.int64), {"a": np.array([5, 7])}, {"a": 2})
    assert times(sums, 3).digest("x") == (sums + sums + sums).digest("x")


def test_accuracy_is_told_stretch_by_stretch() -> None:
    served = [
        {"label": "ab"[i % 2], "predicted": "a" if i < STRETCH else "b" * (i % 2)} for i in range(2 * STRETCH + 9)
    ]
    assert stretches(served) == [0.5, 0.5]
    assert stretches(served[: STRETCH - 1]) == []


def test_the_page_and_the_picture_show_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.__main__.SIMULATED", (1, 2, 4))
    group = {
        "learners": 1, "images_per_second": 2560.0, "processor_seconds_per_image": 0.0004, "sums_bytes": 44e6,
        "deltas": 9, "bases": 0, "seconds_to_work": 5.0, "seconds_to_take_over": 0.5, "prequential": 0.9,
        "stretches": [0.5], "held_out": 0.93, "each_once": True, "digest": "0123456789abcdef",
    }  # fmt: skip
    late = {
        "images": 10_000_000, "deltas_written": 512, "records_left": {"base": 1, "delta": 17}, "bytes_left": 2e8,
        "seconds_to_work": 8.0, "seconds_to_predict": 9.0, "seconds_without_bases": 50.0,
    }  # fmt: skip
    costs = {**vars(NOTHING)}
    result = {
        "cores": 2, "cores_each": 0, "images": 25_600, "digest": "0123456789abcdef", "groups": [group],
        "late": late, "costs": costs, "image_seconds": 1 / 2560, "simulated": simulated(FREE),
    }  # fmt: skip
    text = page.text(result)
    assert "| images/s | 2,560 |" in text
    assert "| of images 1 to 5,120 | 0.5000 |" in text
    assert "10,000,000 images has published 512 deltas" in text
    assert text.count("\n| 4 | ") == 1
    assert "share the same cores" in text
    assert "3 for each learner" in page.text(result | {"cores_each": 3})
    page.draw(result, tmp_path / "scale.png")
    with Image.open(tmp_path / "scale.png") as picture:
        assert picture.size[0] > 1000
