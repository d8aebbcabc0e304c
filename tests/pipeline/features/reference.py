"""The features written down once more, slowly and plainly, in int64 numpy."""

import numpy as np
from numpy.typing import NDArray

from pipeline.features import filters as f
from pipeline.features.filters import Filters

Integers = NDArray[np.int64]


def convolve(maps: Integers, weights: Integers) -> Integers:
    """``int64[n, c, y, x]`` with ``int64[o, c, k, k]``, no padding."""
    size = weights.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(maps, (size, size), (2, 3))
    result: Integers = np.einsum("ncyxij,ocij->noyx", windows, weights, optimize=True)
    return result


def max_pool(maps: Integers) -> Integers:
    n, c, height, width = maps.shape
    result: Integers = maps.reshape(n, c, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    return result


def pool(maps: Integers, shift: int) -> Integers:
    """``[n, c, y, x]`` to ``[n, 4, 4, c]``."""
    n = maps.shape[-1]
    starts = [round(i * (n - 3) / 3) for i in range(4)]
    cells = [[maps[:, :, y : y + 3, x : x + 3].sum(axis=(2, 3)) for x in starts] for y in starts]
    sums: Integers = np.array(cells).transpose(2, 0, 1, 3) >> shift
    return np.minimum(sums, 255)


def products(filters: Filters, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``uint8[n, 28, 28]`` to ``uint8[n, D]``."""
    pixels = images.astype(np.int64)[:, None]
    first = max_pool(np.maximum(convolve(pixels, filters.layer_1[:, None]), 0)) >> f.SHIFT_1
    first = np.minimum(first, filters.cap_1)
    second = np.minimum(np.maximum(convolve(first, filters.layer_2), 0) >> f.SHIFT_2, f.CAP_2)
    grid = np.concatenate([pool(first, f.SHIFT_P1), pool(second, f.SHIFT_P2)], axis=3)
    constant = np.full((len(images), 1), f.CONSTANT)
    return np.concatenate([grid.reshape(len(images), -1), constant], axis=1).astype(np.uint8)
