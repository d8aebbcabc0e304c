"""The experiment of the articles is measured once, and drawn from what was kept."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import published
from benchmarks.accuracy import BATCH
from pipeline.settings import Settings


def test_runs_are_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, str, int]] = []

    def measure(scenario: str, learner: str, _seed: int, images: int, _settings: Settings) -> dict[str, Any]:
        measured.append((scenario, learner, images // BATCH))
        after = {"held_out_dress_after": {"1": 0.5}, "held_out_digits_after": {"1": 0.9}}
        return {"scenario": scenario, "learner": learner, "base_dress": 0.25, "base_digits": 0.95, **after}

    monkeypatch.setattr(published, "measure", measure)
    every = published.results(tmp_path, 1000, Settings())
    assert published.results(tmp_path, 1000, Settings()) == every
    assert measured == [(*run, steps) for run, steps in zip(published.RUNS, (240, 240, 1000), strict=True)]
    published.draw(every, tmp_path / "published.png")
    assert (tmp_path / "published.png").read_bytes().startswith(b"\x89PNG")
