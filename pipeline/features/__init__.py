"""Features: fixed integer layers from an image to its products. Every backend computes the same bits."""

import glob
import os
import sys
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.features.filters import Filters

Features = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""From images ``uint8[n, 28, 28]`` to products ``uint8[n, D]``."""

Backend = Literal["auto", "blas", "tinygrad"]

DEVICE_FILES = ("/dev/nvidia*", "/dev/kfd", "/dev/dri/renderD*", "/dev/kgsl*", "/dev/dxg")
"""Linux has one of these where there is an accelerator, of any maker."""

__all__ = ["Backend", "Features", "Filters", "make", "takes_blas"]


def make(filters: Filters, backend: Backend = "auto", batch_size: int = 256) -> Features:
    """Features that compute ``filters``. tinygrad compiles them now, for ``batch_size`` images at a time."""
    if takes_blas(backend):
        from pipeline.features.blas import BlasFeatures

        return BlasFeatures(filters)
    from pipeline.features.tinygrad import TinygradFeatures

    return TinygradFeatures(filters, batch_size)


def takes_blas(backend: Backend) -> bool:
    """Whether BLAS computes. ``auto`` takes BLAS where tinygrad would compute on the CPU.

    tinygrad tries its drivers in turn, which takes two seconds. So on Linux it is asked only if there is a file of an
    accelerator, or if its variable ``DEV`` names a device.
    """
    if backend == "auto" and ("DEV" in os.environ or sys.platform != "linux" or any(map(glob.glob, DEVICE_FILES))):
        from pipeline.features.tinygrad import default_device

        return default_device() == "CPU"
    return backend != "tinygrad"
