"""The examples in docstrings run, and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (
    "consumers.pace",
    "pipeline.data.scenario",
    "pipeline.group.publishing",
    "pipeline.learners.clearing.accumulator",
    "pipeline.learners.clearing.learner",
    "pipeline.learners.clearing.sums",
    "pipeline.records.images",
    "pipeline.records.journal",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_module_that_has_examples_is_among_them() -> None:
    files = (path for package in ("pipeline", "consumers", "producers") for path in (ROOT / package).rglob("*.py"))
    having = [path for path in files if ">>> " in path.read_text(encoding="utf-8")]
    assert sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in having) == sorted(MODULES)
