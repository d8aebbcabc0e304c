"""The features on a CPU: matrix products in BLAS, without copying every window of an image.

The usual way to make a convolution a matrix product is to copy every window of the image (im2col). The copying then
costs more than the product. Here only the *rows* of a window are put side by side. Its columns then follow each other
in memory. So a window is one contiguous piece, and every k-th window is a row of a plain matrix. At the right edge such
windows run into the next row of the image: they are computed and never read.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from pipeline.cores import each
from pipeline.features import filters as f
from pipeline.features.filters import Filters

Floats = NDArray[np.float32]

CHUNK = 32
"""Images that one thread computes at a time: few enough for its cache, many enough for Python to be no burden."""

PATCH = f.GABOR + 1
"""An 8×8 patch of pixels makes the 2×2 outputs of layer 1 that are pooled together."""


def _patch_weights(layer_1: NDArray[np.int64]) -> Floats:
    """Layer 1, shift included, as ``float32[64, 4·26]``: from a patch, columns first, to the outputs to be pooled."""
    weights = np.zeros((PATCH, PATCH, 2, 2, len(layer_1)), np.float32)
    for y in range(2):
        for x in range(2):
            weights[x : x + f.GABOR, y : y + f.GABOR, y, x] = layer_1.transpose(2, 1, 0)
    return weights.reshape(PATCH * PATCH, -1) * np.float32(2.0**-f.SHIFT_1)


def _window_weights(layer_2: NDArray[np.int64]) -> Floats:
    """Layer 2, shift included, as ``float32[3·3·26, count]``: columns of a window first, then rows, then channels."""
    return layer_2.transpose(3, 2, 1, 0).reshape(-1, len(layer_2)).astype(np.float32) * np.float32(2.0**-f.SHIFT_2)


def _pool_weights(height: int, width: int, shift: int) -> Floats:
    """The sums over the cells of the grid, shift included, as ``float32[16, height·width]``."""
    weights = np.zeros((f.GRID, f.GRID, height, width), np.float32)
    for y, top in enumerate(f.cells(height)):
        for x, left in enumerate(f.cells(height)):
            weights[y, x, top : top + f.CELL, left : left + f.CELL] = 2.0**-shift
    return weights.reshape(f.GRID**2, -1)


class _Slider:
    """Multiplies ``weights[k, c]`` with every window of k numbers that begins at a multiple of ``step``.

    Fill ``rows``, which has the given shape, before each call. The result is ``float32[windows, c]``, in the same
    memory every time. Windows that reach past the end of ``rows`` see zeros there.
    """

    def __init__(self, shape: tuple[int, ...], step: int, weights: Floats) -> None:
        size, width = int(np.prod(shape)), len(weights)
        count = -(-size // width)
        flat = np.zeros((count + 1) * width, np.float32)
        self.rows = flat[:size].reshape(shape)
        self._weights = weights
        self._windows = [flat[start:][: count * width].reshape(count, width) for start in range(0, width, step)]
        self._out = np.empty((count, len(self._windows), weights.shape[1]), np.float32)
        self._result = self._out.reshape(-1, weights.shape[1])[: size // step]

    def __call__(self) -> Floats:
        for turn, windows in enumerate(self._windows):
            np.matmul(windows, self._weights, out=self._out[:, turn])
        return self._result


class _Workspace:
    """One thread's memory for a chunk. To allocate it each time would cost as much as to fill it."""

    def __init__(self, weights_1: Floats, weights_2: Floats) -> None:
        c1, c2 = weights_1.shape[1] // 4, weights_2.shape[1]
        self.slide_1 = _Slider((CHUNK, f.MAP_1, f.SIDE, PATCH), 2 * PATCH, weights_1)
        self.slide_2 = _Slider((CHUNK, f.MAP_2, f.MAP_1, f.RANDOM, c1), f.RANDOM * c1, weights_2)
        self.maps_1 = np.zeros((CHUNK, f.MAP_1, f.MAP_1, c1), np.float32)
        self.cells_1 = np.empty((CHUNK, f.GRID**2, c1), np.float32)
        self.cells_2 = np.empty((CHUNK, f.GRID**2, c2), np.float32)


class BlasFeatures:
    """Computes the products of images: ``uint8[n, 28, 28]`` to ``uint8[n, D]``."""

    def __init__(self, filters: Filters) -> None:
        self._cap_1 = filters.cap_1
        self._weights_1 = _patch_weights(filters.layer_1)
        self._weights_2 = _window_weights(filters.layer_2)
        self._pool_1 = _pool_weights(f.MAP_1, f.MAP_1, f.SHIFT_P1)
        self._pool_2 = _pool_weights(f.MAP_2, f.MAP_1, f.SHIFT_P2)
        self._channels = len(filters.layer_1)
        self._width = filters.width
        self._local = threading.local()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        products = np.empty((len(images), self._width), np.uint8)
        starts = range(0, len(images), CHUNK)
        each(lambda i: self._chunk(images[i : i + CHUNK], products[i : i + CHUNK]), starts)
        return products

    def _chunk(self, images: NDArray[np.uint8], products: NDArray[np.uint8]) -> None:
        n, space = len(images), self._space()
        grid = products[:, :-1].reshape(n, f.GRID**2, -1)
        first = self._layer_1(images, space)
        second = self._layer_2(first, space)
        for pool, maps, cells, part in (
            (self._pool_1, first, space.cells_1, grid[..., : self._channels]),
            (self._pool_2, second, space.cells_2, grid[..., self._channels :]),
        ):
            np.matmul(pool, maps.reshape(CHUNK, pool.shape[1], -1), out=cells)
            # The cast to uint8 drops the fraction, which is the floor.
            np.minimum(cells[:n], f.CAP_PRODUCT, out=part, casting="unsafe")
        products[:, -1] = f.CONSTANT

    def _space(self) -> _Workspace:
        if not hasattr(self._local, "space"):
            self._local.space = _Workspace(self._weights_1, self._weights_2)
        space: _Workspace = self._local.space
        return space

    def _layer_1(self, images: NDArray[np.uint8], space: _Workspace) -> Floats:
        """``float32[CHUNK, 11, 11, 26]``, integers. Places without an image hold what was there before."""
        windows = np.lib.stride_tricks.sliding_window_view(images, PATCH, axis=1)
        space.slide_1.rows[: len(images)] = windows[:, ::2]
        four = space.slide_1().reshape(CHUNK, f.MAP_1, f.SIDE // 2, 4, -1)[:, :, : f.MAP_1]
        maps = space.maps_1
        np.maximum(four[..., 0, :], four[..., 1, :], out=maps)
        np.maximum(maps, four[..., 2, :], out=maps)
        np.maximum(maps, four[..., 3, :], out=maps)
        return _rectified(maps, self._cap_1)

    def _layer_2(self, maps: Floats, space: _Workspace) -> Floats:
        """``float32[CHUNK, 9, 11, count]``, integers. The last two columns mean nothing."""
        for y in range(f.RANDOM):
            space.slide_2.rows[:, :, :, y] = maps[:, y : y + f.MAP_2]
        return _rectified(space.slide_2(), f.CAP_2).reshape(CHUNK, f.MAP_2, f.MAP_1, -1)


def _rectified(maps: Floats, cap: int) -> Floats:
    """ReLU, cap and floor, in place."""
    np.clip(maps, 0, np.float32(cap), out=maps)
    np.floor(maps, out=maps)
    return maps
