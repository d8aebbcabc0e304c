"""A step of ``backprop`` is that of a plain network, with its slopes taken by differences."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.learners.backprop import OUTPUTS, Backprop, Rule
from pipeline.learners.marketplace import draws
from pipeline.learners.marketplace.network import Shape
from tests.pipeline.learners.marketplace import reference

pytestmark = pytest.mark.xdist_group("compiled once")

SHAPE = Shape(side=12, widths=(2, 3), kernels=(3, 2))
SEED, STEP = 3, 1e-5

Doubles = NDArray[np.float64]


def drawn(count: int) -> tuple[NDArray[np.uint8], list[str]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 12, 12), np.uint8), [str(i % 3) for i in range(count)]


def flat(learner: Backprop) -> Doubles:
    """Its parameters in the order of ``Shape``: spec by spec, classes with their bias at the end."""
    *parts, last = learner.parameters()
    return np.concatenate([*(part.T.ravel() for part in parts), last.T.ravel()]).astype(np.float64)


def loss(parameters: Doubles, images: NDArray[np.uint8], labels: list[str]) -> float:
    """Mean cross-entropy over the labels, each numbered as it is first seen."""
    sizes = SHAPE.sizes(OUTPUTS)
    specs = np.split(parameters, np.cumsum(sizes)[:-1])
    classes = list(dict.fromkeys(labels))
    every = [reference.logits(reference.products(SHAPE, specs, image), specs[2]) for image in images]
    return math.fsum(reference.loss(h, classes.index(label)) for h, label in zip(every, labels, strict=True)) / len(
        labels
    )


def slope(parameters: Doubles, place: int, images: NDArray[np.uint8], labels: list[str]) -> float:
    """Of the loss, along one parameter."""
    step = np.zeros_like(parameters)
    step[place] = STEP
    return (loss(parameters + step, images, labels) - loss(parameters - step, images, labels)) / (2 * STEP)


@cache
def warmed(rule: Rule) -> tuple[Backprop, list[Doubles]]:
    """A learner after four steps of the same five images, compiled by then, and its parameters after each."""
    learner = Backprop(rule, SEED, SHAPE, batch_size=8)
    images, labels = drawn(5)
    course = [flat(learner)]
    for _ in range(4):
        learner.add(learner.settle(learner.quote(images), labels))
        course.append(flat(learner))
    return learner, course


PLACES = [0, 17, 18, 22, 55, 57, 60, 75, 100, 103]
"""Parameters of every kind, in both blocks."""


def test_it_begins_where_a_new_learner_paths_begins() -> None:
    first, second, _ = draws.initial(SHAPE, SEED)
    begun = warmed("sgd")[1][0]
    assert np.array_equal(begun[: len(first) + len(second)], np.concatenate([first, second]).astype(np.float64))
    assert not begun[len(first) + len(second) :].any()


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_of_sgd_is_down_the_slope(step: int) -> None:
    before, after = warmed("sgd")[1][step : step + 2]
    images, labels = drawn(5)
    places = [*PLACES, len(before) - 1, len(before) - SHAPE.products * OUTPUTS]
    slopes = np.array([slope(before, place, images, labels) for place in places])
    assert np.abs(slopes).max() > 1e-3
    assert np.allclose((after - before)[places], -0.05 * slopes, rtol=1e-2, atol=2e-6)


def test_steps_of_adam_are_those_of_the_article() -> None:
    course = warmed("adam")[1]
    images, labels = drawn(5)
    place = len(course[0]) - SHAPE.products * OUTPUTS  # a weight of the last spec: its slope is never nothing
    m = v = 0.0
    for t, (before, after) in enumerate(pairwise(course), 1):
        g = slope(before, place, images, labels)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected = -1e-3 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert after[place] - before[place] == pytest.approx(expected, rel=1e-2)


def test_a_class_is_not_predicted_before_it_is_seen() -> None:
    learner = Backprop("sgd", SEED, SHAPE, batch_size=8)
    images, labels = drawn(5)
    assert learner.quote(images).predictions() == [None] * 5
    learner.add(learner.settle(learner.quote(images), [*labels[:2], None, None, None]))
    assert (learner.classes, learner.images, learner.generation) == (("0", "1"), 2, 1)
    assert set(learner.quote(images).predictions()) <= {"0", "1"}


def test_more_classes_than_outputs_are_refused() -> None:
    learner = Backprop("sgd", SEED, SHAPE, batch_size=8)
    images, _ = drawn(OUTPUTS + 1)
    with pytest.raises(ValueError, match="21 classes, but backprop has 20 outputs"):
        learner.add(learner.settle(learner.quote(images), [str(i) for i in range(OUTPUTS + 1)]))
