"""Pre-training learns, and goes on where it was stopped."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from pipeline.data.datasets import DIGITS, Split
from pipeline.errors import SettingsError
from pipeline.learners import pretrain
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.blas import BlasNetwork
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.network import Floats, Shape
from pipeline.learners.marketplace.terms import STREAM, Terms
from pipeline.learners.pretrain import Training
from tests.pipeline.synthetic import CLASSES, stream

NETWORK = BlasNetwork(Shape(widths=(3, 5)))
TERMS = Terms(vendors=(2, 2, 4), lr=0.05, probe=0.1)


def splits() -> tuple[Split, Split]:
    images, labels = stream(600)
    numbers = np.array([CLASSES.index(label) for label in labels], np.uint8)
    return Split("mnist", "train", images[:400], numbers[:400]), Split("mnist", "test", images[400:], numbers[400:])


def training(out: Path, terms: Terms = TERMS) -> Training:
    return Training(out, NETWORK, terms, 50, splits())


def test_it_learns_and_says_how_it_went(tmp_path: Path) -> None:
    one = training(tmp_path / "base.safetensors")
    one.until(30, 10)
    assert [(steps, images) for steps, images, _, _ in one.course.points] == [(10, 500), (20, 1000), (30, 1500)]
    assert one.course.points[-1][3] > 0.9
    assert orjson.loads((tmp_path / "base.json").read_bytes())["points"] == [list(p) for p in one.course.points]
    base = Base.read(tmp_path / "base.safetensors")
    assert base.generation == 30
    test = splits()[1]
    predictions = Marketplace(base.fresh(), NETWORK, STREAM).quote(test.images).predictions()
    assert np.mean([p == DIGITS[y] for p, y in zip(predictions, test.labels, strict=True)]) == one.course.points[-1][3]


def test_stopped_and_started_again_it_makes_the_same_base(tmp_path: Path) -> None:
    training(tmp_path / "whole.safetensors").until(9, 3)
    training(tmp_path / "parts.safetensors").until(6, 3)
    again = training(tmp_path / "parts.safetensors")
    again.until(9, 3)
    assert Base.read(tmp_path / "parts.safetensors").digest == Base.read(tmp_path / "whole.safetensors").digest
    assert [steps for steps, *_ in again.course.points] == [3, 6, 9]


def test_products_that_never_change_are_made_once_and_lead_to_the_same_base(tmp_path: Path) -> None:
    made: list[int] = []

    class Counting(BlasNetwork):
        def block(self, spec: int, parameters: Floats, products: Floats) -> Floats:
            made.append(products.shape[1])
            return super().block(spec, parameters, products)

    network, (train, _) = Counting(NETWORK.shape), splits()
    one = Training(tmp_path / "base.safetensors", network, Terms(), 50, splits())
    one.until(20, 10)
    assert sum(made) == 2 * (400 + 200)
    learner = Marketplace(Base.untrained(NETWORK.shape, 0), NETWORK, Terms())
    for start in range(0, 1000, 50):
        some = pretrain.order(400, 0, start, start + 50)
        learner.add(learner.settle(learner.quote(train.images[some]), [DIGITS[y] for y in train.labels[some]]))
        learner.clear()
    assert one.model.base().digest == learner.base().digest


def test_it_does_not_go_on_with_other_terms(tmp_path: Path) -> None:
    training(tmp_path / "base.safetensors").until(2, 2)
    with pytest.raises(SettingsError, match=r"base\.json: that training kept to other terms; give them again"):
        training(tmp_path / "base.safetensors", Terms(vendors=(2, 3, 4)))


@pytest.mark.parametrize("step", [1, 7, 10, 25])
def test_every_image_comes_once_before_any_comes_again(step: int) -> None:
    drawn = np.concatenate([pretrain.order(10, 3, start, start + step) for start in range(0, 50, step)])[:50]
    for turn in range(5):
        assert sorted(drawn[10 * turn : 10 * turn + 10]) == list(range(10))
    assert len({drawn[10 * turn : 10 * turn + 10].tobytes() for turn in range(5)}) == 5


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    one = training(tmp_path / "base.safetensors")
    one.until(4, 2)
    pretrain.plot(one.course, tmp_path / "base.png")
    assert (tmp_path / "base.png").read_bytes()[:4] == b"\x89PNG"
