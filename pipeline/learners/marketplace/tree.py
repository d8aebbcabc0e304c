"""The training form of the articles (V2): every vendor of a spec is offered the outputs of all vendors before it.

The paths form a tree. The loss of a path is its mean over the batch. That costs as many forward passes as there are
paths, so it trains a base, and does not serve a stream.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.learners.marketplace import draws, settling
from pipeline.learners.marketplace.model import Model, Round
from pipeline.learners.marketplace.network import Floats, Network, flatten, linear, pixels
from pipeline.learners.marketplace.settling import NO_SLOPES, MarketplaceUpdate
from pipeline.learners.marketplace.terms import Terms
from pipeline.learners.targets import Loss, columns

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """Settles whole batches: P paths, n images, all of them labelled."""

    network: Network
    terms: Terms
    loss: Loss

    @property
    def first(self) -> int:
        """The first spec that can move. Those before it have their leaders alone."""
        return min([*self.terms.traded, 2])

    def still(self, model: Model, images: NDArray[np.uint8]) -> Floats:
        """The input of the first spec that can move, ``[n, y, x, c]``, for images ``uint8[n, 28, 28]``.

        It is the same at every step.
        """
        return self._through(range(self.first), model, pixels(images))

    def logits(self, model: Model, offered: Floats) -> Floats:
        """Logits of the leaders, ``[n, C]``. ``offered`` is the result of ``still``."""
        products = self._through(range(self.first, 2), model, offered)
        return linear(model.parameters[2], flatten(products))

    def settle(self, model: Model, offered: Floats, labels: Sequence[str]) -> MarketplaceUpdate:
        """Find what the losses of all paths teach. ``offered`` is the result of ``still``. Changes nothing."""
        drawn = model.round()
        classes = tuple(dict.fromkeys([*drawn.classes, *labels]))
        weights = settling.weights(labels, model.counts) if self.terms.label_weights else np.ones(len(labels))
        products, logits, vendor = self._grow(drawn, offered)
        quoted = settling.widened(logits.reshape(logits.shape[0] * logits.shape[1], len(drawn.classes)), len(classes))
        again = np.tile(columns(labels, classes), len(logits))
        paid = self.loss(quoted, again).reshape(logits.shape[:2])
        losses = (weights * paid).mean(axis=1)
        update = MarketplaceUpdate(
            drawn.generation,
            classes,
            len(drawn.classes),
            dict(Counter(labels)),
            tuple(settling.coefficients(losses, vendor[s], self.terms.vendors[s]) for s in self.terms.traded),
            *self._sums(quoted, again, np.tile(weights, len(logits)), products, drawn.generation),
        )
        return replace(update, scale=self._scale(model, update, offered, labels))

    def _through(self, specs: range, model: Model, products: Floats) -> Floats:
        for spec in specs:
            products = self.network.block(spec, model.parameters[spec][None], products[None])[0]
        return products

    def _grow(self, drawn: Round, offered: Floats) -> tuple[Floats, Floats, Integers]:
        """The inputs of the last spec ``[P, n, D]``, logits ``[P, n, C]``, and the vendors of each path ``[3, P]``."""
        products = offered[None]
        vendor = np.zeros((3, 1), np.int64)
        for spec in range(self.first, 2):
            taken, vendor = self._branch(drawn, spec, vendor)
            parts = [
                self.network.block(spec, parameters[None], products[some].reshape(1, -1, *products.shape[2:]))[0]
                for parameters, some in zip(drawn.parameters[spec], taken, strict=True)
            ]
            products = np.concatenate(parts).reshape(taken.size, len(offered), *parts[0].shape[1:])
        taken, vendor = self._branch(drawn, 2, vendor)
        flat = flatten(products)[taken.ravel()]
        by_vendor = flat.reshape(len(taken), -1, flat.shape[2])
        logits = [linear(parameters, some) for parameters, some in zip(drawn.parameters[2], by_vendor, strict=True)]
        return flat, np.concatenate(logits).reshape(*flat.shape[:2], len(drawn.classes)), vendor

    def _branch(self, drawn: Round, spec: int, vendor: Integers) -> tuple[Integers, Integers]:
        """The U paths that each vendor of a spec is offered ``[vendors, U]``, and the vendors of the longer paths."""
        offers, paths = len(drawn.parameters[spec]), vendor.shape[1]
        sample = min(self.terms.upstream_sampling or paths, paths) if offers > 1 else paths
        seed = self.terms.seed
        taken = np.stack([draws.upstream(paths, sample, seed, drawn.generation, spec, v) for v in range(offers)])
        grown = vendor[:, taken.ravel()]
        grown[spec] = np.repeat(np.arange(offers), sample)
        return taken, grown

    def _sums(
        self, logits: Doubles, labels: Integers, weights: Doubles, products: Floats, generation: int
    ) -> tuple[Floats, Floats]:
        if self.terms.last == "parameters":
            return NO_SLOPES
        bids = draws.bids(len(logits), self.terms.vendors[2], logits.shape[1], self.terms.seed, generation)
        slopes = weights[:, None] * settling.slopes(logits, labels, bids, self.loss)
        return settling.sums(slopes, products.reshape(len(logits), -1))

    def _scale(self, model: Model, update: MarketplaceUpdate, offered: Floats, labels: Sequence[str]) -> float:
        """The multiple of the step after which the leaders' loss is least, from a second forward pass."""
        if len(self.terms.scales) == 1:
            return self.terms.scales[0]
        return min(self.terms.scales, key=lambda scale: self._leaders(model, update, scale, offered, labels))

    def _leaders(
        self, model: Model, update: MarketplaceUpdate, scale: float, offered: Floats, labels: Sequence[str]
    ) -> float:
        there = deepcopy(model)
        there.apply(replace(update, scale=scale))
        logits = self.logits(there, offered).astype(np.float64)
        return float(self.loss(logits, columns(labels, there.classes)).mean())
