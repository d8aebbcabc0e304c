"""The baselines ``ncm`` and ``slda``: classifiers by the class means of the features' products.

``ncm``, the nearest class mean. Its logits z·μ − ½‖μ‖² are the largest where the Euclidean distance of the products z
from a class mean μ is the smallest.

``slda``, streaming linear discriminant analysis: Hayes, Kanan, Lifelong machine learning with deep streaming linear
discriminant analysis, CVPR workshops, 2020. With μ the mean of the image's class before it, and t the images before it,

    Σ ← (t Σ + t/(t+1) (z − μ)(z − μ)ᵀ) / (t+1),    μ ← μ + (z − μ) / (count of the class + 1).

With Λ = ((1 − ε) Σ + ε I)⁻¹ the logits are z·Λμ − ½ μ·Λμ. Two things differ here. The article's products have a scale
near 1; these have not, so I is in units of the mean variance, tr Σ / D. And the first image of a class says nothing
about Σ, where theirs is compared with a mean of zero (or with one from images that were learnt from beforehand).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from benchmarks.learners.labelled import Labelled, Quoted
from pipeline.cores import blas_on_all_cores
from pipeline.features import Features
from pipeline.learners.clearing.solver import ClearingSchedule

Floats = NDArray[np.float64]
Products = NDArray[np.uint8]

SHRINKAGE = 1e-2
"""ε. The article has 1e-4. After the first 5,120 images of ``mixed``, seed 0, test digits / fashion: .983 / .853 with
1e-2, .980 / .849 with 1e-3, .977 / .841 with 1e-4."""


class NearestMean:
    """``ncm``: keeps the sum of the products of every class, exactly. Cleared after every micro-batch."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._sums: dict[str, NDArray[np.int64]] = {}
        self.counts: dict[str, int] = {}
        self._weights = np.zeros((0, 0), np.float32)
        self._bias = np.zeros(0, np.float32)
        self._served: tuple[str, ...] = ()
        self.generation = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was added, in the order of appearance."""
        return tuple(self.counts)

    @property
    def images(self) -> int:
        """Images added so far."""
        return sum(self.counts.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the sums and of what is served."""
        return sum(total.nbytes for total in self._sums.values()) + self._weights.nbytes + self._bias.nbytes

    def means(self) -> Floats:
        """The mean products of every class: ``float64[C, D]``."""
        return np.array([self._sums[name] / count for name, count in self.counts.items()])

    def quote(self, images: NDArray[np.uint8]) -> Quoted:
        """Forward only: ``uint8[n, 28, 28]``."""
        products = self._features(images)[:, :-1]
        logits = np.zeros((len(images), 0), np.float32)
        if self._served:
            logits = products.astype(np.float32) @ self._weights + self._bias
        return Quoted(products, logits, self._served)

    def settle(self, quotes: Quoted, labels: Sequence[str | None]) -> Labelled:
        """The products of the labelled images. Changes nothing."""
        return quotes.labelled(labels)

    def add(self, update: Labelled) -> None:
        """What was found becomes state."""
        labels = np.array(update.labels, object)
        for name in dict.fromkeys(update.labels):
            mine = update.rows[labels == name]
            self._sums[name] = self._sums.get(name, 0) + mine.sum(axis=0, dtype=np.int64)
            self.counts[name] = self.counts.get(name, 0) + len(mine)

    def clear(self) -> bool:
        """Means become weights; whether there were any."""
        if self.images:
            means = self.means()
            self._serve(means, means)
        return bool(self.images)

    def _serve(self, means: Floats, weights: Floats) -> None:
        """Serve z·w − ½ μ·w, for the mean μ and the weights w of each class."""
        self._weights = np.ascontiguousarray(weights.T, np.float32)
        self._bias = (-0.5 * np.einsum("cd,cd->c", means, weights)).astype(np.float32)
        self._served = self.classes
        self.generation += 1


class StreamingLda(NearestMean):
    """``slda``: keeps the covariance besides, t Σ of the formulas. Cleared when ``clearing`` is."""

    def __init__(self, features: Features) -> None:
        super().__init__(features)
        self._scatter = np.zeros((0, 0))
        self._schedule = ClearingSchedule()

    @property
    def state_bytes(self) -> int:
        """Bytes of the covariance, of the sums and of what is served."""
        return super().state_bytes + self._scatter.nbytes

    def covariance(self) -> Floats:
        """Σ: ``float64[D, D]``."""
        result: Floats = self._scatter / max(1, self.images)
        return result

    def add(self, update: Labelled) -> None:
        """What was found becomes state, as if image by image."""
        if not update.labels:
            return
        before = self.images
        if not before:
            self._scatter = np.zeros((update.rows.shape[1],) * 2)
        if set(update.labels) - set(self.counts):
            self._schedule.new_class(before)
        t = before + np.arange(len(update.labels))
        rows = self._deviations(update) * np.sqrt(t / (t + 1))[:, None]
        with blas_on_all_cores():
            self._scatter += rows.T @ rows
        super().add(update)

    def clear(self) -> bool:
        """If the schedule says so, means and covariance become weights; whether they did."""
        if not self.images or not self._schedule.due(self.images):
            return False
        means = self.means()
        self._serve(means, discriminants(self.covariance(), means))
        self._schedule.cleared(self.images)
        return True

    def _deviations(self, update: Labelled) -> NDArray[np.float32]:
        """z − μ of each image, μ the mean of the images of its class before it: ``float32[m, D]``."""
        result = update.rows.astype(np.float32)
        labels = np.array(update.labels, object)
        for name in dict.fromkeys(update.labels):
            mine = update.rows[labels == name].astype(np.float64)
            count, total = self.counts.get(name, 0), self._sums.get(name, np.zeros(mine.shape[1], np.int64))
            before = total + np.cumsum(mine, axis=0) - mine
            result[labels == name] = mine - before / np.maximum(1, count + np.arange(len(mine)))[:, None]
            if not count:
                result[np.argmax(labels == name)] = 0
        return result


def discriminants(covariance: Floats, means: Floats) -> Floats:
    """Λμ of every class: from ``float64[D, D]`` and ``float64[C, D]`` to ``float64[C, D]``.

    Where no image has said anything about Σ yet, it is taken for I.
    """
    width = len(covariance)
    unit = np.trace(covariance) / width or 1.0
    shrunk = (1 - SHRINKAGE) * covariance
    np.einsum("ii->i", shrunk)[:] += SHRINKAGE * unit
    with blas_on_all_cores():
        factor = cho_factor(shrunk, lower=True, overwrite_a=True, check_finite=False)
        result: Floats = cho_solve(factor, means.T, check_finite=False).T
    return result
