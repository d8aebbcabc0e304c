"""One step of ``paths`` is the step that the formulas say; so is the training form's."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.market import cross_entropy
from pipeline.paths import vendors
from pipeline.paths.base import Base
from pipeline.paths.blas import BlasNetwork
from pipeline.paths.device import DeviceNetwork
from pipeline.paths.learner import Paths
from pipeline.paths.model import Model
from pipeline.paths.network import Network, Shape
from pipeline.paths.terms import Terms, Unit
from pipeline.paths.tree import Tree
from tests.pipeline.paths import reference

SHAPES = st.builds(
    Shape,
    side=st.sampled_from([12, 13, 14]),
    widths=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernels=st.sampled_from([(3, 2), (4, 1), (2, 2)]),
)
VENDORS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).filter(lambda v: max(v) > 1)
COUNTS, SEEDS = st.integers(6, 12), st.integers(0, 99)
SMALL = Shape(side=12, widths=(3, 4), kernels=(3, 2))

Images = NDArray[np.uint8]
Doubles = NDArray[np.float64]


def images(count: int, side: int, seed: int) -> tuple[Images, list[str]]:
    """Noise, and labels that say nothing about it."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side), np.uint8), [str(i) for i in rng.integers(0, 3, count)]


def base(shape: Shape, seed: int) -> Base:
    """A network that knows three classes and has an opinion."""
    first, second, _ = vendors.initial(shape, seed)
    last = vendors.uniform(3 * shape.products, seed, vendors.Purpose.INITIAL, 2)
    return Base.of(shape, (first, second, last), ("0", "1", "2"))


def deltas(begun: Base, terms: Terms) -> list[list[Doubles]]:
    """What each vendor of the first generation adds, by the definition."""
    reach = terms.lr * terms.probe
    return [
        [reach * vendors.delta(part.size, terms.seed, 0, spec, v).astype(float) for v in range(terms.vendors[spec])]
        for spec, part in enumerate(begun.parameters)
    ]


def served(begun: Base, d: list[list[Doubles]], path: list[int], image: NDArray[np.uint8]) -> Doubles:
    """The logits of one image by one path, by the definition."""
    specs = [begun.parameters[s] + d[s][v] for s, v in enumerate(path)]
    return reference.logits(reference.products(begun.shape, specs, image), specs[2])


def moved(begun: Base, step: list[Doubles]) -> list[Doubles]:
    return [part + s for part, s in zip(begun.parameters, step, strict=True)]


def close(model: Base, expected: list[Doubles]) -> None:
    for part, other in zip(model.parameters, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5)


def check_continual(make: Callable[[Shape], Network], shape: Shape, terms: Terms, count: int) -> None:
    """Serve and learn one micro-batch, and compare with the reference."""
    begun = base(shape, terms.seed)
    learner = Paths(begun, make(shape), terms)
    pixels, labels = images(count, shape.side, terms.seed)
    quotes = learner.quote(pixels)
    paths = quotes.vendor.T.tolist()
    d = deltas(begun, terms)
    logits = [served(begun, d, path, image) for path, image in zip(paths, pixels, strict=True)]
    np.testing.assert_allclose(quotes.logits, logits, rtol=1e-4, atol=1e-4)
    learner.add(learner.settle(quotes, labels))
    learner.clear()
    losses = [reference.loss(h, int(label)) for h, label in zip(logits, labels, strict=True)]
    close(learner.base(), moved(begun, reference.step(d, paths, reference.outcomes(losses), terms.unit, terms.lr)))


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, v=VENDORS, count=COUNTS, seed=SEEDS, unit=st.sampled_from(["whole", "per_spec"]))
def test_a_continual_step_is_the_reference_s(
    shape: Shape, v: tuple[int, int, int], count: int, seed: int, unit: Unit
) -> None:
    terms = Terms(vendors=v, last="parameters", lr=0.05, unit=unit, seed=seed)
    check_continual(BlasNetwork, shape, terms, count)


@pytest.mark.parametrize(("v", "count"), [((4, 4, 4), 8), ((3, 2, 1), 7)])
def test_tinygrad_makes_the_same_step(v: tuple[int, int, int], count: int) -> None:
    check_continual(DeviceNetwork, SMALL, Terms(vendors=v, last="parameters", lr=0.05), count)


@settings(max_examples=10, deadline=None)
@given(shape=SHAPES, v=VENDORS, seed=SEEDS, sampling=st.integers(0, 3))
def test_a_step_of_the_training_form_is_the_reference_s(
    shape: Shape, v: tuple[int, int, int], seed: int, sampling: int
) -> None:
    terms = Terms(vendors=v, last="parameters", lr=0.05, seed=seed, upstream_sampling=sampling)
    begun, model = base(shape, seed), Model(base(shape, seed), terms)
    pixels, labels = images(3, shape.side, seed)
    tree = Tree(BlasNetwork(shape), terms, cross_entropy)
    model.apply(tree.settle(model, tree.still(model, pixels), labels))
    paths: list[list[int]] = [[]]
    for spec in range(3):
        sample = sampling if sampling and v[spec] > 1 else len(paths)
        chosen = [vendors.upstream(len(paths), sample, seed, 0, spec, vendor) for vendor in range(v[spec])]
        paths = [[*paths[i], vendor] for vendor in range(v[spec]) for i in chosen[vendor]]
    d = deltas(begun, terms)
    losses = [
        float(np.mean([reference.loss(served(begun, d, p, x), int(y)) for x, y in zip(pixels, labels, strict=True)]))
        for p in paths
    ]
    if np.std(losses) > 1e-9:  # a single path, or paths that only a vendor of a block without effect tells apart
        close(model.base(), moved(begun, reference.step(d, paths, reference.outcomes(losses), "whole", terms.lr)))
