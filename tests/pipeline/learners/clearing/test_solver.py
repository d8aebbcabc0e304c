"""The solver: ridge regression, as rarely as accuracy allows."""

import numpy as np

from pipeline.learners.clearing.solver import FIRST, PRIOR, ClearingSchedule, solve


def test_weights_are_the_ridge_regression_with_the_prior() -> None:
    rng = np.random.default_rng(0)
    z = rng.integers(0, 256, (50, 8)).astype(np.float64)
    y = np.eye(3)[rng.integers(0, 3, 50)]
    A = z.T @ z
    alpha = PRIOR * 8 * np.diag(A).mean() / 50
    expected = np.linalg.solve(A + alpha * np.eye(8), z.T @ y)
    found = solve(np.triu(A), 256 * z.T @ y, 50)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-7)


def cleared(total: int, new_at: tuple[int, ...] = (), size: int = 256) -> list[int]:
    """Images after which a stream in micro-batches of so many images is cleared."""
    schedule, places = ClearingSchedule(), []
    for images in range(size, total + 1, size):
        if images - size in new_at:
            schedule.new_class(images - size)
        if schedule.due(images):
            schedule.cleared(images)
            places.append(images)
    return places


def test_clearings_are_frequent_at_first_and_ever_rarer() -> None:
    places = cleared(500_000)
    gaps = np.diff(places)
    assert places[:3] == [256, 512, 1024]
    assert (np.diff(gaps) >= -256).all()
    assert len(places) < 25


def test_micro_batches_of_a_few_images_are_not_each_cleared() -> None:
    assert cleared(1000, size=8) == [8, 8 + FIRST, 2 * (8 + FIRST), 4 * (8 + FIRST), 8 * (8 + FIRST), 16 * (8 + FIRST)]


def test_a_new_class_is_cleared_at_once_and_often_again() -> None:
    places = cleared(100_000, new_at=(51_200,))
    assert [p for p in places if p > 51_200][:3] == [51_456, 51_712, 52_224]
