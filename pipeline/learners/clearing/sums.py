"""Sums over images, as values with + and −: all that ``clearing`` remembers, and all that the solver needs.

All numbers are integers. So any order, any split over learners and any batch size gives the same sums, and images can
be subtracted again. ``Sums.digest`` proves it.

Two types hold sums. ``Sums`` holds the numbers: 24 MB at D = 2,465, and adding two takes as long as learning from
hundreds of images. ``LooseSums`` keeps the newest images as images until there are many.
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
"""Most images squared at once: |z − 128| is at most 128, and 1024 · 128² = 2²⁴ is still exact in float32."""


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
    """Products z − 128, ``float32[n, D]``, and what their square lacks, ``int64[D]``.

    With s = Σ z over n images and l = 128 s − 128² n / 2, element (i, j) of Σ z zᵀ is that of Σ (z − 128)(z − 128)ᵀ
    plus l_i + l_j. float32 squares up to ``EXACT_IMAGES`` images without rounding.
    """
    z = (products ^ np.uint8(128)).view(np.int8).astype(np.float32)
    return z, 128 * z.sum(axis=0).astype(np.int64) + 128**2 // 2 * len(z)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over images with products z and targets t.

    Parameters
    ----------
    A
        Σ z zᵀ: the upper triangle, row by row, ``int64[D(D+1)/2]``.
    T
        Σ z t: a column ``int64[D]`` for each class; t in 256ths.
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
        """The classes that have images, in the order of their UTF-8 names."""
        return sorted((name for name, count in self.counts.items() if count), key=str.encode)

    def __add__(self, other: Self) -> Self:
        return self._combined(other, 1)

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, -1)

    def with_images(self, updates: Sequence[ClearingUpdate]) -> Self:
        """These sums plus the images of the updates."""
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

        Little-endian int64: A, then T and count of each class, in the order of ``classes``. A class without images is
        left out, so that images which were added and subtracted leave no trace.
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
    """Dense sums, and images that are not yet added to them.

    A group publishes these: few images are shorter as images, and take no time to add.

    Parameters
    ----------
    dense
        None if there are only images.
    few
        Updates that hold the images. After an addition they are fewer than ``EXACT_IMAGES``.
    """

    dense: Sums | None
    few: tuple[ClearingUpdate, ...] = ()

    @property
    def images(self) -> int:
        """Images summed over."""
        return (self.dense.images if self.dense else 0) + images_of(self.few)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the images, in the order in which they came."""
        dense = [name for name, count in self.dense.counts.items() if count] if self.dense else []
        return tuple(dict.fromkeys([*dense, *(label for update in self.few for label in update.labels)]))

    def summed(self) -> Sums:
        """All of it as dense sums. With images it takes 0.1 s at D = 2,465. Raises ValueError if there is nothing."""
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
    """Whether the updates are at most a quarter as long as their sums in 32-bit integers."""
    return images_of(updates) <= width // 2


def images_of(updates: Iterable[ClearingUpdate]) -> int:
    """How many images the updates hold."""
    return sum(len(update.labels) for update in updates)


def _add_squares(A: Integers, products: NDArray[np.uint8]) -> None:
    z, lacking = centred(products)
    squares = ssyrk(1.0, z.T, lower=1).T  # it fills the lower triangle; transposed, that is the upper one
    for i, row in enumerate(packed_rows(A, len(squares))):
        row += squares[i, i:].astype(np.int64) + lacking[i:] + lacking[i]
