"""Every learner that can be had by name has the one face. What the baselines learn is tested with them."""

import numpy as np
import pytest

from pipeline.learners import LEARNERS, digest, make
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


@pytest.mark.parametrize("name", ["clearing", "paths"])
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


def test_baselines_promise_no_digest() -> None:
    assert digest(make("ncm", SETTINGS), SETTINGS) is None


def test_another_seed_is_another_network() -> None:
    images, labels = stream(64)

    def logits(seed: int) -> np.ndarray:
        learner = make("paths", SETTINGS.model_copy(update={"seed": seed}))
        learner.add(learner.settle(learner.quote(images), labels))
        learner.clear()
        return np.asarray(learner.quote(images).logits)

    assert not np.array_equal(logits(0), logits(1))
