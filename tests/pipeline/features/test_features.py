"""The features give the same bits as plain int64 arithmetic, whatever computes it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import features as features_module
from pipeline.features import Backend, Features, Filters, make
from pipeline.features import tinygrad as device
from pipeline.features.blas import BlasFeatures
from pipeline.features.filters import gabors_and_blurs, random_filters
from tests.pipeline.features.reference import products

BATCH = 37


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, the extremes, and bars: noise alone leaves the layers' caps untried."""
    rng = np.random.default_rng(seed)
    result = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    result[0], result[1] = 0, 255
    result[2, ::2], result[3, :, :14] = 0, 255
    result[4:10] = np.where(rng.random((6, 1, 28)) < 0.5, 0, 255)
    return result


@pytest.fixture(scope="module", params=["blas", pytest.param("tinygrad", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture(scope="module")
def features(backend: Backend) -> Features:
    return make(Filters(seed=3, count=5), backend, BATCH)


def test_products_equal_the_reference_bit_for_bit(features: Features) -> None:
    pixels = images(BATCH)
    assert np.array_equal(features(pixels), products(Filters(seed=3, count=5), pixels))


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH + 1, 3 * BATCH])
def test_products_of_an_image_do_not_depend_on_the_batch_it_comes_in(features: Features, count: int) -> None:
    pixels = images(max(count, 10), seed=1)[:count]
    one_by_one = [features(pixels[i : i + 1])[0] for i in range(count)]
    together = features(pixels)
    assert together.shape == (count, Filters(seed=3, count=5).width)
    assert together.dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, together, strict=True))


@pytest.mark.parametrize(("variable", "file", "asked"), [("", "", 0), ("CPU", "", 1), ("", "gpu0", 1)])
def test_tinygrad_is_asked_for_a_device_only_where_there_may_be_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, file: str, asked: int
) -> None:
    answers: list[str] = []

    def answer() -> str:
        answers.append("CPU")
        return "CPU"

    monkeypatch.setattr(device, "default_device", answer)
    monkeypatch.setattr(features_module, "DEVICE_FILES", (str(tmp_path / "gpu*"),))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DEV", raising=False)
    if variable:
        monkeypatch.setenv("DEV", variable)
    if file:
        (tmp_path / file).touch()
    assert isinstance(make(Filters(seed=3, count=5), "auto"), BlasFeatures)
    assert len(answers) == asked


def test_the_default_trunk_equals_the_reference() -> None:
    pixels = images(20)
    assert np.array_equal(make(Filters(), "blas")(pixels), products(Filters(), pixels))


def test_seed_and_count_make_the_trunk_and_nothing_else() -> None:
    assert Filters(1, 8).digest() == Filters(1, 8).digest()
    assert len({Filters(seed, count).digest() for seed in (0, 1) for count in (8, 9)}) == 4


def test_the_filters_are_the_same_on_every_machine() -> None:
    assert Filters().digest() == "008fa021f3dcfce187199d416430ac3be34df508f76d044e28ebb3f7f746f542"


def test_filters_of_a_smaller_trunk_begin_those_of_a_larger_one() -> None:
    assert np.array_equal(random_filters(0, 8, 26), random_filters(0, 16, 26)[:8])


def test_layer_1_sees_no_even_light() -> None:
    assert abs(gabors_and_blurs()[:24].sum(axis=(1, 2))).max() <= 24


def test_a_trunk_whose_sums_could_leave_exact_float32_is_refused() -> None:
    @dataclass(frozen=True)
    class Loud(Filters):
        @property
        def layer_1(self) -> NDArray[np.int64]:
            return np.full((26, 7, 7), 2000)

    with pytest.raises(ValueError, match=r"layer 1: sums reach .* exact below 16777216"):
        Loud()
