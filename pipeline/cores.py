"""All cores, one way: independent pieces of work in threads, with a BLAS that has one thread in each.

BLAS could use all cores by itself, but numpy and SciPy each bring their own, and the threads of each go on
spinning for tens of milliseconds after a call, on the cores that the next piece of work needs. On two cores that
made learning from a micro-batch twice as slow. So importing this module limits BLAS to one thread.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np  # noqa: F401  both BLAS libraries must be loaded before they can be limited
import scipy.linalg.blas  # noqa: F401
from threadpoolctl import ThreadpoolController

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_blas = ThreadpoolController()
_blas.limit(limits=1, user_api="blas")
_pool = ThreadPoolExecutor(CORES, "cores")


def each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Do ``work`` on every item, on all cores. Raises what it raises."""
    for _ in _pool.map(work, items):
        pass


def begin(work: Callable[[], T]) -> Future[T]:
    """Do ``work`` on some core, after what was begun before, and go on meanwhile."""
    return _pool.submit(work)


def blas_on_all_cores() -> AbstractContextManager[object]:
    """For a single large call of LAPACK, which cannot be cut into pieces."""
    context: AbstractContextManager[object] = _blas.limit(limits=CORES, user_api="blas")
    return context
