"""Settling: from the losses of paths, and of bids on outputs, to what is published.

Vendors of parameters, the articles' form: a path's loss is its vendors' outcome. z = -(loss - mean) / std over all
paths; a vendor's coefficient is the sum of z over the paths that went through it; a spec's direction is the sum of
coefficient times delta over its vendors.

Vendors of outputs: every image draws pairs of vendors that bid h + ξ and h - ξ, ξ of signs; ξ times half the
difference of their losses estimates the slope of the loss at h. That is the simultaneous perturbation of Spall,
Multivariate stochastic approximation, 1992, an image at a time.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecoveryError
from pipeline.learners.marketplace.network import Floats
from pipeline.learners.targets import Loss

NO_SLOPES: tuple[Floats, Floats] = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
"""What vendors of parameters publish about slopes."""


@dataclass(frozen=True, slots=True, eq=False)
class MarketplaceUpdate:
    """What settling found.

    Parameters
    ----------
    generation
        Whose vendors were drawn.
    classes, quoted
        The C names, and how many of them the vendors knew; the others are new.
    counts
        Images of each label that were settled.
    coefficients
        One for each vendor, spec by spec, of the specs whose parameters are traded.
    slopes, products
        Vendors of outputs: Σ ê zᵀ ``[C, D]`` and Σ z ``[D]``, where z ends with the constant 1; else empty.
    scale
        Multiple of the step that was found best.
    unsound
        Places of images whose loss was not finite: they are not in the update. Not published.
    """

    generation: int
    classes: tuple[str, ...]
    quoted: int
    counts: Mapping[str, int]
    coefficients: tuple[Floats, ...]
    slopes: Floats
    products: Floats
    scale: float = 1.0
    unsound: tuple[int, ...] = ()

    @property
    def published(self) -> bytes:
        """The numbers of the update, one after the other, little-endian float32."""
        parts = [*self.coefficients, self.slopes, self.products]
        return b"".join(part.astype("<f4").tobytes() for part in parts)

    def record(self) -> dict[str, Any]:
        """The update as JSON takes it."""
        return {
            "generation": self.generation,
            "classes": self.classes,
            "quoted": self.quoted,
            "counts": dict(self.counts),
            "vendors": [len(part) for part in self.coefficients],
            "numbers": base64.b64encode(self.published).decode(),
            "scale": self.scale,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "MarketplaceUpdate":
        """The update that a record holds, to the bit. Raises RecoveryError if it is damaged."""
        try:
            numbers = np.frombuffer(base64.b64decode(record["numbers"], validate=True), "<f4").astype(np.float32)
            classes = tuple(record["classes"])
            *coefficients, rest = np.split(numbers, np.cumsum(record["vendors"], dtype=np.int64))
            rows = rest.reshape(len(classes) + 1, -1)
            slopes, products = (rows[:-1], rows[-1]) if rest.size else NO_SLOPES
            return cls(
                record["generation"],
                classes,
                record["quoted"],
                dict(record["counts"]),
                tuple(coefficients),
                slopes,
                products,
                record["scale"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecoveryError(f"the journal holds a record that cannot be read: {error!r}") from error


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
