"""One step of ``marketplace`` is the step that the formulas say; so is the training form's."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.learners.marketplace import draws
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.blas import BlasNetwork
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.model import Model
from pipeline.learners.marketplace.network import Network, Shape
from pipeline.learners.marketplace.terms import Terms
from pipeline.learners.marketplace.tinygrad import TinygradNetwork
from pipeline.learners.marketplace.tree import Tree
from pipeline.learners.targets import cross_entropy
from tests.pipeline.learners.marketplace import reference

SHAPES = st.builds(
    Shape,
    side=st.sampled_from([12, 13, 14]),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernels=st.sampled_from([(3, 2), (4, 1), (2, 2)]),
)
VENDORS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).filter(lambda v: max(v) > 1)
COUNTS, SEEDS = st.integers(6, 12), st.integers(0, 99)
SMALL = Shape(side=12, widths=(3, 4), kernels=(3, 2))

TOLD_APART = 1e-2
"""Losses that deviate by a smaller share of them are closer together than float32 can tell to a step's fifth digit."""

CANCELLED, NEARLY = 1e-9, 1e-5
"""Outcomes cancel where their sum is a smaller share of them than the first; between both float32 cannot tell. The
second is for losses that deviate as much as they are large."""

Images = NDArray[np.uint8]
Doubles = NDArray[np.float64]


def images(count: int, side: int, seed: int) -> tuple[Images, list[str]]:
    """Noise, and labels that say nothing about it."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side), np.uint8), [str(i) for i in rng.integers(0, 3, count)]


def base(shape: Shape, seed: int, generation: int = 0) -> Base:
    """A network that knows three classes and has an opinion, after so many updates."""
    first, second, _ = draws.initial(shape, seed)
    last = draws.uniform(3 * shape.products, seed, draws.Purpose.INITIAL, 2)
    counts = {"0": 5 * generation, "1": 1, "2": 2}
    return Base(shape, (first, second, last), ("0", "1", "2"), generation, counts, np.zeros(shape.products))


def rate(begun: Base, terms: Terms) -> float:
    """What is left of the learning rate."""
    return terms.lr * (1 - terms.lr_decay) ** begun.generation


def deltas(begun: Base, terms: Terms) -> list[list[Doubles]]:
    """What each vendor of the base's generation adds, by the definition."""
    reach, g = rate(begun, terms) * terms.probe, begun.generation
    return [
        [reach * draws.delta(part.size, terms.seed, g, spec, v).astype(float) for v in range(terms.vendors[spec])]
        for spec, part in enumerate(begun.parameters)
    ]


def weighted(begun: Base, terms: Terms, labels: list[str]) -> list[float]:
    """The weight of each label."""
    return reference.weights(labels, begun.counts) if terms.label_weights else [1.0] * len(labels)


def served(begun: Base, d: list[list[Doubles]], path: list[int], image: NDArray[np.uint8]) -> Doubles:
    """The logits of one image by one path, by the definition."""
    specs = [begun.parameters[s] + d[s][v] for s, v in enumerate(path)]
    return reference.logits(reference.products(begun.shape, specs, image), specs[2])


def clear_cut(paths: Sequence[Sequence[int]], losses: Sequence[float]) -> bool:
    """Whether float32 can tell losses apart, and in which vendors they cancel."""
    if np.std(losses) <= TOLD_APART * np.mean(losses):
        return False
    z, nearly = np.array(reference.outcomes(losses)), NEARLY * np.mean(losses) / np.std(losses)
    shares = [abs(z[chosen == v].sum()) / np.abs(z).sum() for chosen in np.array(paths).T for v in np.unique(chosen)]
    return not any(CANCELLED < share < nearly for share in shares)


def moved(begun: Base, step: list[Doubles]) -> list[Doubles]:
    return [part + s for part, s in zip(begun.parameters, step, strict=True)]


def close(model: Base, expected: list[Doubles]) -> None:
    for part, other in zip(model.parameters, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5)


def check_continual(
    make: Callable[[Shape], Network], shape: Shape, terms: Terms, count: int, generation: int = 0
) -> bool:
    """Serve and learn one micro-batch, and compare with the reference; False where the step cannot be compared."""
    begun = base(shape, terms.seed, generation)
    learner = Marketplace(begun, make(shape), terms)
    pixels, labels = images(count, shape.side, terms.seed)
    quotes = learner.quote(pixels)
    paths = quotes.vendor.T.tolist()
    d = deltas(begun, terms)
    logits = [served(begun, d, path, image) for path, image in zip(paths, pixels, strict=True)]
    np.testing.assert_allclose(quotes.logits, logits, rtol=1e-3, atol=1e-3)  # of few channels that are much alike
    learner.add(learner.settle(quotes, labels))
    learner.clear()
    weights = weighted(begun, terms, labels)
    losses = [w * reference.loss(h, int(label)) for w, h, label in zip(weights, logits, labels, strict=True)]
    if not clear_cut(paths, losses):
        return False
    z = reference.outcomes(losses)
    close(learner.base(), moved(begun, reference.step(d, paths, z, terms.unit, rate(begun, terms))))
    return True


