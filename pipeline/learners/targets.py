"""The market: vendors bid on every image's logits, are paid by their scalar losses, and so price the slope.

A pair of vendors per class: one bids h + σ·e_c, the other h − σ·e_c. Only their losses are used, so any loss or
cost will do, differentiable or not. Half the difference is the market's estimate of the slope of the loss along
e_c (the central difference), and h − slope its estimate of what should have been quoted.

With the default loss ½‖h − onehot‖² the pairs price the slope exactly: h − slope is the one-hot vector itself,
whatever h was. The targets then do not depend on the order of the stream, and the solver's weights are the
ridge regression over all images seen so far: that is why it works.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Loss = Callable[[Floats, Integers], Floats]
"""From logits ``float64[n, C]`` and labels ``int64[n]`` to one loss an image, ``float64[n]``."""

SIGMA = 1.0
"""How far a vendor's bid is from the quote."""

UNIT = 256
"""Targets are integers, in 256ths."""

MOST_BIDS = 1 << 18
"""Numbers in the bids that are held in memory at once."""

LARGEST_TARGET = 1 << 20
"""A target is cut off here, so that sums of 10¹⁰ images stay exact in int64."""


def squared(logits: Floats, labels: Integers) -> Floats:
    """½‖h − onehot‖², the default."""
    squares: Floats = np.einsum("ij,ij->i", logits, logits)
    right: Floats = logits[np.arange(len(labels)), labels]
    return 0.5 * (squares + 1) - right


def cross_entropy(logits: Floats, labels: Integers) -> Floats:
    """−log softmax(h) at the label. Its targets depend on h, and so on the order of the stream."""
    largest: Floats = logits.max(axis=1)
    total: Floats = np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    right: Floats = logits[np.arange(len(labels)), labels]
    return largest + total - right


def settle(logits: NDArray[np.floating], labels: Integers, loss: Loss = squared) -> tuple[Integers, NDArray[np.bool_]]:
    """What the market says should have been quoted.

    Parameters
    ----------
    logits
        The quotes h, ``[n, C]``. Computed on in float64: in float32 a third of the targets come out wrong where
        |h| is large.
    labels
        Columns of the right classes, ``int64[n]``.

    Returns
    -------
    targets, sound
        ``int64[n, C]``, round(256 (h − slope)); and ``bool[n]``, False for an image of which a loss was not finite:
        its targets are 0 and must not be added to any sum.
    """
    h = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is set apart below
        slope = _slope(h, labels, loss)
        sound = np.atleast_1d(np.isfinite(slope + h).all(axis=1))
    targets: Integers = np.zeros(h.shape, np.int64)
    targets[sound] = np.rint(UNIT * (h - slope)[sound]).clip(-LARGEST_TARGET, LARGEST_TARGET)
    return targets, sound


def _slope(h: Floats, labels: Integers, loss: Loss) -> Floats:
    """Half the difference of the losses of each pair of vendors: ``float64[n, C]``."""
    n, classes = h.shape
    slope = np.empty_like(h)
    some = max(1, MOST_BIDS // max(1, h.size))  # pairs whose bids are made at once
    for first in range(0, classes, some):
        steps = SIGMA * np.eye(classes)[first : first + some]
        again = np.repeat(labels, len(steps))
        higher, lower = (loss((h[:, None] + step).reshape(-1, classes), again) for step in (steps, -steps))
        slope[:, first : first + some] = ((higher - lower) / (2 * SIGMA)).reshape(n, len(steps))
    return slope


def columns(labels: Sequence[str], classes: Sequence[str]) -> Integers:
    """The column of each label, ``int64[n]``."""
    where = {name: i for i, name in enumerate(classes)}
    return np.array([where[label] for label in labels], np.int64)
