"""Every learner that can be had by name has the one face. What the baselines learn is tested with them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.learners.table import LEARNERS, digest, make
from pipeline.errors import SettingsError
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.network import Shape
from pipeline.settings import Settings
from tests.pipeline.synthetic import stream

SETTINGS = Settings(filters=4, backend="blas")
QUICK = [name for name in LEARNERS if not name.startswith("backprop")]
"""Those of which nothing has to be compiled."""


@pytest.mark.parametrize("name", QUICK)
def test_it_predicts_before_it_learns_and_settling_changes_nothing(name: str) -> None:
    images, labels = stream(64)
    learner = make(name, SETTINGS)
    quotes = learner.quote(images)
    assert quotes.predictions() == [None] * 64
    update = learner.settle(quotes, labels)
    assert (learner.classes, learner.images, learner.generation) == ((), 0, 0)
    learner.add(update)
    assert learner.clear()
    assert (set(learner.classes), learner.images, learner.generation) == (set(labels), 64, 1)
    assert set(learner.quote(images).predictions()) <= set(labels)
    assert LEARNERS[name].state_bytes(learner) > 0


@pytest.mark.parametrize("name", ["clearing", "marketplace"])
def test_the_digest_of_a_learner_is_that_of_what_it_learnt(name: str) -> None:
    images, labels = stream(64)
    digests = set()
    for count in (64, 64, 32):
        learner = make(name, SETTINGS)
        learner.add(learner.settle(learner.quote(images[:count]), labels[:count]))
        learner.clear()
        digests.add(digest(learner, SETTINGS))
    assert len(digests) == 2
    assert None not in digests


def test_paths_begins_with_a_base_and_the_others_refuse_it(tmp_path: Path) -> None:
    base = Base.of(Shape(), Base.untrained(Shape(), 7).parameters)
    base.write(tmp_path / "base.safetensors")
    settings = SETTINGS.model_copy(update={"base": tmp_path / "base.safetensors"})
    assert digest(make("marketplace", settings), settings) == base.digest
    assert digest(make("marketplace", SETTINGS), SETTINGS) != base.digest
    with pytest.raises(SettingsError, match="only marketplace begins with a base model, not slda"):
        make("slda", settings)


def test_baselines_promise_no_digest() -> None:
    assert digest(make("ncm", SETTINGS), SETTINGS) is None


def test_another_seed_is_another_network() -> None:
    images, labels = stream(64)

    def logits(seed: int) -> np.ndarray:
        learner = make("marketplace", SETTINGS.model_copy(update={"seed": seed}))
        learner.add(learner.settle(learner.quote(images), labels))
        learner.clear()
        return np.asarray(learner.quote(images).logits)

    assert not np.array_equal(logits(0), logits(1))