TERMS = st.builds(
    Terms,
    vendors=VENDORS,
    last=st.just("parameters"),
    lr=st.just(0.05),
    probe=st.sampled_from([0.5, 1.0, 2.0]),
    lr_decay=st.sampled_from([0.0, 0.2]),
    unit=st.sampled_from(["whole", "per_spec"]),
    label_weights=st.booleans(),
    seed=SEEDS,
)


@settings(max_examples=25)
@given(shape=SHAPES, terms=TERMS, count=COUNTS, generation=st.integers(0, 5))
def test_a_continual_step_is_the_reference_s(shape: Shape, terms: Terms, count: int, generation: int) -> None:
    assume(check_continual(BlasNetwork, shape, terms, count, generation))


@pytest.mark.parametrize(("v", "count"), [((4, 4, 4), 8), ((3, 2, 1), 7)])
def test_tinygrad_makes_the_same_step(v: tuple[int, int, int], count: int) -> None:
    assert check_continual(TinygradNetwork, SMALL, Terms(vendors=v, last="parameters", lr=0.05), count)


def grown(terms: Terms, generation: int) -> list[list[int]]:
    """The paths of the training form: every vendor is offered all paths before it, or a sample of them."""
    paths: list[list[int]] = [[]]
    for spec, offers in enumerate(terms.vendors):
        sample = terms.upstream_sampling if terms.upstream_sampling and offers > 1 else len(paths)
        chosen = [draws.upstream(len(paths), sample, terms.seed, generation, spec, v) for v in range(offers)]
        paths = [[*paths[i], v] for v in range(offers) for i in chosen[v]]
    return paths


@settings(max_examples=10)
@given(shape=SHAPES, terms=TERMS, generation=st.integers(0, 5), sampling=st.integers(0, 3), several=st.booleans())
@example(
    shape=Shape(side=12, widths=(1, 1), kernels=(3, 2)),
    terms=Terms(vendors=(1, 2, 2), last="parameters", lr=0.05, unit="per_spec", seed=4),
    generation=1,
    sampling=1,  # both paths go through one vendor of the second spec, and their outcomes cancel there
    several=False,
)
@example(
    shape=Shape(side=12, widths=(1, 1), kernels=(4, 1)),
    terms=Terms(vendors=(2, 2, 2), last="parameters", lr=0.05, probe=1.0, unit="per_spec", seed=97),
    generation=0,
    sampling=0,  # nothing changes with the first spec's vendor but how losses are rounded
    several=False,
)
def test_a_step_of_the_training_form_is_the_reference_s(
    shape: Shape, terms: Terms, generation: int, sampling: int, several: bool
) -> None:
    terms = replace(terms, upstream_sampling=sampling, scales=(0.5, 1.0, 2.0) if several else (1.0,))
    begun, model = base(shape, terms.seed, generation), Model(base(shape, terms.seed, generation), terms)
    pixels, labels = images(3, shape.side, terms.seed)
    tree = Tree(BlasNetwork(shape), terms, cross_entropy)
    update = tree.settle(model, tree.still(model, pixels), labels)
    model.apply(update)
    d, weights = deltas(begun, terms), weighted(begun, terms, labels)

    def loss(specs: list[Doubles], each: list[float]) -> float:
        logits = [reference.logits(reference.products(shape, specs, image), specs[2]) for image in pixels]
        parts = zip(each, logits, labels, strict=True)
        return float(np.mean([w * reference.loss(h, int(label)) for w, h, label in parts]))

    def through(path: list[int]) -> list[Doubles]:
        return [part + d[spec][v] for spec, (part, v) in enumerate(zip(begun.parameters, path, strict=True))]

    paths = grown(terms, generation)
    losses = [loss(through(path), weights) for path in paths]
    assume(clear_cut(paths, losses))
    step = reference.step(d, paths, reference.outcomes(losses), terms.unit, rate(begun, terms))
    tried = {scale: loss(moved(begun, [scale * part for part in step]), [1.0] * 3) for scale in terms.scales}
    assert tried[update.scale] <= min(tried.values()) + 1e-5
    close(model.base(), moved(begun, [update.scale * part for part in step]))
