"""What baselines remember between quoting, settling and adding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.learners.protocol import Quotes


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """What is learnt from: ``rows`` uint8[m, …], images or their products, and their ``labels``."""

    rows: NDArray[np.uint8]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Quoted(Quotes):
    """``rows`` uint8[n, …], images or their products; ``logits`` float32[n, C] and the C ``classes``."""

    rows: NDArray[np.uint8]
    logits: NDArray[np.float32]
    classes: tuple[str, ...]

    def labelled(self, labels: Sequence[str | None]) -> Labelled:
        """Those rows that have a label."""
        places = [i for i, label in enumerate(labels) if label is not None]
        return Labelled(self.rows[places], tuple(label for label in labels if label is not None))
