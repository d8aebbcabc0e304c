"""Sums: what settling leaves behind, as a value with + and −.

All integers, so they form a group: any order, any split over learners, any batch size gives the same sums, and
what was added can be taken back. ``digest`` proves it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk

from pipeline.learners.protocol import ClearingUpdate, Integers

EXACT_IMAGES = 1024
"""Images squared at once: products less 128 are at most 128, and 1024 · 128² = 2²⁴ is still exact in float32."""


def packed_size(width: int) -> int:
    """Numbers in the upper triangle of a ``width`` × ``width`` matrix."""
    return width * (width + 1) // 2


def packed_rows(packed: Integers, width: int) -> Iterable[Integers]:
    """The rows of an upper triangle, each from its diagonal on."""
    start = 0
    for length in range(width, 0, -1):
        yield packed[start : start + length]
        start += length


def centred(products: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Integers]:
    """Products less 128, ``float32[n, D]``, and what their square lacks, ``int64[D]``.

    With s = Σ z over n images, Σ z zᵀ is Σ (z − 128)(z − 128)ᵀ + 128 (s_i + s_j) − 128² n: the latter is the sum of a
    number for the row and one for the column. float32 squares up to ``EXACT_IMAGES`` of them without rounding.
    """
    z = (products ^ np.uint8(128)).view(np.int8).astype(np.float32)
    return z, 128 * z.sum(axis=0).astype(np.int64) + 128**2 // 2 * len(z)


@dataclass(frozen=True, eq=False)
class _Numbers:
    A: Integers
    T: Mapping[str, Integers]
    counts: Mapping[str, int]


class Sums:
    """Sums over images with products z and targets t.

    Those of few images stay what they are made of until somebody asks for a number: then adding them takes no time,
    and they can be sent as they are.

    Parameters
    ----------
    A
        Σ z zᵀ: the upper triangle row by row, ``int64[D(D+1)/2]``.
    T
        Σ z t, for each class a column ``int64[D]``; t in 256ths.
    counts
        Images of each class.

    Attributes
    ----------
    width
        D, the number of products.
    few
        The updates that these are the sums of, if they were made ``of`` updates; else None.
    """

    few: tuple[ClearingUpdate, ...] | None = None

    def __init__(self, A: Integers, T: Mapping[str, Integers] | None = None, counts: Mapping[str, int] | None = None):
        self.width = (int(np.sqrt(8 * len(A) + 1)) - 1) // 2
        self._known: tuple[_Numbers, tuple[ClearingUpdate, ...]] = _Numbers(A, T or {}, counts or {}), ()

    @classmethod
    def zero(cls, width: int) -> Self:
        """The sums over no image at all, for D = ``width`` products."""
        return cls(np.zeros(packed_size(width), np.int64))

    @classmethod
    def of(cls, updates: Sequence[ClearingUpdate], width: int) -> Self:
        """The sums of updates with D = ``width`` products."""
        sums = cls.zero(width)
        sums.few = tuple(updates)
        sums._known = sums._known[0], sums.few
        return sums

    @property
    def A(self) -> Integers:
        return self._numbers().A

    @property
    def T(self) -> Mapping[str, Integers]:
        return self._numbers().T

    @property
    def counts(self) -> Mapping[str, int]:
        return self._numbers().counts

    @property
    def images(self) -> int:
        """Images summed over."""
        numbers, rest = self._known
        return sum(numbers.counts.values()) + images_of(rest)

    @property
    def classes(self) -> list[str]:
        """The classes that images were seen of, in the order of their UTF-8 names."""
        return sorted((name for name, count in self.counts.items() if count), key=str.encode)

    def __add__(self, other: Self) -> Self:
        return self._combined(other, 1) if other.few is None else self._with(other.few)

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, -1)

    def _with(self, updates: tuple[ClearingUpdate, ...]) -> Self:
        numbers, rest = self._known
        sums = type(self)(numbers.A, numbers.T, numbers.counts)
        sums._known = numbers, (*rest, *updates)
        if images_of(sums._known[1]) >= EXACT_IMAGES:
            sums._numbers()
        return sums

    def _numbers(self) -> _Numbers:
        """With all that was not added up yet. Any thread may ask: what is known changes in one step."""
        numbers, rest = self._known
        if rest:
            numbers = _added(numbers, rest)
            self._known = numbers, ()
        return numbers

    def _combined(self, other: Self, sign: int) -> Self:
        names = list(dict.fromkeys([*self.counts, *other.counts]))
        nothing = np.zeros(self.width, np.int64)
        return type(self)(
            self.A + sign * other.A,
            {c: self.T.get(c, nothing) + sign * other.T.get(c, nothing) for c in names},
            {c: self.counts.get(c, 0) + sign * other.counts.get(c, 0) for c in names},
        )

    def digest(self, identity: str) -> str:
        """SHA-256 of the identity and of every number, in hexadecimal.

        Little-endian int64: A, then T and count of each class in the order of ``classes``. A class that nothing
        is left of is left out, so that what was added and taken back leaves no trace.
        """
        sha = hashlib.sha256(identity.encode())
        sha.update(self.A.astype("<i8", copy=False).data)
        for name in self.classes:
            sha.update(name.encode() + b"\0")
            sha.update(self.T[name].astype("<i8", copy=False).tobytes())
            sha.update(np.int64(self.counts[name]).astype("<i8").tobytes())
        return sha.hexdigest()


def are_few(updates: Iterable[ClearingUpdate], width: int) -> bool:
    """Whether updates are a quarter as long as their sums would be in integers of 32 bits, or shorter."""
    return images_of(updates) <= width // 2


def images_of(updates: Iterable[ClearingUpdate]) -> int:
    """How many images they hold."""
    return sum(len(update.labels) for update in updates)


def _added(numbers: _Numbers, updates: Sequence[ClearingUpdate]) -> _Numbers:
    A, T, counts = numbers.A.copy(), dict(numbers.T), dict(numbers.counts)
    for update in updates:
        change = update.products.T.astype(np.float64) @ update.targets  # exact: no sum reaches 2⁵³
        for name, column in zip(update.classes, change.T, strict=True):
            T[name] = T.get(name, 0) + column.astype(np.int64)
            counts[name] = counts.get(name, 0) + update.labels.count(name)
    products = np.concatenate([update.products for update in updates])
    for start in range(0, len(products), EXACT_IMAGES):
        _add_squares(A, products[start : start + EXACT_IMAGES])
    return _Numbers(A, T, counts)


def _add_squares(A: Integers, products: NDArray[np.uint8]) -> None:
    z, lacking = centred(products)
    squares = ssyrk(1.0, z.T, lower=1).T  # of a Fortran matrix the lower triangle, of its transpose the upper one
    for i, row in enumerate(packed_rows(A, len(squares))):
        row += squares[i, i:].astype(np.int64) + lacking[i:] + lacking[i]
