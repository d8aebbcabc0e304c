"""The one face of all learners: quote, settle, add, clear."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sums import Integers

MOST_CLASSES = 1000
"""No learner learns more classes than this."""


@dataclass(frozen=True, slots=True, eq=False)
class Quotes:
    """What the market answers for n images, before their labels are known.

    ``products`` uint8[n, D], ``logits`` float32[n, C], ``classes`` the C names. C is 0 before anything was learnt.
    """

    products: NDArray[np.uint8]
    logits: NDArray[np.float32]
    classes: tuple[str, ...]

    def predictions(self) -> list[str | None]:
        """The class with the largest logit for each image; None where no class is known yet."""
        if not self.classes:
            return [None] * len(self.products)
        return [self.classes[i] for i in self.logits.argmax(1)]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What settling found for the m images that were labelled and sound.

    ``products`` uint8[m, D], ``targets`` int64[m, C] in 256ths, ``labels`` m names, ``classes`` the C names.
    ``unsound`` holds the places of images whose loss was not finite: they are not in the update.
    """

    products: NDArray[np.uint8]
    targets: Integers
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    unsound: tuple[int, ...] = ()


class Learner(Protocol):
    """Predicts images, and learns from their labels, without a backward pass."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was added, in the order of appearance."""

    @property
    def images(self) -> int:
        """Images added so far."""

    @property
    def generation(self) -> int:
        """Clearings so far: the version of the weights."""

    def quote(self, images: NDArray[np.uint8]) -> Quotes:
        """Forward only: ``uint8[n, 28, 28]``."""

    def settle(self, quotes: Quotes, labels: Sequence[str | None]) -> Update:
        """Losses of the labelled images to an update. Changes nothing."""

    def add(self, update: Update) -> None:
        """What was found becomes state."""

    def clear(self) -> bool:
        """If the schedule says so, state becomes weights; whether it did."""
