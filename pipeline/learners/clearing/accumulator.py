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
"""Pieces that rows and columns of A are cut into; 21 tiles, on and above the diagonal, for all cores to share."""


class TiledSquare:
    """A = Σ z zᵀ, of which only the upper triangle is kept.

    One matrix product squares up to ``EXACT_IMAGES`` images. It runs in float32, on z − 128, so that it is exact.
    ``centred`` says what the square lacks then; that is added when A is read.

    The product is cut into tiles, and other threads compute them while the next images come. So no core is idle while
    Python does the rest.
    """

    def __init__(self, packed: Integers, width: int) -> None:
        self._width = width
        self._A = np.zeros((width, width), np.int64)
        edges = [width * i // CUTS for i in range(CUTS + 1)]
        spans = [slice(*edge) for edge in pairwise(edges)]
        self._tiles = [(rows, columns) for i, rows in enumerate(spans) for columns in spans[i:]]
        self._offsets = np.zeros(width, np.int64)  # A is _A[i, j] + _offsets[i] + _offsets[j]
        self._pending: list[NDArray[np.uint8]] = []
        self._sign = 1  # of everything pending
        self._matrix = np.empty_like(self._A, np.float64)
        self._waiting: deque[Callable[[], None]] = deque()  # tiles of the square that is being computed
        self._begun: list[Future[None]] = []
        self.add_packed(packed, 1)

    def add(self, products: NDArray[np.uint8], sign: int) -> None:
        """Add images ``uint8[n, D]``, or with ``sign`` −1 take them away; not all of that is done when this returns."""
        if sign != self._sign:
            self._square()
            self._sign = sign
        self._pending.append(products)
        if sum(map(len, self._pending)) >= EXACT_IMAGES:
            self._square()
        self._begin(-(-len(self._tiles) * len(products) // EXACT_IMAGES))

    def add_packed(self, packed: Integers, sign: int) -> None:
        """Add a packed triangle, or take it away."""
        self._finish_tiles()
        step = np.add if sign > 0 else np.subtract
        for i, row in enumerate(packed_rows(packed, self._width)):
            step(self._A[i, i:], row, out=self._A[i, i:])

    def packed(self) -> Integers:
        """A as a packed triangle of its own."""
        self._finish()
        A = np.empty(packed_size(self._width), np.int64)
        for i, row in enumerate(packed_rows(A, self._width)):
            np.add(self._A[i, i:], self._offsets[i:], out=row)
            row += self._offsets[i]
        return A

    def matrix(self) -> NDArray[np.float64]:
        """A as ``float64[D, D]``, of which only the upper triangle counts.

        It is the same memory each time: to have 48 MB given and taken away takes half as long as to solve for them.
        """
        self._finish()
        each(self._read_tile, self._tiles)
        return self._matrix

    def _square(self) -> None:
        """Let zᵀz of everything pending be added to A, or taken away."""
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
        """Begin to compute tiles that wait."""
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
    """Grows ``Sums``.

    Parameters
    ----------
    sums
        Where to begin.
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
        """Add the images of an update. With ``sign`` −1 they are taken away."""
        self._name(update.classes)
        for label in update.labels:
            self.counts[self.classes.index(label)] += sign
        # No sum is larger than this, and float64 is exact for all that the bound on targets allows.
        largest = 255 * np.abs(update.targets).sum(axis=0).max(initial=0)
        exact = np.float32 if largest <= EXACT else np.float64
        change = update.products.T.astype(exact) @ update.targets.astype(exact)
        for name, column in zip(update.classes, change.T, strict=True):
            self._T[self.classes.index(name)] += sign * column.astype(np.int64)
        self._square.add(update.products, sign)

    def add_sums(self, sums: Sums, sign: int = 1) -> None:
        """Add sums of the same width, or take them away."""
        self._name(list(sums.counts))
        for name, count in sums.counts.items():
            place = self.classes.index(name)
            self.counts[place] += sign * count
            self._T[place] += sign * sums.T[name]
        self._square.add_packed(sums.A, sign)

    def total(self) -> Sums:
        """The sums as a value of their own."""
        return Sums(
            self._square.packed(),
            {c: T.copy() for c, T in zip(self.classes, self._T, strict=True)},
            dict(zip(self.classes, self.counts, strict=True)),
        )

    def equations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A, of which only the upper triangle counts, and T: ``float64[D, D]``, ``float64[D, C]``.

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
