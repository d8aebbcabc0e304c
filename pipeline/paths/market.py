"""Settling: from the losses of paths, and of bids on outputs, to what is published.

Vendors of parameters, the articles' form: a path's loss is its vendors' outcome. z = -(loss - mean) / std over all
paths; a vendor's coefficient is the sum of z over the paths that went through it; a spec's direction is the sum of
coefficient times delta over its vendors.

Vendors of outputs: every image draws pairs of vendors that bid h + ξ and h - ξ, ξ of signs; ξ times half the
difference of their losses estimates the slope of the loss at h. That is the simultaneous perturbation of Spall,
Multivariate stochastic approximation, 1992, an image at a time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.market import Loss
from pipeline.paths.network import Floats

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

ROUNDING = 2.0**-20
"""Losses are known to about this share of them: networks compute in float32, of 24 bits."""


def outcomes(losses: Doubles) -> Doubles:
    """z of paths from their losses: mean 0, deviation 1, the best path's the largest; 0 where all are equal."""
    deviation = losses.std() if losses.size else 0.0
    return (losses.mean() - losses) / deviation if deviation > 0 else np.zeros_like(losses)


def rounding(losses: Doubles) -> float:
    """What rounding may add to the z of a path with such losses."""
    deviation = losses.std() if losses.size else 0.0
    return float(ROUNDING * np.abs(losses).mean() / deviation) if deviation > 0 else 0.0


def coefficients(losses: Doubles, vendor: Integers, vendors: int) -> Floats:
    """One number for each vendor of a spec: the sum of z over its paths; ``vendor`` says which one a path took.

    0 where paths cancel but for rounding: brought to unit length, that would become a direction.
    """
    sums, paths = np.bincount(vendor, outcomes(losses), vendors), np.bincount(vendor, minlength=vendors)
    return np.where(np.abs(sums) > paths * rounding(losses), sums, 0.0).astype(np.float32)


def weights(labels: Sequence[str], before: Mapping[str, int]) -> Doubles:
    """Weights of labels, inversely proportional to how often they came, now and ``before``; the largest is 1."""
    counts = Counter(before) + Counter(labels)
    fewest = min(counts.values(), default=1)
    return np.array([fewest / counts[label] for label in labels])


def widened(logits: Floats, classes: int) -> Doubles:
    """Logits with a column of zeros for every class that was not quoted yet."""
    result = np.zeros((len(logits), classes))
    result[:, : logits.shape[1]] = logits
    return result


def slopes(logits: Doubles, labels: Integers, bids: NDArray[np.int8], loss: Loss) -> Doubles:
    """The market's estimate ê of the slope of the loss at ``logits[n, C]``, from ``bids[n, pairs, C]``."""
    n, pairs, classes = bids.shape
    h = logits[:, None]
    again = np.repeat(labels, pairs)
    higher, lower = (loss((h + step).reshape(-1, classes), again).reshape(n, pairs) for step in (bids, -bids))
    result: Doubles = np.einsum("np,npc->nc", (higher - lower) / (2 * pairs), bids)
    return result


def sums(slopes: Doubles, products: Floats) -> tuple[Floats, Floats]:
    """What vendors of outputs publish: Σ ê zᵀ ``[C, D]`` and Σ z ``[D]``."""
    z = products.astype(np.float64)
    return (slopes.T @ z).astype(np.float32), z.sum(axis=0).astype(np.float32)
