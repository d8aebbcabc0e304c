"""Sums that grow in place, a micro-batch at a time, for the price of one symmetric matrix product."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.parallel import each
from pipeline.sums import Integers, Sums
from pipeline.trunk.filters import EXACT

EXACT_IMAGES = 1024
"""Images squared at once: products less 128 are at most 128, and 1024 · 128² = 2²⁴ is still exact in float32."""

CUTS = 6
"""Pieces that rows and columns of A are cut into; 21 tiles, on and above the diagonal, for all cores to share."""


class Ledger:
    """Grows ``Sums``.

    zᵀz is computed in float32, by one matrix product for up to 1024 images: of z − 128, so that it is exact. With
    s = Σ z over n images, Σ z zᵀ is Σ (z − 128)(z − 128)ᵀ + 128 (s_i + s_j) − 128² n; the second part is the sum of
    one number for the row and one for the column, and is put in only when A is read.

    Parameters
    ----------
    sums
        Where to begin.
    """

    def __init__(self, sums: Sums) -> None:
        self.width = sums.width
        self.classes = list(sums.counts)
        self.counts = [sums.counts[c] for c in self.classes]
        self._A = _unpacked(sums.A, self.width)
        self._T = [sums.T[c].copy() for c in self.classes]
        edges = [self.width * i // CUTS for i in range(CUTS + 1)]
        spans = [slice(*edge) for edge in pairwise(edges)]
        self._tiles = [(rows, columns) for i, rows in enumerate(spans) for columns in spans[i:]]
        self._offsets = np.zeros(self.width, np.int64)  # A is _A[i, j] + _offsets[i] + _offsets[j]
        self._pending: list[NDArray[np.uint8]] = []

    @property
    def images(self) -> int:
        """Images summed over."""
        return sum(self.counts)

    def add(
        self, products: NDArray[np.uint8], targets: Integers, labels: Sequence[str], classes: Sequence[str]
    ) -> None:
        """Add images: ``uint8[n, D]``, targets ``int64[n, C]`` in 256ths, n labels, and the C classes' names."""
        for name in classes:
            if name not in self.classes:
                self.classes.append(name)
                self.counts.append(0)
                self._T.append(np.zeros(self.width, np.int64))
        for label in labels:
            self.counts[self.classes.index(label)] += 1
        # No sum is larger than this, and float64 is exact for all that the market's bound on targets allows.
        largest = 255 * np.abs(targets).sum(axis=0).max(initial=0)
        exact = np.float32 if largest <= EXACT else np.float64
        change = products.T.astype(exact) @ targets.astype(exact)
        for name, column in zip(classes, change.T, strict=True):
            self._T[self.classes.index(name)] += column.astype(np.int64)
        self._pending.append(products)
        if sum(map(len, self._pending)) >= EXACT_IMAGES:
            self._square()

    def _square(self) -> None:
        """Add zᵀz of everything pending to A."""
        if not self._pending:
            return
        pending = np.concatenate(self._pending)
        self._pending = []
        for start in range(0, len(pending), EXACT_IMAGES):
            z = (pending[start : start + EXACT_IMAGES] ^ np.uint8(128)).view(np.int8).astype(np.float32)  # z − 128
            self._offsets += 128 * z.sum(axis=0).astype(np.int64) + 128**2 // 2 * len(z)
            each(partial(self._add_tile, z), self._tiles)

    def _add_tile(self, z: NDArray[np.float32], tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        self._A[tile] += (z[:, rows].T @ z[:, columns]).astype(np.int64)

    def total(self) -> Sums:
        """The sums as a value of their own."""
        self._square()
        rows = [self._A[i, i:] + self._offsets[i:] + self._offsets[i] for i in range(self.width)]
        return Sums(
            np.concatenate(rows),
            {c: T.copy() for c, T in zip(self.classes, self._T, strict=True)},
            dict(zip(self.classes, self.counts, strict=True)),
        )

    def equations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A, of which only the upper triangle counts, and T: ``float64[D, D]``, ``float64[D, C]``, copies."""
        self._square()
        A = np.empty_like(self._A, np.float64)
        each(partial(self._read_tile, A), self._tiles)
        return A, np.array(self._T, np.float64).reshape(-1, self.width).T

    def _read_tile(self, A: NDArray[np.float64], tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        A[tile] = self._A[tile]
        A[tile] += self._offsets[rows, None]
        A[tile] += self._offsets[columns]


def _unpacked(packed: Integers, width: int) -> Integers:
    square = np.zeros((width, width), np.int64)
    start = 0
    for i in range(width):
        square[i, i:] = packed[start : start + width - i]
        start += width - i
    return square
