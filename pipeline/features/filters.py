"""The integer filters and constants of the features, and the proof that no sum leaves exact float32.

Every number in the features is an integer below 2²⁴. So float32 adds without rounding, in whatever order a kernel
chooses. Only these operations keep that: sums of products, maximum, minimum, and division by a power of two followed
by a floor.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SIDE = 28
"""Height and width of an image, in pixels."""

EXACT = 1 << 24
"""Integers up to this one are exact in float32."""

GABOR = 7  # height and width of a layer-1 filter
WAVES = ((3.5, 1.4), (8.0, 2.5))  # wavelength and sigma of the window, in pixels
ORIENTATIONS = 6
BLURS = (1.0, 2.0)
LARGEST_WEIGHT = 127

RANDOM = 3  # height and width of a layer-2 filter
MAP_1 = (SIDE - GABOR + 1) // 2
MAP_2 = MAP_1 - RANDOM + 1

GRID = 4  # cells in a row of the pooling grid
CELL = 3  # positions in a row of a cell
CONSTANT = 128  # the product that is the same for every image

SHIFT_1, SHIFT_2 = 7, 8  # of the two layers' maps
SHIFT_P1, SHIFT_P2 = 3, 6  # of their pooled sums
CAP_2 = 4095
CAP_PRODUCT = 255

VERSION = 1
"""Raise it when you change what the features compute without changing any number in this file."""


def cells(n: int) -> tuple[int, ...]:
    """Where the cells of the grid begin on a map ``n`` wide."""
    return tuple(round(i * (n - CELL) / (GRID - 1)) for i in range(GRID))


def gabors_and_blurs() -> NDArray[np.int64]:
    """Layer 1: ``int64[26, 7, 7]``, 24 Gabor filters of zero mean and 2 Gaussian blurs.

    Gabor: a cosine (or sine) wave under a Gaussian window; D. Gabor, Theory of communication, 1946.
    """
    y, x = np.mgrid[:GABOR, :GABOR] - (GABOR - 1) / 2
    filters = []
    for wavelength, sigma in WAVES:
        window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
        for orientation in range(ORIENTATIONS):
            angle = np.pi * orientation / ORIENTATIONS
            turn = 2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle))
            for phase in (0.0, np.pi / 2):
                wave = window * np.cos(turn + phase)
                filters.append(wave - wave.mean())
    filters += [np.exp(-(x**2 + y**2) / (2 * sigma**2)) for sigma in BLURS]
    scaled = [np.rint(f * (LARGEST_WEIGHT / np.abs(f).max())) for f in filters]
    return np.stack(scaled).astype(np.int64)


def random_filters(seed: int, count: int, channels: int) -> NDArray[np.int64]:
    """Layer 2: ``int64[count, channels, 3, 3]``, each weight the sum of four 6-bit numbers less 126.

    They come from the raw bits of Philox (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011). These are
    the same in every version of numpy; its normal numbers are not.
    """
    shape = (count, channels, RANDOM, RANDOM)
    words: NDArray[np.uint64] = np.random.Philox(key=seed).random_raw(int(np.prod(shape)))
    sums = sum(((words >> np.uint64(6 * i)) & np.uint64(63)).astype(np.int64) for i in range(4))
    return np.reshape(sums, shape) - 126


@dataclass(frozen=True)
class Filters:
    """The features as a value: a pure function of two numbers.

    Parameters
    ----------
    seed
        Of the random filters of layer 2.
    count
        How many of them there are.

    Raises
    ------
    ValueError
        If a sum could leave exact float32.
    """

    seed: int = 0
    count: int = 128

    def __post_init__(self) -> None:
        largest = {
            "layer 1": 255 * int(np.abs(self.layer_1).sum((1, 2)).max()),
            "layer 2": self.cap_1 * int(np.abs(self.layer_2).sum((1, 2, 3)).max()),
            "pooled layer 1": self.cap_1 * CELL**2,
            "pooled layer 2": CAP_2 * CELL**2,
        }
        for where, value in largest.items():
            if value >= EXACT:
                raise ValueError(f"{where}: sums reach {value}, float32 is exact below {EXACT}")

    @cached_property
    def layer_1(self) -> NDArray[np.int64]:
        """``int64[26, 7, 7]``."""
        return gabors_and_blurs()

    @cached_property
    def layer_2(self) -> NDArray[np.int64]:
        """``int64[count, 26, 3, 3]``."""
        return random_filters(self.seed, self.count, len(self.layer_1))

    @cached_property
    def cap_1(self) -> int:
        """Layer 1 is cut off at this value, so that layer 2 stays exact."""
        return (EXACT - 1) // int(np.abs(self.layer_2).sum((1, 2, 3)).max())

    @property
    def width(self) -> int:
        """D, the number of products of an image."""
        return (len(self.layer_1) + self.count) * GRID**2 + 1

    def digest(self) -> str:
        """SHA-256 over every number that the products depend on, in hexadecimal."""
        constants = (VERSION, SIDE, GRID, CELL, CONSTANT, SHIFT_1, SHIFT_2, SHIFT_P1, SHIFT_P2)
        caps = (self.cap_1, CAP_2, CAP_PRODUCT)
        sha = hashlib.sha256(np.array(constants + caps, "<i8").tobytes())
        for layer in (self.layer_1, self.layer_2):
            sha.update(np.array(layer.shape, "<i8").tobytes() + layer.astype("<i8").tobytes())
        return sha.hexdigest()
