"""The baseline ``frozen``: a learner that stops learning, as a model does that is trained first and served then."""

from collections.abc import Sequence
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from pipeline.learners.protocol import Learner, Q, U

TRAINED_ON = 10_240
"""Images at the beginning of the stream that the model is trained on: in ``dress``, those before the first dress."""


class Frozen(Generic[Q, U]):
    """``learner`` for as long as it has learnt from fewer than ``images`` images, and then never changed again."""

    def __init__(self, learner: Learner[Q, U], images: int = TRAINED_ON) -> None:
        self._learner, self._until = learner, images

    @property
    def learner(self) -> Learner[Q, U]:
        """What is, or was, learning."""
        return self._learner

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was learnt before it froze."""
        return self._learner.classes

    @property
    def images(self) -> int:
        """Images learnt from so far."""
        return self._learner.images

    @property
    def generation(self) -> int:
        """The version of the weights."""
        return self._learner.generation

    def quote(self, images: NDArray[np.uint8]) -> Q:
        """Forward only: ``uint8[n, 28, 28]``."""
        return self._learner.quote(images)

    def settle(self, quotes: Q, labels: Sequence[str | None]) -> U | None:
        """What the labelled images say; None once frozen. Changes nothing."""
        return self._learner.settle(quotes, labels) if self._learner.images < self._until else None

    def add(self, update: U | None) -> None:
        """What was found becomes state, if anything was."""
        if update is not None:
            self._learner.add(update)

    def clear(self) -> bool:
        """If it is time, state becomes weights; whether it did."""
        return self._learner.clear()
