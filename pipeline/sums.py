"""Sums: what settling leaves behind, as a value with + and −.

All integers, so they form a group: any order, any split over learners, any batch size gives the same sums, and
what was added can be taken back. ``digest`` proves it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def packed_size(width: int) -> int:
    """Numbers in the upper triangle of a ``width`` × ``width`` matrix."""
    return width * (width + 1) // 2


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over images with products z and targets t.

    Parameters
    ----------
    A
        Σ z zᵀ: the upper triangle row by row, ``int64[D(D+1)/2]``.
    T
        Σ z t, for each class a column ``int64[D]``; t in 256ths.
    counts
        Images of each class.
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
