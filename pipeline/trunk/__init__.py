"""The trunk: fixed integer layers from an image to its products; the same bits whatever computes it."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.trunk.filters import Filters

Trunk = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""From images ``uint8[n, 28, 28]`` to products ``uint8[n, D]``."""

Backend = Literal["auto", "blas", "tinygrad"]

__all__ = ["Backend", "Filters", "Trunk", "make"]


def make(filters: Filters, backend: Backend = "auto", batch_size: int = 256) -> Trunk:
    """A trunk that computes ``filters``.

    ``auto`` is BLAS where tinygrad would compute on the CPU too, tinygrad on any other device. tinygrad compiles
    for exactly ``batch_size`` images, here and now.
    """
    if backend == "blas" or (backend == "auto" and not _has_accelerator()):
        from pipeline.trunk.blas import BlasTrunk

        return BlasTrunk(filters)
    from pipeline.trunk.device import DeviceTrunk

    return DeviceTrunk(filters, batch_size)


def _has_accelerator() -> bool:
    from pipeline.trunk.device import default_device

    return default_device() != "CPU"
