"""The solver: when sums are turned into weights, and how."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from pipeline.learners.targets import UNIT

PRIOR = 1e-3
"""α = PRIOR · D · mean of diag A / images: a constant, worth about 2.5 images. Between 3e-4 and 3e-3 it is not
delicate. Proportional to A it would be too weak where there are about as many images as products."""

FIRST = 32
"""The fewest images from one clearing to the next, unless a class is new."""

GROWTH = 1.0
"""A clearing is due when the images since a class was last new have grown by this share."""


def solve(A: NDArray[np.float64], T: NDArray[np.float64], images: int) -> NDArray[np.float32]:
    """W = (A + α·I)⁻¹ T / 256, by Cholesky in float64 (in float32 the factorisation fails at this size).

    Parameters
    ----------
    A
        ``float64[D, D]``, in C order; only the upper triangle is read, and it is overwritten.
    T
        ``float64[D, C]``.
    images
        Images that both were summed over, at least 1.

    Returns
    -------
    ``float32[D, C]``
    """
    diagonal = np.einsum("ii->i", A)
    diagonal += PRIOR * len(A) * diagonal.mean() / images
    # The upper triangle in C order is the lower one in Fortran's, which LAPACK works on in place.
    factor = cho_factor(A.T, lower=True, overwrite_a=True, check_finite=False)
    return np.ascontiguousarray(cho_solve(factor, T, check_finite=False) / UNIT, np.float32)


class ClearingSchedule:
    """When to clear: as rarely as accuracy allows, since a clearing costs as much as learning from 1,000 images.

    Often after a class was new, then ever more rarely. Counts images and never time, so that a stream is cleared
    at the same places on any machine.
    """

    def __init__(self) -> None:
        self._begun = 0
        self._next = 0

    def due(self, images: int) -> bool:
        """Whether to clear after ``images`` images."""
        return images >= self._next

    def new_class(self, images: int) -> None:
        """A class appeared after ``images`` images: clear at once, and often again."""
        self._begun = images
        self._next = 0

    def at_once(self) -> None:
        """Images were taken back: clear at once."""
        self._next = 0

    def cleared(self, images: int) -> None:
        """A clearing took place after ``images`` images."""
        self._next = images + max(FIRST, int(GROWTH * (images - self._begun)))
