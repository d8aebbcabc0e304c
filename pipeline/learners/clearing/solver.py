"""The solver: when sums are turned into weights, and how."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from pipeline.errors import SolverError
from pipeline.learners.targets import UNIT

PRIOR = 1e-3
"""α = PRIOR · D · mean(diag A) / images. It hardly depends on how many images there are: it is worth about 2.5 of them.
Any value from 3e-4 to 3e-3 will do. An α proportional to A would be too weak at about as many images as products."""

FIRST = 32
"""The fewest images from one clearing to the next, unless a class is new."""

GROWTH = 1.0
"""A clearing is due when the number of images since the last new class has grown by this share."""


def solve(A: NDArray[np.float64], T: NDArray[np.float64], images: int) -> NDArray[np.float32]:
    """Weights W = (A + α·I)⁻¹ T / 256: ridge regression, by a Cholesky factorisation.

    It works in float64: in float32 a weight is wrong by up to 1% of the largest one, at D = 2,465.

    Parameters
    ----------
    A
        ``float64[D, D]`` in C order. Only the upper triangle is read; all of it is overwritten.
    T
        ``float64[D, C]``, in 256ths.
    images
        Images in the sums, at least 1.

    Returns
    -------
    W
        ``float32[D, C]``.

    Raises
    ------
    SolverError
        If A + α·I is not positive definite. Sums over images always are.

    References
    ----------
    A. Hoerl, R. Kennard, Ridge regression: biased estimation for nonorthogonal problems, 1970.
    """
    diagonal = np.einsum("ii->i", A)
    diagonal += PRIOR * len(A) * diagonal.mean() / images
    # The upper triangle in C order is the lower one in Fortran order, so LAPACK works in place.
    try:
        factor = cho_factor(A.T, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError as error:
        raise SolverError(
            f"the sums over {images:,} images are not those of any images ({error}): begin another --group with an "
            "older --snapshot that `marketstream history verify` finds the same"
        ) from error
    return np.ascontiguousarray(cho_solve(factor, T, check_finite=False) / UNIT, np.float32)


class ClearingSchedule:
    """When to clear: often after a new class, then ever more rarely.

    A clearing costs as much as learning from 1,000 images. The schedule counts images and never time, so that a stream
    is cleared at the same places on any machine.
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
