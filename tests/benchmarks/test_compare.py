"""The comparison tells what was measured, losses as plainly as wins, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import compare
from benchmarks.compare import Results, markdown, summary, text
from benchmarks.learners.table import LEARNERS
from pipeline.errors import SettingsError
from pipeline.settings import Settings

SETTINGS = Settings(filters=4, window=50, backend="blas")


def result(learner: str, scenario: str, seed: int, digits: float) -> dict[str, Any]:
    accuracy = {"digits": digits, "fashion": digits - 0.1}
    return {
        "learner": learner,
        "scenario": scenario,
        "seed": seed,
        "device": "CPU",
        "prequential": accuracy,
        "held_out": accuracy,
        "held_out_forgetting": {} if scenario == "mixed" else {"0": 0.25, "1": -0.05},
        "held_out_dress_after": {"5": digits, "10": 0.5},
        "relative_speed": 0.5,
        "state_bytes": 2_000_000,
    }


@pytest.fixture
def some() -> list[dict[str, Any]]:
    return [
        result(learner, scenario, seed, digits + seed / 100)
        for learner, digits, seeds in (("clearing", 0.5, 2), ("ncm", 0.6, 1))
        for scenario in compare.SCENARIOS
        for seed in range(seeds)
    ]


def test_a_result_from_an_accelerator_counts_but_for_its_speed(some: list[dict[str, Any]]) -> None:
    for one in some:
        if one["learner"] == "clearing" and one["seed"] == 1:
            one |= {"device": "CUDA", "relative_speed": None}
    page = markdown(some)
    assert "| `clearing` | 0, 1 | .505 (.500 to .510)" in page
    assert page.count("| 0.50 | 2.00 MB |") == 2
    assert "Computed on an accelerator, and left out of the speeds: `clearing` with seed 1 on CUDA.\n" in page
    assert "accelerator, and" not in markdown([one for one in some if one["device"] == "CPU"])


def test_a_row_says_which_seeds_it_is_of_and_how_far_they_are_apart(some: list[dict[str, Any]]) -> None:
    rows = {(row["scenario"], row["learner"]): row for row in summary(some)}
    assert len(rows) == 6
    assert rows["mixed", "clearing"]["seeds"] == [0, 1]
    assert rows["mixed", "clearing"]["held out, digits"] == [pytest.approx(0.505), 0.5, 0.51]
    assert rows["split", "ncm"]["forgotten"] == [0.1, 0.1, 0.1]
    assert rows["dress", "ncm"]["dresses after 100"] is None


def test_the_best_is_bold_and_every_defeat_is_told(some: list[dict[str, Any]]) -> None:
    page = markdown(some)
    assert "| `clearing` | 0, 1 | .505 (.500 to .510) |" in page
    assert "| `ncm` | 0 | **.600** | **.500** | **.600** | **.500** |" in page
    assert "- `mixed`, held out, digits: `ncm` 0.6000, `clearing` 0.5050" in page
    assert "marketplace" not in page
    assert "Nowhere." in markdown([r for r in some if r["learner"] == "clearing"])


def test_a_range_below_zero_can_be_read() -> None:
    assert text([-0.002, -0.003, -0.001], bold=False) == "-.002 (-.003 to -.001)"


def test_costs_name_passes_speed_and_state(some: list[dict[str, Any]]) -> None:
    assert "| `ncm` | nearest class mean | integer features | 1 | 0 | 0.50 | 2.00 MB |" in markdown(some)
    backprop = LEARNERS["backprop-sgd"]
    assert (backprop.forward, backprop.backward, backprop.features) == (2, 1, "reference network")


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "measure", lambda scenario, learner, seed, *_: result(learner, scenario, seed, 0.5))
    results = Results(tmp_path, SETTINGS, None)
    assert len(results.missing(["clearing", "ncm"], range(3))) == 18
    first, second = results.missing(["clearing", "ncm"], range(3))[:2]
    assert first == ("clearing", "mixed", 0)
    results.measure(*first)
    again = Results(tmp_path, SETTINGS, None)
    assert again.missing(["clearing", "ncm"], range(3))[0] == second
    assert [r["learner"] for r in again.all()] == ["clearing"]
    with pytest.raises(SettingsError, match=r"terms\.json: those results were made with other settings"):
        Results(tmp_path, SETTINGS, 512)


def test_page_numbers_and_picture_are_written(some: list[dict[str, Any]], tmp_path: Path) -> None:
    compare.write(some, tmp_path)
    assert (tmp_path / "comparison.md").read_text().startswith("# All learners")
    assert orjson.loads((tmp_path / "comparison.json").read_bytes()) == orjson.loads(orjson.dumps(summary(some)))
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
