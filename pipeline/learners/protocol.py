"""The interface of all learners: quote, settle, add, clear."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Quotes:
    """What a learner answers for n images before their labels are known.

    Attributes
    ----------
    logits
        ``float32[n, C]``.
    classes
        The C names of the columns. C is 0 before anything was learnt.
    """

    __slots__ = ()

    logits: NDArray[np.float32]
    classes: tuple[str, ...]

    def predictions(self) -> list[str | None]:
        """The class with the largest logit for each image; None where no class is known yet."""
        if not self.classes:
            return [None] * len(self.logits)
        return [self.classes[i] for i in self.logits.argmax(1)]


Q = TypeVar("Q", bound=Quotes)
U = TypeVar("U")


class Learner(Protocol[Q, U]):
    """Predicts images and learns from their labels. Each learner defines its own quotes Q and updates U."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was learnt, in the order of appearance."""

    @property
    def images(self) -> int:
        """Images learnt from so far."""

    @property
    def generation(self) -> int:
        """The version of the weights: how often they changed."""

    def quote(self, images: NDArray[np.uint8]) -> Q:
        """Predict images ``uint8[n, 28, 28]`` by a forward pass. Changes nothing."""

    def settle(self, quotes: Q, labels: Sequence[str | None]) -> U:
        """Find what the n labels teach; None is no label. Changes nothing."""

    def add(self, update: U) -> None:
        """Put an update into the state. Predictions stay as they are until ``clear``."""

    def clear(self) -> bool:
        """Turn the state into weights if that is due. Returns whether it did."""


AnyLearner = Learner[Any, Any]
"""A learner, whichever it is."""
