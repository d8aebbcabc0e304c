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
from pipeline.learners.clearing.sums import EXACT_IMAGES, Sums, centred, packed_rows, packed_size
from pipeline.learners.protocol import Integers

CUTS = 6
"""Pieces that rows and columns of A are cut into; 21 tiles, on and above the diagonal, for all cores to share."""


class Accumulator:
    """Grows ``Sums``.

    zᵀz is computed in float32, by one matrix product for up to 1024 images: of z − 128, so that it is exact. What it
    lacks then (``centred``) is put in only when A is read.

    The product is cut into tiles, which are computed behind the caller's back while the next 1024 images are added: so
    no core is idle while Python does the rest.

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
        self._sign = 1  # of everything pending
        self._equations = np.empty_like(self._A, np.float64)
        self._waiting: deque[Callable[[], None]] = deque()  # tiles of the square that is being computed
        self._begun: list[Future[None]] = []

    @property
    def images(self) -> int:
        """Images summed over."""
        return sum(self.counts)

    def add(
        self,
        products: NDArray[np.uint8],
        targets: Integers,
        labels: Sequence[str],
        classes: Sequence[str],
        sign: int = 1,
    ) -> None:
        """Add images: ``uint8[n, D]``, targets ``int64[n, C]`` in 256ths, n labels, and the C classes' names.

        With ``sign`` −1 they are taken away.
        """
        self._name(classes)
        for label in labels:
            self.counts[self.classes.index(label)] += sign
        # No sum is larger than this, and float64 is exact for all that the market's bound on targets allows.
        largest = 255 * np.abs(targets).sum(axis=0).max(initial=0)
        exact = np.float32 if largest <= EXACT else np.float64
        change = products.T.astype(exact) @ targets.astype(exact)
        for name, column in zip(classes, change.T, strict=True):
            self._T[self.classes.index(name)] += sign * column.astype(np.int64)
        if sign != self._sign:
            self._square()
            self._sign = sign
        self._pending.append(products)
        if sum(map(len, self._pending)) >= EXACT_IMAGES:
            self._square()
        self._begin(-(-len(self._tiles) * len(products) // EXACT_IMAGES))

    def add_sums(self, sums: Sums, sign: int = 1) -> None:
        """Add sums of the same width, or take them away."""
        if sums.few is not None:
            for update in sums.few:
                self.add(update.products, update.targets, update.labels, update.classes, sign)
            return
        self._finish()
        self._name(list(sums.counts))
        for name, count in sums.counts.items():
            place = self.classes.index(name)
            self.counts[place] += sign * count
            self._T[place] += sign * sums.T[name]
        step = np.add if sign > 0 else np.subtract
        for i, row in enumerate(packed_rows(sums.A, self.width)):
            step(self._A[i, i:], row, out=self._A[i, i:])

    def _name(self, classes: Sequence[str]) -> None:
        """Make room for classes that are new."""
        for name in classes:
            if name not in self.classes:
                self.classes.append(name)
                self.counts.append(0)
                self._T.append(np.zeros(self.width, np.int64))

    def _square(self) -> None:
        """Let zᵀz of everything pending be added to A, or taken away."""
        if not self._pending:
            return
        pending = np.concatenate(self._pending)
        self._pending = []
        for start in range(0, len(pending), EXACT_IMAGES):
            self._finish()
            z, lacking = centred(pending[start : start + EXACT_IMAGES])
            self._offsets += self._sign * lacking
            signed = z if self._sign > 0 else -z
            self._waiting.extend(partial(self._add_tile, z, signed, tile) for tile in self._tiles)

    def _begin(self, most: int) -> None:
        """Begin to compute tiles that wait."""
        self._begun += [begin(self._waiting.popleft()) for _ in range(min(most, len(self._waiting)))]

    def _finish(self) -> None:
        """Wait until no tile is left."""
        self._begin(len(self._waiting))
        for tile in self._begun:
            tile.result()
        self._begun.clear()

    def _add_tile(self, z: NDArray[np.float32], signed: NDArray[np.float32], tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        self._A[tile] += (z[:, rows].T @ signed[:, columns]).astype(np.int64)

    def total(self) -> Sums:
        """The sums as a value of their own."""
        self._square()
        self._finish()
        A = np.empty(packed_size(self.width), np.int64)
        for i, row in enumerate(packed_rows(A, self.width)):
            np.add(self._A[i, i:], self._offsets[i:], out=row)
            row += self._offsets[i]
        return Sums(
            A,
            {c: T.copy() for c, T in zip(self.classes, self._T, strict=True)},
            dict(zip(self.classes, self.counts, strict=True)),
        )

    def equations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A, of which only the upper triangle counts, and T: ``float64[D, D]``, ``float64[D, C]``.

        A is the same memory each time: to have 48 MB given and taken away takes half as long as to solve for them.
        """
        self._square()
        self._finish()
        each(self._read_tile, self._tiles)
        return self._equations, np.array(self._T, np.float64).reshape(-1, self.width).T

    def _read_tile(self, tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        numbers = self._equations[tile]
        numbers[:] = self._A[tile]
        numbers += self._offsets[rows, None]
        numbers += self._offsets[columns]


def _unpacked(packed: Integers, width: int) -> Integers:
    square = np.zeros((width, width), np.int64)
    for i, row in enumerate(packed_rows(packed, width)):
        square[i, i:] = row
    return square
