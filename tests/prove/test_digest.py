"""One digest for the same 19,200 real images: in any order, in micro-batches of any size, on any device, added up and
taken back."""

import random
from collections.abc import Callable

import pytest

from benchmarks.accuracy import BATCH
from pipeline.data.stream import Stream
from pipeline.features import make
from pipeline.learners.clearing.sums import Sums
from tests.prove.harness import FILTERS, PROOF, digest, learnt, mixed

pytestmark = PROOF

IMAGES, MORE = 19_200, 1_000


@pytest.fixture(scope="module")
def stream() -> Stream:
    return mixed(IMAGES + MORE)


@pytest.fixture(scope="module")
def expected(stream: Stream) -> str:
    return digest(learnt(stream, range(IMAGES)))


def another_order(stream: Stream) -> Sums:
    return learnt(stream, random.Random(0).sample(range(IMAGES), IMAGES))


def small_micro_batches(stream: Stream) -> Sums:
    return learnt(stream, range(IMAGES), batch=100)


def three_learners_added_up(stream: Stream) -> Sums:
    one, two, three = (learnt(stream, range(part, IMAGES, 3)) for part in range(3))
    return one + two + three


def more_images_taken_back(stream: Stream) -> Sums:
    return learnt(stream, range(IMAGES + MORE)) - learnt(stream, range(IMAGES, IMAGES + MORE))


def another_device(stream: Stream) -> Sums:
    """tinygrad's; a GPU where it finds one."""
    return learnt(stream, range(IMAGES), features=make(FILTERS, "tinygrad", BATCH))


@pytest.mark.parametrize(
    "way", [another_order, small_micro_batches, three_learners_added_up, more_images_taken_back, another_device]
)
def test_it_is_the_same(way: Callable[[Stream], Sums], stream: Stream, expected: str) -> None:
    assert digest(way(stream)) == expected
