"""The learner learns, and one digest proves that nothing but the images matters."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import SolverError
from pipeline.features import Features, Filters, make
from pipeline.learners import targets
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.solver import solve
from pipeline.learners.clearing.sums import LooseSums, Sums
from tests.pipeline.synthetic import CLASSES, stream

FILTERS = Filters(seed=0, count=4)
FEATURES = make(FILTERS, "blas")

Images = NDArray[np.uint8]


def new(features: Features = FEATURES, loss: targets.Loss = targets.squared) -> Clearing:
    return Clearing(features, Sums.zero(FILTERS.width), loss=loss)


def learn(learner: Clearing, images: Images, labels: Sequence[str | None], batch: int = 64) -> list[str | None]:
    """Predict, then learn; the predictions."""
    predictions: list[str | None] = []
    for start in range(0, len(images), batch):
        quotes = learner.quote(images[start : start + batch])
        predictions += quotes.predictions()
        learner.add(learner.settle(quotes, labels[start : start + batch]))
        learner.clear()
    return predictions


def digest(learner: Clearing) -> str:
    return learner.sums().digest("identity")


def test_it_learns_while_it_serves() -> None:
    images, labels = stream(1500)
    predictions = learn(new(), images, labels)
    assert predictions[:64] == [None] * 64
    assert np.mean([p == label for p, label in zip(predictions[1000:], labels[1000:], strict=True)]) > 0.95


def test_any_order_and_batch_size_gives_the_same_digest() -> None:
    images, labels = stream(700)
    order = np.random.default_rng(1).permutation(700)
    one, other = new(), new()
    learn(one, images, labels, batch=64)
    learn(other, images[order], [labels[i] for i in order], batch=300)
    assert digest(one) == digest(other)


@pytest.mark.slow
def test_blas_and_tinygrad_give_the_same_digest() -> None:
    images, labels = stream(300)
    one, other = new(), new(make(FILTERS, "tinygrad", 64))
    learn(one, images, labels)
    learn(other, images, labels)
    assert digest(one) == digest(other)


def test_three_learners_added_up_are_one() -> None:
    images, labels = stream(600)
    whole, parts = new(), [new() for _ in range(3)]
    learn(whole, images, labels)
    for i, part in enumerate(parts):
        learn(part, images[i::3], labels[i::3])
    merged = parts[0].sums() + parts[1].sums() + parts[2].sums()
    assert merged.digest("identity") == digest(whole)
    again = Clearing(FEATURES, merged)
    again.clear()
    whole_again = Clearing(FEATURES, whole.sums())
    whole_again.clear()
    assert np.allclose(again.quote(images).logits.sum(), whole_again.quote(images).logits.sum(), rtol=1e-3)


def test_images_that_are_taken_back_were_never_there() -> None:
    images, labels = stream(500)
    learner, kept = new(), new()
    learn(learner, images, labels)
    learn(kept, images[:400], labels[:400])
    update = learner.settle(learner.quote(images[400:]), labels[400:])
    taken = Accumulator(Sums.zero(FILTERS.width))
    taken.add(update)
    assert (learner.sums() - taken.total()).digest("identity") == digest(kept)


def test_what_it_adds_it_can_take_back_and_what_others_found_it_can_add() -> None:
    images, labels = stream(500)
    learner, kept, other = new(), new(), new()
    learn(kept, images[:300], labels[:300])
    learn(other, images[300:], labels[300:])
    learn(learner, images[:300], labels[:300])
    update = learner.settle(learner.quote(images[300:]), labels[300:])
    learner.add(update)
    learner.remove(update)
    learner.add_sums(LooseSums(other.sums()))
    learner.remove_sums(LooseSums(other.sums()))
    assert digest(learner) == digest(kept)


def test_a_class_that_is_taken_back_as_a_whole_is_never_predicted_again() -> None:
    images, labels = stream(600)
    learner, one = new(), new()
    learn(learner, images, labels)
    mine = [i for i, label in enumerate(labels) if label == CLASSES[0]]
    learn(one, images[mine], [CLASSES[0]] * len(mine))
    learner.remove_sums(LooseSums(one.sums()))
    assert learner.clear()
    assert learner.quote(images).classes == tuple(name for name in learner.classes if name != CLASSES[0])


def test_a_class_never_seen_before_needs_no_restart() -> None:
    images, labels = stream(600, classes=CLASSES[:2])
    learner = new()
    learn(learner, images, labels)
    assert learner.classes == tuple(dict.fromkeys(labels))
    more, names = stream(400, seed=1)
    predictions = learn(learner, more, names)
    assert set(learner.classes) == set(CLASSES)
    late = [p == label for p, label in zip(predictions[256:], names[256:], strict=True) if label in CLASSES[2:]]
    assert np.mean(late) > 0.9


def test_nothing_is_forgotten_when_classes_come_one_after_another() -> None:
    learner = new()
    for name in CLASSES:
        images, labels = stream(300, seed=ord(name[0]), classes=(name,))
        learn(learner, images, labels)
    test, truth = stream(300, seed=9)
    assert np.mean([p == t for p, t in zip(learner.quote(test).predictions(), truth, strict=True)]) > 0.95


def test_images_without_a_label_are_predicted_and_not_learnt() -> None:
    images, labels = stream(400)
    half: list[str | None] = [label if i % 2 else None for i, label in enumerate(labels)]
    all_seen, labelled_only = new(), new()
    assert len(learn(all_seen, images, half)) == 400
    learn(labelled_only, images[1::2], labels[1::2])
    assert digest(all_seen) == digest(labelled_only)


def test_settling_changes_nothing_before_it_is_added() -> None:
    images, labels = stream(100)
    learner = new()
    learn(learner, images, labels)
    before = digest(learner)
    learner.settle(learner.quote(images), labels)
    assert digest(learner) == before


def test_an_empty_micro_batch_changes_nothing() -> None:
    images, labels = stream(100)
    knowing = new()
    learn(knowing, images, labels)
    before = digest(knowing)
    assert learn(knowing, images[:0], []) == []
    knowing.add(knowing.settle(knowing.quote(images[:0]), []))
    assert digest(knowing) == before
    learner = new()
    assert learn(learner, np.empty((0, 28, 28), np.uint8), []) == []
    learner.add(learner.settle(learner.quote(np.empty((0, 28, 28), np.uint8)), []))
    assert digest(learner) == digest(new())
    assert not learner.clear()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_losses_that_are_not_finite_never_reach_the_sums(poison: float) -> None:
    images, labels = stream(200)

    def loss(h: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
        result = targets.squared(h, y)
        result[y == 1] = poison
        return result

    learner, sound = new(loss=loss), new()
    update = learner.settle(learner.quote(images), labels)
    second = list(dict.fromkeys(labels))[1]
    assert update.unsound == tuple(i for i, label in enumerate(labels) if label == second)
    learner.add(update)
    kept = [i for i, label in enumerate(labels) if label != second]
    learn(sound, images[kept], [labels[i] for i in kept])
    assert digest(learner) == digest(sound)


def test_it_learns_from_another_loss_too() -> None:
    images, labels = stream(1500)
    predictions = learn(new(loss=targets.cross_entropy), images, labels)
    assert np.mean([p == label for p, label in zip(predictions[1000:], labels[1000:], strict=True)]) > 0.9


def test_clearings_are_counted() -> None:
    images, labels = stream(600)
    learner = new()
    learn(learner, images, labels, batch=100)
    assert 0 < learner.generation < 6


@pytest.mark.parametrize("more", [0, 1])
def test_what_was_added_beyond_sums_is_told_by_its_images_if_they_are_few(more: int) -> None:
    learner = new()
    learn(learner, *stream(64))
    before = learner.sums()
    images, labels = stream(before.width // 2 + more, seed=1)
    update = learner.settle(learner.quote(images), labels)
    learner.add(update)
    beyond = learner.beyond(LooseSums(before), [update])
    assert (beyond.dense is not None) == bool(more)
    assert beyond.summed().digest("x") == (learner.sums() - before).digest("x")


def test_of_no_images_there_are_no_weights_and_no_classes_but_a_generation() -> None:
    images, labels = stream(300)
    learner = new()
    learn(learner, images, labels)
    generation = learner.generation
    learner.remove_sums(LooseSums(learner.sums()))
    assert learner.clear()
    assert (learner.images, learner.generation) == (0, generation + 1)
    assert learner.quote(images[:3]).predictions() == [None] * 3
    assert not learner.clear()
    learn(learner, images, labels)
    assert set(learner.quote(images[:3]).predictions()) <= set(labels)


def test_sums_of_no_images_at_all_are_an_error_that_says_what_to_do() -> None:
    images, labels = stream(60)
    learner, more = new(), new()
    learn(learner, images[:40], labels[:40])
    learn(more, images, labels)
    learner.remove_sums(LooseSums(more.sums()))
    with pytest.raises(SolverError, match=r"more images of '.*' were taken back than learnt: .*--snapshot"):
        learner.clear()


def test_what_cannot_be_solved_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SolverError, match=r"the sums over 1,234 images are not those .* begin another --group"):
        solve(-np.eye(3), np.zeros((3, 1)), 1234)
