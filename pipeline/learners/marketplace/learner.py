"""The learner ``marketplace``: Marketplace as published, and with vendors of outputs.

This is the continual form of Fang-Pen Lin's articles. Every image draws one random path through the vendors. The logits
of that path are the prediction that is served, and its loss is the outcome of its vendors.

The state is the base and the journal of updates: the same updates in the same order give the same bits on the same kind
of machine.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.learners import targets
from pipeline.learners.marketplace import draws, settling
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.model import Model, Round
from pipeline.learners.marketplace.network import Floats, Network, flatten, linear, pixels
from pipeline.learners.marketplace.settling import NO_SLOPES, MarketplaceUpdate
from pipeline.learners.marketplace.terms import STREAM, Terms
from pipeline.learners.protocol import Quotes

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MarketplaceQuotes(Quotes):
    """What ``marketplace`` answers for n images before their labels are known.

    Parameters
    ----------
    products
        ``float32[n, D]``, the input of the last spec.
    logits
        ``float32[n, C]``.
    classes
        The C names.
    vendor
        ``int64[3, n]``, the path of each image: its vendor in each spec.
    generation
        The generation of these vendors.
    """

    products: Floats
    logits: Floats
    classes: tuple[str, ...]
    vendor: Integers
    generation: int


class Marketplace:
    """Sends images through vendors, and moves the leaders towards the vendors that did well.

    Parameters
    ----------
    base
        Where to begin: a trained model, or ``Base.untrained``.
    network
        Computes the blocks. It has the shape of the base.
    terms
        Vendors and step sizes. Replay a journal with the terms that it was made with.
    loss
        Scalar loss that pays the vendors.
    """

    def __init__(self, base: Base, network: Network, terms: Terms, loss: targets.Loss = targets.cross_entropy) -> None:
        self._model = Model(base, terms)
        self._network, self._terms, self._loss = network, terms, loss
        self._round = self._model.round()

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that was added, in the order in which they came."""
        return self._model.classes

    @property
    def images(self) -> int:
        """Images added so far."""
        return sum(self._model.counts.values())

    @property
    def generation(self) -> int:
        """Updates added so far."""
        return self._model.generation

    def base(self) -> Base:
        """A copy of the leaders as they are now."""
        return self._model.base()

    def quote(self, images: NDArray[np.uint8]) -> MarketplaceQuotes:
        """Predict images ``uint8[n, 28, 28]``, each by a path of its own. Changes nothing."""
        offered = self._round
        vendor = np.array([self._path(offered, spec, len(images)) for spec in range(3)])
        products = pixels(images)
        for spec in range(2):
            products = self._through(spec, offered.parameters[spec], products, vendor[spec])
        flat = flatten(products)
        logits = np.zeros((len(images), len(offered.classes)), np.float32)
        for v, parameters in enumerate(offered.parameters[2]):
            logits[vendor[2] == v] = linear(parameters, flat[vendor[2] == v])
        return MarketplaceQuotes(flat, logits, offered.classes, vendor, offered.generation)

    def settle(self, quotes: MarketplaceQuotes, labels: Sequence[str | None]) -> MarketplaceUpdate:
        """Find what the losses of the labelled images teach; a label None is no label. Changes nothing."""
        places = np.array([i for i, label in enumerate(labels) if label is not None], np.int64)
        names = [label for label in labels if label is not None]
        classes = tuple(dict.fromkeys([*quotes.classes, *names]))
        with np.errstate(invalid="ignore", over="ignore"):  # an image that is not finite is not sound
            paid, slopes = self._losses(quotes, places, targets.columns(names, classes), len(classes))
        sound = np.isfinite(paid) & np.isfinite(slopes).all(axis=1)
        good, settled = places[sound], [names[i] for i in sound.nonzero()[0]]
        weights = settling.weights(settled, self._model.counts) if self._terms.label_weights else np.ones(len(settled))
        weighted, vendors_of = weights * paid[sound], self._terms.vendors
        return MarketplaceUpdate(
            quotes.generation,
            classes,
            len(quotes.classes),
            dict(Counter(settled)),
            tuple(settling.coefficients(weighted, quotes.vendor[s, good], vendors_of[s]) for s in self._terms.traded),
            *self._sums(weights[:, None] * slopes[sound], quotes.products[good]),
            unsound=tuple(places[~sound].tolist()),
        )

    def add(self, update: MarketplaceUpdate) -> None:
        """Move the leaders by an update: a new generation, which is served after the next ``clear``."""
        self._model.apply(update)

    def clear(self) -> bool:
        """Draw and serve the vendors of the newest generation. Returns whether that was due."""
        if self._round.generation == self._model.generation:
            return False
        self._round = self._model.round()
        return True

    def _path(self, offered: Round, spec: int, images: int) -> Integers:
        """The vendor of a spec that each image goes to: ``int64[images]``."""
        offers = len(offered.parameters[spec])
        return draws.path(images, offers, self._terms.seed, offered.generation, spec)

    def _through(self, spec: int, parameters: Floats, products: Floats, vendor: Integers) -> Floats:
        """Send every image through its vendor of a spec, in one batch that is sorted by vendor."""
        offers = len(parameters)
        order = np.argsort(vendor, kind="stable")
        places = np.zeros((offers, -(-len(products) // offers)), np.int64)
        filled = np.arange(places.shape[1]) < np.bincount(vendor, minlength=offers)[:, None]
        places[filled] = order
        made = self._network.block(spec, parameters, products[places])
        result = np.empty((len(products), *made.shape[2:]), np.float32)
        result[order] = made[filled]
        return result

    def _losses(
        self, quotes: MarketplaceQuotes, places: Integers, labels: Integers, classes: int
    ) -> tuple[Doubles, Doubles]:
        """The loss of each path ``float64[m]``, and the slopes from vendors of outputs ``float64[m, C or 0]``."""
        if not len(places):
            return np.zeros(0), np.zeros((0, classes))
        logits = settling.widened(quotes.logits[places], classes)
        paid = self._loss(logits, labels)
        if self._terms.last == "parameters":
            return paid, np.zeros((len(places), 0))
        bids = draws.bids(len(quotes.logits), self._terms.vendors[2], classes, self._terms.seed, quotes.generation)
        return paid, settling.slopes(logits, labels, bids[places], self._loss)

    def _sums(self, slopes: Doubles, products: Floats) -> tuple[Floats, Floats]:
        if self._terms.last == "parameters" or not len(products):
            return NO_SLOPES
        return settling.sums(slopes, products)


def leaders(base: Base, network: Network) -> Marketplace:
    """A learner that serves the leaders alone: with the terms ``STREAM`` no bid reaches the logits."""
    return Marketplace(base, network, STREAM)
