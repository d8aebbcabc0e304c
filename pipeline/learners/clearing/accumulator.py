"""Sums that grow in place, a micro-batch at a time, for the price of one symmetric matrix product."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import begin, each
from pipeline.features.filters import EXACT
from pipeline.learners.clearing.sums import (
    EXACT_IMAGES,
    ClearingUpdate,
    Sums,
    centred,
    packed_rows,
    packed_size,
)
from pipeline.learners.protocol import Integers

CUTS = 6
"""Pieces that rows and columns of A are cut into. All cores share the 21 tiles on and above the diagonal."""


class TiledSquare:
    """The upper triangle of A = Σ z zᵀ.

    One matrix product squares up to ``EXACT_IMAGES`` images. It takes z − 128, so that float32 is exact. ``centred``
    computes what that square lacks, and reading A adds it.

    The product is cut into tiles. Other threads compute them while the next images come, so no core is idle.
    """

    def __init__(self, packed: Integers, width: int) -> None:
        self._width = width
        self._A = np.zeros((width, width), np.int64)
        edges = [width * i // CUTS for i in range(CUTS + 1)]
        spans = [slice(*edge) for edge in pairwise(edges)]
        self._tiles = [(rows, columns) for i, rows in enumerate(spans) for columns in spans[i:]]
        self._offsets = np.zeros(width, np.int64)  # A is _A[i, j] + _offsets[i] + _offsets[j]
        self._pending: list[NDArray[np.uint8]] = []
        self._sign = 1  # of all pending images
        self._matrix = np.empty_like(self._A, np.float64)
        self._waiting: deque[Callable[[], None]] = deque()  # tiles of the square that is being computed
        self._begun: list[Future[None]] = []
        self.add_packed(packed, 1)

    def add(self, products: NDArray[np.uint8], sign: int) -> None:
        """Add images ``uint8[n, D]``, or subtract them with ``sign`` −1. Threads may finish the work later."""
        if sign != self._sign:
            self._square()
            self._sign = sign
        self._pending.append(products)
        if sum(map(len, self._pending)) >= EXACT_IMAGES:
            self._square()
        self._begin(-(-len(self._tiles) * len(products) // EXACT_IMAGES))

    def add_packed(self, packed: Integers, sign: int) -> None:
        """Add a packed triangle ``int64[D(D+1)/2]``, or subtract it with ``sign`` −1."""
        self._finish_tiles()
        step = np.add if sign > 0 else np.subtract
        for i, row in enumerate(packed_rows(packed, self._width)):
            step(self._A[i, i:], row, out=self._A[i, i:])

    def packed(self) -> Integers:
        """A copy of A as a packed triangle ``int64[D(D+1)/2]``."""
        self._finish()
        A = np.empty(packed_size(self._width), np.int64)
        for i, row in enumerate(packed_rows(A, self._width)):
            np.add(self._A[i, i:], self._offsets[i:], out=row)
            row += self._offsets[i]
        return A

    def matrix(self) -> NDArray[np.float64]:
        """A as ``float64[D, D]``; only the upper triangle is valid.

        Each call returns the same memory: to allocate and free 48 MB takes half as long as to solve.
        """
        self._finish()
        each(self._read_tile, self._tiles)
        return self._matrix

    def _square(self) -> None:
        """Queue the tiles of zᵀz of all pending images."""
        if not self._pending:
            return
        pending = np.concatenate(self._pending)
        self._pending = []
        for start in range(0, len(pending), EXACT_IMAGES):
            self._finish_tiles()
            z, lacking = centred(pending[start : start + EXACT_IMAGES])
            self._offsets += self._sign * lacking
            signed = z if self._sign > 0 else -z
            self._waiting.extend(partial(self._add_tile, z, signed, tile) for tile in self._tiles)

    def _begin(self, most: int) -> None:
        """Let threads compute up to ``most`` of the tiles that wait."""
        self._begun += [begin(self._waiting.popleft()) for _ in range(min(most, len(self._waiting)))]

    def _finish(self) -> None:
        """Wait until all that was added is in A."""
        self._square()
        self._finish_tiles()

    def _finish_tiles(self) -> None:
        self._begin(len(self._waiting))
        for tile in self._begun:
            tile.result()
        self._begun.clear()

    def _add_tile(self, z: NDArray[np.float32], signed: NDArray[np.float32], tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        self._A[tile] += (z[:, rows].T @ signed[:, columns]).astype(np.int64)

    def _read_tile(self, tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        numbers = self._matrix[tile]
        numbers[:] = self._A[tile]
        numbers += self._offsets[rows, None]
        numbers += self._offsets[columns]


class Accumulator:
    """``Sums`` that grow in place.

    Parameters
    ----------
    sums
        Where to begin.

    Examples
    --------
    >>> accumulator = Accumulator(Sums.zero(2))
    >>> products, targets = np.array([[1, 2], [3, 4]], np.uint8), np.array([[256], [256]])
    >>> accumulator.add(ClearingUpdate(products, targets, labels=("cat", "cat"), classes=("cat",)))
    >>> accumulator.total().A.tolist(), accumulator.total().T["cat"].tolist()
    ([10, 14, 20], [1024, 1536])
    >>> accumulator.add(ClearingUpdate(products[1:], targets[1:], ("cat",), ("cat",)), sign=-1)
    >>> accumulator.images, accumulator.total().A.tolist()
    (1, [1, 2, 4])
    """

    def __init__(self, sums: Sums) -> None:
        self.width = sums.width
        self.classes = list(sums.counts)
        self.counts = [sums.counts[c] for c in self.classes]
        self._T = [sums.T[c].copy() for c in self.classes]
        self._square = TiledSquare(sums.A, self.width)

    @property
    def images(self) -> int:
        """Images summed over."""
        return sum(self.counts)

    def add(self, update: ClearingUpdate, sign: int = 1) -> None:
        """Add the images of an update, or subtract them with ``sign`` −1."""
        self._name(update.classes)
        for label in update.labels:
            self.counts[self.classes.index(label)] += sign
        # No sum in the product is larger than this. float64 is exact for all targets up to LARGEST_TARGET.
        largest = 255 * np.abs(update.targets).sum(axis=0).max(initial=0)
        exact = np.float32 if largest <= EXACT else np.float64
        change = update.products.T.astype(exact) @ update.targets.astype(exact)
        for name, column in zip(update.classes, change.T, strict=True):
            self._T[self.classes.index(name)] += sign * column.astype(np.int64)
        self._square.add(update.products, sign)

    def add_sums(self, sums: Sums, sign: int = 1) -> None:
        """Add sums of the same width, or subtract them with ``sign`` −1."""
        self._name(list(sums.counts))
        for name, count in sums.counts.items():
            place = self.classes.index(name)
            self.counts[place] += sign * count
            self._T[place] += sign * sums.T[name]
        self._square.add_packed(sums.A, sign)

    def total(self) -> Sums:
        """A copy of the sums, as a value."""
        return Sums(
            self._square.packed(),
            {c: T.copy() for c, T in zip(self.classes, self._T, strict=True)},
            dict(zip(self.classes, self.counts, strict=True)),
        )

    def equations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A ``float64[D, D]``, valid in the upper triangle, and T ``float64[D, C]``.

        The next call overwrites A.
        """
        return self._square.matrix(), np.array(self._T, np.float64).reshape(-1, self.width).T

    def _name(self, classes: Sequence[str]) -> None:
        """Make room for classes that are new."""
        for name in classes:
            if name not in self.classes:
                self.classes.append(name)
                self.counts.append(0)
                self._T.append(np.zeros(self.width, np.int64))
