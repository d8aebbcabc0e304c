"""The learner ``clearing``: exact integer sums of targets, and weights from a solver."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SolverError
from pipeline.features import Features
from pipeline.learners import targets
from pipeline.learners.clearing import solver
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.sums import ClearingUpdate, LooseSums, Sums, are_few
from pipeline.learners.protocol import Quotes


@dataclass(frozen=True, slots=True, eq=False)
class ClearingQuotes(Quotes):
    """What ``clearing`` answers for n images before their labels are known.

    Parameters
    ----------
    products
        ``uint8[n, D]``.
    logits
        ``float32[n, C]``.
    classes
        The C names.
    """

    products: NDArray[np.uint8]
    logits: NDArray[np.float32]
    classes: tuple[str, ...]


class Clearing:
    """Adds up products and targets of images; the solver turns the sums into weights.

    It knows no class before the first ``clear``, even if it begins with the sums of an earlier run.

    Parameters
    ----------
    features
        From images to products.
    sums
        Where to begin: ``Sums.zero(D)``, or those of an earlier run.
    generation
        Clearings so far, in an earlier run.
    loss
        Scalar loss that pays the vendors. With another than the default, targets depend on the logits of the moment,
        and so the digest depends on the order of the stream.

    Examples
    --------
    >>> from pipeline.features import Filters, make
    >>> filters = Filters(seed=0, count=1)
    >>> learner = Clearing(make(filters, "blas"), Sums.zero(filters.width))
    >>> images = np.zeros((2, 28, 28), np.uint8)
    >>> images[0, :, 12:16] = images[1, 12:16] = 255  # an upright bar, and one that lies
    >>> quotes = learner.quote(images)
    >>> quotes.predictions()
    [None, None]
    >>> learner.add(learner.settle(quotes, ["upright", "flat"]))
    >>> learner.clear(), learner.classes, learner.generation
    (True, ('upright', 'flat'), 1)
    >>> learner.quote(np.roll(images, 2, axis=(1, 2))).predictions()
    ['upright', 'flat']
    >>> learner.sums().digest("example")[:8]
    '3087de03'
    """

    def __init__(
        self, features: Features, sums: Sums, *, generation: int = 0, loss: targets.Loss = targets.squared
    ) -> None:
        self._features = features
        self._accumulator = Accumulator(sums)
        self._loss = loss
        self._schedule = solver.ClearingSchedule()
        self._schedule.new_class(sums.images)
        self._weights = np.zeros((sums.width, 0), np.float32)
        self._served: tuple[str, ...] = ()
        self._cleared_of: int | None = None  # so many images
        self.generation = generation

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was added, in the order in which they came."""
        return tuple(self._accumulator.classes)

    @property
    def images(self) -> int:
        """Images added so far."""
        return self._accumulator.images

    def quote(self, images: NDArray[np.uint8]) -> ClearingQuotes:
        """Predict images ``uint8[n, 28, 28]`` by a forward pass. No bid reaches the logits."""
        products = self._features(images)
        return ClearingQuotes(products, products.astype(np.float32) @ self._weights, self._served)

    def settle(self, quotes: ClearingQuotes, labels: Sequence[str | None]) -> ClearingUpdate:
        """Find the targets of the labelled images; a label None is no label. Changes nothing."""
        places = np.array([i for i, label in enumerate(labels) if label is not None], np.int64)
        names = [label for label in labels if label is not None]
        classes = tuple(dict.fromkeys([*quotes.classes, *names]))
        logits = np.zeros((len(places), len(classes)), np.float32)
        logits[:, : len(quotes.classes)] = quotes.logits[places]
        found, sound = targets.settle(logits, targets.columns(names, classes), self._loss)
        return ClearingUpdate(
            quotes.products[places[sound]],
            found[sound],
            tuple(compress(names, sound)),
            classes,
            tuple(places[~sound].tolist()),
        )

    def add(self, update: ClearingUpdate) -> None:
        """Add the images of an update to the sums."""
        with self._watched():
            self._accumulator.add(update)

    def remove(self, update: ClearingUpdate) -> None:
        """Undo ``add``."""
        self._accumulator.add(update, sign=-1)

    def add_sums(self, sums: LooseSums) -> None:
        """Add the sums of another learner."""
        with self._watched():
            self._add_sums(sums, sign=1)

    def remove_sums(self, sums: LooseSums) -> None:
        """Subtract the sums of images that are taken back. The next ``clear`` is due at once."""
        self._add_sums(sums, sign=-1)
        self._schedule.at_once()

    def _add_sums(self, sums: LooseSums, sign: int) -> None:
        if sums.dense:
            self._accumulator.add_sums(sums.dense, sign)
        for update in sums.few:
            self._accumulator.add(update, sign)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Tell the schedule whether what is added brings a new class."""
        known, before = len(self._accumulator.classes), self._accumulator.images
        yield
        if len(self._accumulator.classes) > known:
            self._schedule.new_class(before)

    def beyond(self, sums: LooseSums, updates: Sequence[ClearingUpdate]) -> LooseSums:
        """What was added beyond ``sums``, which is these ``updates``. Few images stay images; many are subtracted."""
        width = self._accumulator.width
        if not updates:
            return LooseSums(Sums.zero(width))
        return LooseSums(None, tuple(updates)) if are_few(updates, width) else LooseSums(self.sums() - sums.summed())

    def clear(self) -> bool:
        """Turn the sums into weights if the schedule says so. Returns whether it did."""
        if below := [c for c, n in zip(self.classes, self._accumulator.counts, strict=True) if n < 0]:
            raise SolverError(
                f"more images of {', '.join(map(repr, below))} were taken back than learnt: the sums are wrong; begin "
                "another --group with an older --snapshot that `marketstream history verify` finds the same"
            )
        if not self.images:
            return self._forget_all()
        if not self._schedule.due(self.images):
            return False
        A, T = self._accumulator.equations()
        # A class whose images were all taken back can no longer be predicted.
        known = [place for place, count in enumerate(self._accumulator.counts) if count > 0]
        self._weights = solver.solve(A, T[:, known], self.images)
        self._served = tuple(self._accumulator.classes[place] for place in known)
        self._schedule.cleared(self.images)
        self._cleared_of = self.images
        self.generation += 1
        return True

    def _forget_all(self) -> bool:
        """Serve no class, since there is no image. Returns whether some were served before, be it before a restart."""
        changed = self.generation > 0 and self._cleared_of != 0
        self._weights, self._served, self._cleared_of = self._weights[:, :0], (), 0
        self.generation += changed
        return changed

    def sums(self) -> Sums:
        """A copy of the sums over everything that was added."""
        return self._accumulator.total()
