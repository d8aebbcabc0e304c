"""Sums over images as values with + and −: what settling leaves behind, and all that the solver needs.

All of them are integers, so any order, any split over learners and any batch size gives the same sums, and what was
added can be taken back. ``Sums.digest`` proves it.

Two types hold them. ``Sums`` are the numbers themselves: 24 MB at D = 2,465, and adding two of them takes as long as
learning from hundreds of images. ``LooseSums`` keep the newest images as images until there are many.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk

from pipeline.learners.protocol import Integers

EXACT_IMAGES = 1024
"""Images squared at once: products less 128 are at most 128, and 1024 · 128² = 2²⁴ is still exact in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class ClearingUpdate:
    """What settling found in the m images of a micro-batch that were labelled and sound.

    Parameters
    ----------
    products
        ``uint8[m, D]``.
    targets
        ``int64[m, C]``, in 256ths.
    labels
        m names.
    classes
        The C names of the columns.
    unsound
        Places in the micro-batch of images whose loss was not finite. They are not in the update.
    """

    products: NDArray[np.uint8]
    targets: Integers
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    unsound: tuple[int, ...] = ()


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
class Sums:
    """The numbers that images with products z and targets t add up to.

    Parameters
    ----------
    A
        Σ z zᵀ: the upper triangle row by row, ``int64[D(D+1)/2]``.
    T
        Σ z t, for each class a column ``int64[D]``; t in 256ths.
    counts
        Images of each class.

    Examples
    --------
    >>> one = Sums(np.array([1, 2, 4]), {"cat": np.array([256, 512])}, {"cat": 1})
    >>> two = one + one
    >>> two.images, two.T["cat"].tolist(), two.width
    (2, [512, 1024], 2)
    >>> (two - one).digest("identity") == one.digest("identity")
    True
    """

    A: Integers
    T: Mapping[str, Integers] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def zero(cls, width: int) -> Self:
        """The sums over no image at all, for D = ``width`` products."""
        return cls(np.zeros(packed_size(width), np.int64))

    @property
    def width(self) -> int:
        """D, the number of products."""
        return (int(np.sqrt(8 * len(self.A) + 1)) - 1) // 2

    @property
    def images(self) -> int:
        """Images summed over."""
        return sum(self.counts.values())

    @property
    def classes(self) -> list[str]:
        """The classes that images were seen of, in the order of their UTF-8 names."""
        return sorted((name for name, count in self.counts.items() if count), key=str.encode)

    def __add__(self, other: Self) -> Self:
        return self._combined(other, 1)

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, -1)

    def with_images(self, updates: Sequence[ClearingUpdate]) -> Self:
        """These and the images of the updates."""
        if not updates:
            return self
        A, T, counts = self.A.copy(), dict(self.T), dict(self.counts)
        for update in updates:
            change = update.products.T.astype(np.float64) @ update.targets  # exact: no sum reaches 2⁵³
            for name, column in zip(update.classes, change.T, strict=True):
                T[name] = T.get(name, 0) + column.astype(np.int64)
                counts[name] = counts.get(name, 0) + update.labels.count(name)
        products = np.concatenate([update.products for update in updates])
        for start in range(0, len(products), EXACT_IMAGES):
            _add_squares(A, products[start : start + EXACT_IMAGES])
        return type(self)(A, T, counts)

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

        Little-endian int64: A, then T and count of each class in the order of ``classes``. A class of which nothing
        is left is left out, so that what was added and taken back leaves no trace.
        """
        sha = hashlib.sha256(identity.encode())
        sha.update(self.A.astype("<i8", copy=False).data)
        for name in self.classes:
            sha.update(name.encode() + b"\0")
            sha.update(self.T[name].astype("<i8", copy=False).tobytes())
            sha.update(np.int64(self.counts[name]).astype("<i8").tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class LooseSums:
    """Dense sums, if there are any, and images that were not added to them yet.

    What a group publishes and adds up: a delta of few images is shorter as images, and adding it takes no time.

    Parameters
    ----------
    dense
        None, where all that there is are the images.
    few
        Updates that hold the images: fewer than ``EXACT_IMAGES``, after an addition.
    """

    dense: Sums | None
    few: tuple[ClearingUpdate, ...] = ()

    @property
    def images(self) -> int:
        """Images summed over."""
        return (self.dense.images if self.dense else 0) + images_of(self.few)

    def summed(self) -> Sums:
        """All of it as dense sums: some 0.1 s at D = 2,465 where there are images. Raises ValueError if empty."""
        if not self.dense and not self.few:
            raise ValueError("sums of nothing have no width")
        return (self.dense or Sums.zero(self.few[0].products.shape[1])).with_images(self.few)

    def __add__(self, other: Self) -> Self:
        dense = self.dense + other.dense if self.dense and other.dense else self.dense or other.dense
        together = type(self)(dense, (*self.few, *other.few))
        return type(self)(together.summed()) if images_of(together.few) >= EXACT_IMAGES else together

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.summed() - other.summed())


def are_few(updates: Iterable[ClearingUpdate], width: int) -> bool:
    """Whether updates are a quarter as long as their sums would be in integers of 32 bits, or shorter."""
    return images_of(updates) <= width // 2


def images_of(updates: Iterable[ClearingUpdate]) -> int:
    """How many images they hold."""
    return sum(len(update.labels) for update in updates)


def _add_squares(A: Integers, products: NDArray[np.uint8]) -> None:
    z, lacking = centred(products)
    squares = ssyrk(1.0, z.T, lower=1).T  # of a Fortran matrix the lower triangle, of its transpose the upper one
    for i, row in enumerate(packed_rows(A, len(squares))):
        row += squares[i, i:].astype(np.int64) + lacking[i:] + lacking[i]
