"""Targets: vendors bid on an image's logits h, losses pay the bids, and the payments say what h should have been.

Each class c has a pair of vendors. One bids h + σ·e_c, the other h − σ·e_c. The difference of their losses over 2σ
estimates the slope of the loss along e_c (the central difference). The target is h − slope. Only values of the loss are
used, so any loss or cost will do, differentiable or not.

With the default loss ½‖h − onehot‖² the estimate is exact, and the target is the one-hot vector, whatever h was. Then
targets do not depend on the order of the stream, and the solver's weights are the ridge regression over all images.
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
"""Most numbers of bids to hold in memory at once."""

LARGEST_TARGET = 1 << 20
"""The largest magnitude of a target: with it, sums over 10¹⁰ images stay exact in int64."""


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
    """The targets of n images: what should have been quoted.

    Parameters
    ----------
    logits
        The quotes h, ``floating[n, C]``. The bids are computed in float64: in float32 a third of the targets come out
        wrong where |h| is large.
    labels
        Columns of the right classes, ``int64[n]``.
    loss
        Pays the bids.

    Returns
    -------
    targets
        ``int64[n, C]``: 256 (h − slope), rounded.
    sound
        ``bool[n]``: False for an image with a loss that is not finite. Its targets are 0; add them to no sum.
    """
    h = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # an image that is not finite is not sound
        slope = _slope(h, labels, loss)
        sound = np.atleast_1d(np.isfinite(slope + h).all(axis=1))
    targets: Integers = np.zeros(h.shape, np.int64)
    targets[sound] = np.rint(UNIT * (h - slope)[sound]).clip(-LARGEST_TARGET, LARGEST_TARGET)
    return targets, sound


def _slope(h: Floats, labels: Integers, loss: Loss) -> Floats:
    """The difference of the losses of each pair of vendors, over 2σ: ``float64[n, C]``."""
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
    """The column of each label, ``int64[n]``. Raises KeyError for a label that is not among the classes."""
    where = {name: i for i, name in enumerate(classes)}
    return np.array([where[label] for label in labels], np.int64)
