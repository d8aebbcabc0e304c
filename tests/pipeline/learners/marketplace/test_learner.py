"""``marketplace`` learns a stream, takes classes as they come, and costs little more than serving."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.learners import targets
from pipeline.learners.marketplace import draws, make, settling
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.blas import BlasNetwork
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.model import Model
from pipeline.learners.marketplace.network import Shape
from pipeline.learners.marketplace.terms import PUBLISHED, STREAM, Terms
from pipeline.learners.marketplace.tree import Tree
from tests.pipeline.learners.marketplace import reference
from tests.pipeline.synthetic import CLASSES, stream

SHAPE = Shape(widths=(4, 6))
NETWORK = BlasNetwork(SHAPE)
UNTRAINED = Base.untrained(SHAPE, 0)

Images = NDArray[np.uint8]


def learn(learner: Marketplace, images: Images, labels: Sequence[str | None], batch: int = 64) -> list[str | None]:
    """Predict, then learn; the predictions."""
    predictions: list[str | None] = []
    for start in range(0, len(images), batch):
        quotes = learner.quote(images[start : start + batch])
        predictions += quotes.predictions()
        learner.add(learner.settle(quotes, labels[start : start + batch]))
        learner.clear()
    return predictions


def test_it_learns_while_it_serves_from_nothing() -> None:
    images, labels = stream(1500)
    predictions = learn(Marketplace(UNTRAINED, NETWORK, STREAM), images, labels)
    assert predictions[:64] == [None] * 64
    assert np.mean([p == label for p, label in zip(predictions[1000:], labels[1000:], strict=True)]) > 0.95


def test_a_class_never_seen_before_needs_no_restart_and_costs_the_others_nothing() -> None:
    images, labels = stream(1200, classes=CLASSES[:2])
    learner = Marketplace(UNTRAINED, NETWORK, STREAM)
    learn(learner, images, labels)
    assert set(learner.classes) == set(CLASSES[:2])
    more, names = stream(1600, seed=1)
    predictions = learn(learner, more, names)
    assert set(learner.classes) == set(CLASSES)
    right = [p == label for p, label in zip(predictions[800:], names[800:], strict=True)]
    assert np.mean(right) > 0.9


def test_the_training_form_learns_from_nothing_with_vendors_in_every_spec() -> None:
    images, labels = stream(64 * 30)
    terms = Terms(vendors=(2, 3, 4), lr=0.05, probe=0.1, upstream_sampling=2, scales=(0.5, 1.0, 2.0))
    model, tree = Model(UNTRAINED, terms), Tree(NETWORK, terms, targets.cross_entropy)
    for start in range(0, len(images), 64):
        offered = tree.still(model, images[start : start + 64])
        model.apply(tree.settle(model, offered, labels[start : start + 64]))
    test, truth = stream(300, seed=5)
    predictions = Marketplace(model.base().fresh(), NETWORK, STREAM).quote(test).predictions()
    assert np.mean([p == t for p, t in zip(predictions, truth, strict=True)]) > 0.9
    assert all(not np.array_equal(a, b) for a, b in zip(model.parameters[:2], UNTRAINED.parameters[:2], strict=True))


def test_a_second_pass_takes_the_best_of_the_steps() -> None:
    images, labels = stream(64)
    scales = (-1.0, 0.0, 1.0)
    for seed in range(5):
        terms = Terms(scales=scales, seed=seed)
        model = Model(UNTRAINED, terms)
        tree = Tree(NETWORK, terms, targets.cross_entropy)
        assert tree.settle(model, tree.still(model, images), labels).scale == 1.0  # against the slope, and not along it


def test_an_image_s_logits_do_not_depend_on_the_images_beside_it() -> None:
    learner = Marketplace(UNTRAINED, NETWORK, STREAM)
    images, labels = stream(40)
    learn(learner, images, labels)
    alone = [learner.quote(images[i : i + 1]).logits[0] for i in range(40)]
    np.testing.assert_allclose(learner.quote(images).logits, alone, rtol=1e-5, atol=1e-5)


@given(n=st.integers(1, 70), v=st.integers(1, 9), seed=st.integers(0, 99), generation=st.integers(0, 9))
def test_every_vendor_is_taken_as_often_as_the_others(n: int, v: int, seed: int, generation: int) -> None:
    counts = np.bincount(draws.path(n, v, seed, generation, 0), minlength=v)
    assert len(counts) == v
    assert counts.max() - counts.min() <= 1


def test_draws_depend_on_seed_generation_spec_and_vendor_and_on_nothing_else() -> None:
    keys = [(s, g, spec, v) for s in (0, 1) for g in (0, 1) for spec in (0, 1) for v in (1, 2)]
    drawn = {draws.delta(50, *key).tobytes() for key in keys}
    assert len(drawn) == len(keys)
    assert drawn == {draws.delta(50, *key).tobytes() for key in reversed(keys)}
    assert np.array_equal(draws.delta(50, 0, 0, 0, 1), draws.delta(80, 0, 0, 0, 1)[:50])
    many = draws.delta(100_000, 3, 0, 0, 1)
    assert -1 <= many.min() < -0.999 < 0.999 < many.max() < 1
    assert abs(many.mean()) < 0.01


@given(n=st.integers(1, 6), pairs=st.integers(1, 16), classes=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_slope_that_pairs_find_is_the_reference_s(n: int, pairs: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, labels = rng.normal(0, 3, (n, classes)), rng.integers(0, classes, n)
    bids = draws.bids(n, pairs, classes, seed, 0)
    assert set(np.unique(bids)) <= {-1, 1}
    found = settling.slopes(h, labels, bids, targets.cross_entropy)
    expected = [reference.slope(h[i], int(labels[i]), bids[i]) for i in range(n)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(classes=st.integers(1, 16), seed=st.integers(0, 99))
def test_as_many_pairs_as_classes_find_the_slope_without_noise(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, labels = rng.normal(0, 3, (5, classes)), rng.integers(0, classes, 5)
    bids = draws.bids(5, 1 << (classes - 1).bit_length(), classes, seed, 0)
    found = settling.slopes(h, labels, bids, targets.squared)
    np.testing.assert_allclose(found, h - np.eye(classes)[labels], atol=1e-9)


def test_a_step_of_outputs_is_that_of_weights_and_bias_seen_from_the_mean_product() -> None:
    terms = Terms(vendors=(1, 1, 16), outputs_lr=0.1)
    images, labels = stream(40)
    learner = Marketplace(UNTRAINED, NETWORK, terms, targets.squared)
    quotes = learner.quote(images)
    learner.add(learner.settle(quotes, labels))
    learner.clear()
    z = quotes.products[:, :-1].astype(float)
    slope = -np.eye(len(learner.classes))[targets.columns(labels, learner.classes)]
    weights = -0.1 * slope.T @ (z - z.mean(axis=0)) / 40
    bias = -0.1 * slope.mean(axis=0) - weights @ z.mean(axis=0)
    last = learner.base().parameters[2].reshape(len(learner.classes), -1)
    np.testing.assert_allclose(last, np.column_stack([weights, bias]), rtol=1e-5, atol=1e-5)


@given(st.lists(st.sampled_from("abc"), min_size=1), st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9)))
def test_label_weights_make_every_label_count_the_same(labels: list[str], before: dict[str, int]) -> None:
    weights = settling.weights(labels, before)
    counts = {name: before.get(name, 0) + labels.count(name) for name in {*labels, *before}}
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, [min(counts.values()) / counts[name] for name in labels])


def test_images_without_a_label_are_predicted_and_not_learnt() -> None:
    images, labels = stream(64)
    learner = Marketplace(UNTRAINED, NETWORK, STREAM)
    quotes = learner.quote(images)
    update = learner.settle(quotes, [*[None] * 32, *labels[32:]])
    assert sum(update.counts.values()) == 32
    before = learner.base().digest
    nothing = learner.settle(quotes, [None] * 64)
    assert learner.base().digest == before
    learner.add(nothing)
    learner.clear()
    assert all(np.array_equal(a, b) for a, b in zip(learner.base().parameters, UNTRAINED.parameters, strict=True))


@pytest.mark.parametrize("terms", [PUBLISHED, STREAM], ids=["published", "stream"])
def test_an_empty_micro_batch_changes_nothing_but_the_vendors(terms: Terms) -> None:
    learner = Marketplace(UNTRAINED, NETWORK, terms)
    images, labels = stream(40)
    for some in (images[:0], images, images[:0]):
        quotes = learner.quote(some)
        assert len(quotes.predictions()) == len(some)
        learner.add(learner.settle(quotes, labels[: len(some)]))
        learner.clear()
    assert (learner.generation, learner.images) == (3, 40)
    assert not learner.clear()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_losses_that_are_not_finite_never_reach_the_weights(poison: float) -> None:
    def loss(h: targets.Floats, y: targets.Integers) -> targets.Floats:
        result = targets.cross_entropy(h, y)
        result[y == 1] = poison
        return result

    images, labels = stream(60)
    for terms in (PUBLISHED, STREAM):
        learner = Marketplace(UNTRAINED, NETWORK, terms, loss)
        update = learner.settle(learner.quote(images), labels)
        second = list(dict.fromkeys(labels))[1]
        assert update.unsound == tuple(i for i, label in enumerate(labels) if label == second)
        learner.add(update)
        learner.clear()
        assert all(np.isfinite(part).all() for part in learner.base().parameters)


def test_the_rates_decay_from_generation_to_generation() -> None:
    assert Terms(lr_decay=0.5).decayed(3) == 0.125
    assert Terms().decayed(1000) == 1


@pytest.mark.parametrize("wrong", [{"vendors": (0, 1, 1)}, {"scales": ()}])
def test_terms_without_a_market_are_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="need"):
        Terms(**wrong)  # type: ignore[arg-type]


def test_a_step_of_256_images_at_4_vendors_a_spec_costs_at_most_one_and_a_half_inferences() -> None:
    shape = Shape()
    first, second, _ = draws.initial(shape, 0)
    base = Base.of(shape, (first, second, np.zeros(10 * shape.products, np.float32)), tuple("0123456789"))
    serving, learning = (Marketplace(base, make(shape, "blas"), terms) for terms in (STREAM, PUBLISHED))
    images = np.random.default_rng(0).integers(0, 256, (256, 28, 28), np.uint8)
    labels = [str(i % 10) for i in range(256)]

    def step() -> None:
        learning.add(learning.settle(learning.quote(images), labels))
        learning.clear()

    def cost(work: object) -> float:
        begun = time.process_time()  # what others do on this machine does not count
        work()  # type: ignore[operator]
        return time.process_time() - begun

    pairs = [(cost(lambda: serving.quote(images)), cost(step)) for _ in range(5)][1:]
    inference, whole = (min(times) for times in zip(*pairs, strict=True))
    assert whole <= 1.5 * inference, f"{whole / inference:.2f} times"
