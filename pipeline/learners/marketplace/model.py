"""The state of a learner ``marketplace``: a base with updates applied to it in order.

Nothing here depends on an image. So the same base, terms and updates give the same bits on the same kind of machine.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.learners.marketplace import draws
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.network import Floats
from pipeline.learners.marketplace.settling import MarketplaceUpdate
from pipeline.learners.marketplace.terms import Terms


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """The vendors of a generation: ``parameters[spec]`` is ``float32[vendors, size]``, the leader first."""

    generation: int
    parameters: tuple[Floats, Floats, Floats]
    classes: tuple[str, ...]


class Model:
    """Parameters of the leaders, and whatever else the next step depends on."""

    def __init__(self, base: Base, terms: Terms) -> None:
        self.shape, self.terms = base.shape, terms
        self.parameters = [part.copy() for part in base.parameters]
        self.classes = base.classes
        self.counts = dict(base.counts)
        self.generation = base.generation
        self._products = base.products.copy()

    def base(self) -> Base:
        """A copy of the state, as a base."""
        first, second, last = (part.copy() for part in self.parameters)
        products = self._products.copy()
        return Base(self.shape, (first, second, last), self.classes, self.generation, dict(self.counts), products)

    def round(self) -> Round:
        """Draw the vendors of this generation."""
        first, second, last = (self._vendors(spec) for spec in range(3))
        return Round(self.generation, (first, second, last), self.classes)

    def apply(self, update: MarketplaceUpdate) -> None:
        """Move the leaders by an update. A new generation begins, with new vendors."""
        self._meet(update.classes)
        rest = self.terms.decayed(update.generation) * update.scale
        for spec, direction in self._directions(update).items():
            self.parameters[spec][: len(direction)] += np.float32(self.terms.lr * rest) * direction
        if update.products.size:
            self._step_outputs(update, self.terms.outputs_lr * rest)
        for label, images in update.counts.items():
            self.counts[label] = self.counts.get(label, 0) + images
        self.generation += 1

    def _vendors(self, spec: int) -> Floats:
        leader = self.parameters[spec]
        if spec not in self.terms.traded:
            return leader[None]
        reach = np.float32(self.terms.lr * self.terms.probe * self.terms.decayed(self.generation))
        rows = range(self.terms.vendors[spec])
        return np.stack([leader + reach * self._delta(self.generation, spec, v, leader.size) for v in rows])

    def _delta(self, generation: int, spec: int, vendor: int, size: int) -> Floats:
        return draws.delta(size, self.terms.seed, generation, spec, vendor)

    def _meet(self, classes: tuple[str, ...]) -> None:
        """Give each new class a row of zeros in the last spec."""
        new = tuple(name for name in classes if name not in self.classes)
        self.classes += new
        self.parameters[2] = np.append(self.parameters[2], np.zeros(len(new) * self.shape.products, np.float32))

    def _directions(self, update: MarketplaceUpdate) -> dict[int, Floats]:
        """Σ coefficient × delta for every spec whose parameters have vendors, normalised."""
        sizes = self.shape.sizes(update.quoted)
        directions = {}
        for spec, coefficients in zip(self.terms.traded, update.coefficients, strict=True):
            directions[spec] = np.zeros(sizes[spec], np.float32)
            for vendor, coefficient in enumerate(coefficients):
                directions[spec] += coefficient * self._delta(update.generation, spec, vendor, sizes[spec])
        lengths = {spec: float(np.square(d, dtype=np.float64).sum()) ** 0.5 for spec, d in directions.items()}
        if self.terms.unit == "whole":
            lengths = dict.fromkeys(lengths, sum(length**2 for length in lengths.values()) ** 0.5)
        return {s: d / np.float32(lengths[s]) for s, d in directions.items() if lengths[s] > 0}

    def _step_outputs(self, update: MarketplaceUpdate, lr: float) -> None:
        """Move the last spec down its slopes, with products seen from their running mean μ.

        The logits are W (z - μ) + b, and W and b each take a step. Products are never negative. Without μ, what they
        have in common would raise a new class for every image.
        """
        self._products += update.products
        centre = (self._products / self._products[-1])[:-1]
        slopes = update.slopes / np.float64(update.products[-1])
        bias = slopes[:, -1]
        step = slopes[:, :-1] - bias[:, None] * centre
        rows = [self.classes.index(name) for name in update.classes]
        last = self.parameters[2].reshape(len(self.classes), -1).astype(np.float64)
        last[rows, :-1] -= lr * step
        last[rows, -1] -= lr * (bias - (step * centre).sum(axis=1))
        self.parameters[2] = last.astype(np.float32).ravel()
