"""What the vendors' losses tell, and what must never come of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.learners.targets import LARGEST_TARGET, cross_entropy, settle

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

logits = arrays(np.float32, (4, 3), elements=st.floats(-1e4, 1e4, width=32))
labels = arrays(np.int64, (4,), elements=st.integers(0, 2))


@given(logits, labels)
def test_the_default_loss_is_priced_exactly_whatever_was_quoted(h: NDArray[np.float32], y: Integers) -> None:
    targets, sound = settle(h, y)
    assert sound.all()
    assert np.array_equal(targets, 256 * np.eye(3, dtype=np.int64)[y])


@given(arrays(np.float64, (4, 3), elements=st.floats(-3, 3)), labels)
def test_targets_are_the_quote_less_the_slope_of_any_smooth_loss(h: Floats, y: Integers) -> None:
    targets, _ = settle(h, y, cross_entropy)
    chance = np.exp(h) / np.exp(h).sum(axis=1, keepdims=True)
    slope = chance - np.eye(3)[y]
    assert np.abs(targets / 256 - (h - slope)).max() < 0.1  # a central difference over 2, not an infinitesimal one


def test_a_cost_without_a_slope_will_do() -> None:
    def cost(h: Floats, y: Integers) -> Floats:
        return np.where(h.argmax(axis=1) == y, 0.0, 5.0)

    targets, sound = settle(np.array([[0.6, 0.0]]), np.array([1]), cost)
    assert sound.all()
    assert targets[0, 1] > targets[0, 0]


def test_an_image_with_a_loss_that_is_not_finite_is_set_apart() -> None:
    def cost(h: Floats, y: Integers) -> Floats:
        return np.where(y == 0, np.nan, h.sum(axis=1))

    targets, sound = settle(np.zeros((3, 2)), np.array([1, 0, 1]), cost)
    assert sound.tolist() == [True, False, True]
    assert not targets[1].any()


def test_targets_are_bounded() -> None:
    targets, sound = settle(np.zeros((1, 2)), np.array([0]), lambda h, _: 1e9 * h[:, 0])
    assert sound.all()
    assert targets[0].tolist() == [-LARGEST_TARGET, 0]
