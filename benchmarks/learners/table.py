"""Every learner by its name, and what it costs.

learner = make("slda", settings)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.learners.frozen import TRAINED_ON, Frozen
from benchmarks.learners.means import NearestMean, StreamingLda
from pipeline.errors import SettingsError
from pipeline.features import Features, Filters
from pipeline.features import make as make_features
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.marketplace import beginning
from pipeline.learners.marketplace import make as make_network
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.protocol import AnyLearner
from pipeline.settings import Settings


@dataclass(frozen=True)
class Entry:
    """What the table says about a learner.

    Parameters
    ----------
    about
        What it is, in a line.
    features
        What makes its products.
    make
        Makes a new one.
    forward, backward
        Passes through the network for an image that is predicted and learnt from.
    state_bytes
        Bytes that a learner must keep to go on learning, weights included.
    """

    about: str
    features: str
    make: Callable[[Settings], AnyLearner]
    forward: int = 1
    backward: int = 0
    state_bytes: Callable[[Any], int] = lambda learner: int(learner.state_bytes)


def make(name: str, settings: Settings) -> AnyLearner:
    """A new learner. ``settings.seed`` moves its features, or its first parameters.

    Raises SettingsError if there is a base model and this learner takes none, SnapshotError if it cannot be read.
    """
    if settings.base and not name.startswith("marketplace"):
        raise SettingsError(f"--base {settings.base}: only marketplace begins with a base model, not {name}")
    return LEARNERS[name].make(settings)


def digest(learner: AnyLearner, settings: Settings) -> str | None:
    """The digest of what was learnt; None for baselines, which promise nothing about bits."""
    if isinstance(learner, Clearing):
        return learner.sums().digest(ClearingIdentity.of(Filters(settings.seed, settings.filters)).digest)
    return learner.base().digest if isinstance(learner, Marketplace) else None


def _features(settings: Settings) -> Features:
    return make_features(Filters(settings.seed, settings.filters), settings.backend)


def _clearing(settings: Settings) -> Clearing:
    return Clearing(_features(settings), Sums.zero(Filters(settings.seed, settings.filters).width))


def _marketplace(name: str, settings: Settings) -> Marketplace:
    base, terms = beginning(name, settings)
    return Marketplace(base, make_network(base.shape, settings.backend), terms)


def _backprop(settings: Settings, rule: Any) -> AnyLearner:
    from benchmarks.learners.backprop import Backprop  # opens tinygrad's device: only who wants it waits for it

    return Backprop(rule, settings.seed)


def _bytes_of_sums(learner: Clearing) -> int:
    sums = learner.sums()
    weights = 4 * sums.width * len(sums.classes)
    return sums.A.nbytes + sum(column.nbytes for column in sums.T.values()) + weights


def _bytes_of_base(learner: Marketplace) -> int:
    base = learner.base()
    return sum(part.nbytes for part in (*base.parameters, base.products))


INTEGER, REFERENCE = "integer features", "reference network"

LEARNERS: Mapping[str, Entry] = {
    "clearing": Entry("exact sums of targets, and a solver", INTEGER, _clearing, state_bytes=_bytes_of_sums),
    "marketplace": Entry(
        "vendors on the outputs of the last spec; the specs before it stay as they were drawn",
        REFERENCE,
        lambda settings: _marketplace("marketplace", settings),
        state_bytes=_bytes_of_base,
    ),
    "marketplace-published": Entry(
        "vendors of parameters, the articles' continual form",
        REFERENCE,
        lambda settings: _marketplace("marketplace-published", settings),
        state_bytes=_bytes_of_base,
    ),
    "frozen": Entry(
        f"`clearing` for the first {TRAINED_ON:,} images, then never changed",
        INTEGER,
        lambda settings: Frozen(_clearing(settings)),
        state_bytes=lambda learner: 4 * learner.learner.sums().width * len(learner.classes),
    ),
    "ncm": Entry("nearest class mean", INTEGER, lambda settings: NearestMean(_features(settings))),
    "slda": Entry(
        "streaming linear discriminant analysis", INTEGER, lambda settings: StreamingLda(_features(settings))
    ),
    "backprop-sgd": Entry(
        "SGD 0.05, a step for each micro-batch", REFERENCE, lambda settings: _backprop(settings, "sgd"), 2, 1
    ),
    "backprop-adam": Entry(
        "Adam 1e-3, a step for each micro-batch", REFERENCE, lambda settings: _backprop(settings, "adam"), 2, 1
    ),
}
"""All of them begin from nothing, except for ``marketplace`` with a base model."""
