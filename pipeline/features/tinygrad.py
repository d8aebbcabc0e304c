"""The features in tinygrad: for any device that tinygrad knows.

Winograd convolutions round, so they are switched off. There is no division: it might become a multiplication by a
rounded reciprocal.
"""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tinygrad import Context, Device, Tensor, TinyJit, dtypes

from pipeline.features import filters as f
from pipeline.features.filters import Filters


def default_device() -> str:
    """The device that tinygrad takes on this machine, ``CPU`` if there is no other."""
    _provide_compiler()
    return str(Device.DEFAULT)


def _provide_compiler() -> None:
    """Let tinygrad's CPU device find a C compiler: clang where there is one, else that of the ziglang wheel."""
    if "CC" in os.environ or shutil.which("clang"):
        return
    folder = Path(tempfile.mkdtemp(prefix="marketstream-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / "clang"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang clang "$@"\n')
    script.chmod(stat.S_IRWXU)
    os.environ["CC"] = str(script)


def _pooled(maps: Tensor, shift: int) -> Tensor:
    """Sums over the cells of the grid, shifted and capped: ``[n, c, y, x]`` to ``[n, 4, 4, c]``."""
    starts = f.cells(maps.shape[2])
    rows = Tensor.stack(*[maps[:, :, s : s + f.CELL].sum(2) for s in starts], dim=1)
    sums = Tensor.stack(*[rows[..., s : s + f.CELL].sum(3) for s in starts], dim=2)
    return (sums * 2.0**-shift).floor().minimum(f.CAP_PRODUCT)


class TinygradFeatures:
    """Computes the products of images: ``uint8[n, 28, 28]`` to ``uint8[n, D]``.

    Compiles when it is made, for ``batch_size`` images. Fewer images are padded, more are cut up.
    """

    def __init__(self, filters: Filters, batch_size: int) -> None:
        default_device()
        self._batch_size = batch_size
        self._cap_1 = filters.cap_1
        self._weights_1 = Tensor(filters.layer_1[:, None].astype(np.float32)).realize()
        self._weights_2 = Tensor(filters.layer_2.astype(np.float32)).realize()
        self._jit = TinyJit(self._forward)
        for _ in range(3):  # the first call runs as it is, the second captures, the third is the compiled one
            self(np.zeros((batch_size, f.SIDE, f.SIDE), np.uint8))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        starts = range(0, max(1, len(images)), self._batch_size)
        parts = [self._batch(images[i : i + self._batch_size]) for i in starts]
        return np.pad(np.concatenate(parts), ((0, 0), (0, 1)), constant_values=f.CONSTANT)

    def _batch(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        padded = np.zeros((self._batch_size, f.SIDE, f.SIDE), np.uint8)
        padded[: len(images)] = images
        products: NDArray[np.uint8] = self._jit(Tensor(padded).realize()).numpy()
        return products.reshape(self._batch_size, -1)[: len(images)]

    def _forward(self, images: Tensor) -> Tensor:
        with Context(WINO=0):
            pixels = images.cast(dtypes.float32).unsqueeze(1)
            first = pixels.conv2d(self._weights_1).relu().max_pool2d(2)
            first = (first * 2.0**-f.SHIFT_1).floor().minimum(self._cap_1)
            second = first.conv2d(self._weights_2).relu()
            second = (second * 2.0**-f.SHIFT_2).floor().minimum(f.CAP_2)
            grid = _pooled(first, f.SHIFT_P1).cat(_pooled(second, f.SHIFT_P2), dim=3)
            return grid.cast(dtypes.uint8).realize()
