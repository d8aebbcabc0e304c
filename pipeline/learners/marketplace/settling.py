"""Settling: from losses, of paths or of bids on outputs, to the numbers that are published.

Vendors of parameters, the articles' form. The loss of a path is the outcome of its vendors: z = -(loss - mean) / std
over all paths. A vendor's coefficient is the sum of z over its paths. A spec's direction is the sum of coefficient
times delta over its vendors.

Vendors of outputs. Every image draws pairs of vendors, which bid h + ξ and h - ξ, where ξ is a vector of signs. ξ times
half the difference of their losses estimates the slope of the loss at h. That is the simultaneous perturbation of
Spall, Multivariate stochastic approximation, 1992, image by image.
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
"""Slopes and products of an update by vendors of parameters."""


@dataclass(frozen=True, slots=True, eq=False)
class MarketplaceUpdate:
    """What settling found in a micro-batch.

    Parameters
    ----------
    generation
        The generation of the vendors.
    classes
        The C names.
    quoted
        How many of them the vendors knew, from the first on. The others are new.
    counts
        Settled images of each label.
    coefficients
        For each spec whose parameters have vendors, ``float32[vendors]``.
    slopes, products
        With vendors of outputs Σ ê zᵀ, ``float32[C, D]``, and Σ z, ``float32[D]``, where z ends with the constant 1.
        Else empty.
    scale
        The best multiple of the step.
    unsound
        Places of images whose loss was not finite. They are not in the update. Not published.
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
        """The update as JSON can hold it."""
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
"""Relative error of a loss, roughly: networks compute in float32, which has 24 bits."""


def outcomes(losses: Doubles) -> Doubles:
    """z of each path: mean 0, standard deviation 1, largest for the smallest loss. All are 0 for equal losses."""
    deviation = losses.std() if losses.size else 0.0
    return (losses.mean() - losses) / deviation if deviation > 0 else np.zeros_like(losses)


def rounding(losses: Doubles) -> float:
    """How much of a z may be rounding, for paths with such losses."""
    deviation = losses.std() if losses.size else 0.0
    return float(ROUNDING * np.abs(losses).mean() / deviation) if deviation > 0 else 0.0


def coefficients(losses: Doubles, vendor: Integers, vendors: int) -> Floats:
    """The sum of z over the paths of each vendor of a spec: ``float32[vendors]``. ``vendor`` is that of each path.

    A sum that may be rounding alone becomes 0. Otherwise normalising would make a direction of it.
    """
    sums, paths = np.bincount(vendor, outcomes(losses), vendors), np.bincount(vendor, minlength=vendors)
    return np.where(np.abs(sums) > paths * rounding(losses), sums, 0.0).astype(np.float32)


def weights(labels: Sequence[str], before: Mapping[str, int]) -> Doubles:
    """A weight for each label, inversely proportional to how often it came, ``before`` and now; at most 1."""
    counts = Counter(before) + Counter(labels)
    fewest = min(counts.values(), default=1)
    return np.array([fewest / counts[label] for label in labels])


def widened(logits: Floats, classes: int) -> Doubles:
    """Logits ``float64[n, classes]``, with a column of zeros for every class that was not quoted."""
    result = np.zeros((len(logits), classes))
    result[:, : logits.shape[1]] = logits
    return result


def slopes(logits: Doubles, labels: Integers, bids: NDArray[np.int8], loss: Loss) -> Doubles:
    """The estimate ê of the slope of the loss at ``logits[n, C]``, from ``bids[n, pairs, C]``: ``float64[n, C]``."""
    n, pairs, classes = bids.shape
    h = logits[:, None]
    again = np.repeat(labels, pairs)
    higher, lower = (loss((h + step).reshape(-1, classes), again).reshape(n, pairs) for step in (bids, -bids))
    result: Doubles = np.einsum("np,npc->nc", (higher - lower) / (2 * pairs), bids)
    return result


def sums(slopes: Doubles, products: Floats) -> tuple[Floats, Floats]:
    """Σ ê zᵀ, ``float32[C, D]``, and Σ z, ``float32[D]``: what is published with vendors of outputs."""
    z = products.astype(np.float64)
    return (slopes.T @ z).astype(np.float32), z.sum(axis=0).astype(np.float32)
