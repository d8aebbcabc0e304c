"""Class means and streaming LDA are what their formulas say, image by image, however the stream is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.learners import means
from benchmarks.learners.means import NearestMean, StreamingLda

CLASSES = ("a", "b", "c")

Images = NDArray[np.uint8]
Doubles = NDArray[np.float64]


def features(images: Images) -> Images:
    """Five pixels, and the constant at the end."""
    return np.pad(images.reshape(len(images), -1)[:, :5], ((0, 0), (0, 1)), constant_values=128)


def drawn(count: int, seed: int) -> tuple[Images, list[str | None]]:
    rng = np.random.default_rng(seed)
    labels: list[str | None] = [[*CLASSES, None][i] for i in rng.integers(0, 4, count)]
    return rng.integers(0, 256, (count, 28, 28), np.uint8), labels


def learnt(learner: NearestMean, images: Images, labels: list[str | None], batch: int) -> None:
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        learner.add(learner.settle(learner.quote(images[some]), labels[some]))
        learner.clear()


def plain(images: Images, labels: list[str | None]) -> tuple[dict[str, Doubles], Doubles]:
    """Means of the classes and Σ, an image at a time."""
    mean: dict[str, Doubles] = {}
    counts = dict.fromkeys(CLASSES, 0)
    sigma = np.zeros((5, 5))
    t = 0
    for image, label in zip(images, labels, strict=True):
        if label is None:
            continue
        z = image.ravel()[:5].astype(np.float64)
        off = z - mean.get(label, z)
        sigma = (t * sigma + t / (t + 1) * np.outer(off, off)) / (t + 1)
        mean[label] = mean.get(label, z) + off / (counts[label] + 1)
        counts[label] += 1
        t += 1
    return mean, sigma


STREAMS = given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))


@settings(max_examples=30)
@STREAMS
def test_slda_keeps_the_means_and_the_covariance_of_the_article(count: int, batch: int, seed: int) -> None:
    images, labels = drawn(count, seed)
    learner = StreamingLda(features)
    learnt(learner, images, labels, batch)
    mean, sigma = plain(images, labels)
    assert learner.classes == tuple(mean)
    if mean:
        assert np.allclose(learner.means(), list(mean.values()))
        assert np.allclose(learner.covariance(), sigma, rtol=1e-4, atol=1e-2)


def test_slda_serves_the_discriminants_of_the_article() -> None:
    images, labels = drawn(300, 1)
    learner = StreamingLda(features)
    learnt(learner, images, labels, 300)  # one micro-batch: everything is cleared
    mean, sigma = plain(images, labels)
    eps = means.SHRINKAGE
    inverse = np.linalg.inv((1 - eps) * sigma + eps * np.trace(sigma) / 5 * np.eye(5))
    z = features(images)[:, :5].astype(np.float64)
    expected = np.stack([z @ inverse @ mu - 0.5 * mu @ inverse @ mu for mu in mean.values()], axis=1)
    assert np.allclose(learner.quote(images).logits, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=30)
@STREAMS
def test_ncm_predicts_the_class_with_the_nearest_mean(count: int, batch: int, seed: int) -> None:
    images, labels = drawn(count, seed)
    learner = NearestMean(features)
    learnt(learner, images, labels, batch)
    mean, _ = plain(images, labels)
    predicted = learner.quote(images).predictions()
    for image, found in zip(images, predicted, strict=True):
        far = {name: float(np.linalg.norm(image.ravel()[:5] - mu)) for name, mu in mean.items()}
        assert found is None if not far else far[str(found)] == pytest.approx(min(far.values()), rel=1e-5)


@pytest.mark.parametrize("kind", [NearestMean, StreamingLda])
def test_settling_changes_nothing_and_what_is_not_labelled_is_not_learnt(kind: type[NearestMean]) -> None:
    images, labels = drawn(40, 2)
    learner = kind(features)
    learnt(learner, images, labels, 40)
    before, state = learner.means(), learner.state_bytes
    learner.settle(learner.quote(images), labels)
    learner.add(learner.settle(learner.quote(images), [None] * 40))
    assert np.array_equal(learner.means(), before)
    assert learner.images == sum(label is not None for label in labels)
    assert state == learner.state_bytes > 0
