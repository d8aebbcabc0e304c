"""Sums are a group, and their digest does not know how they came about."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.sums import ClearingUpdate, LooseSums, Sums

WIDTH = 6
CLASSES = ("a", "b", "ß")

Image = tuple[bytes, str]
streams = st.lists(st.tuples(st.binary(min_size=WIDTH, max_size=WIDTH), st.sampled_from(CLASSES)), max_size=30)


def summed(stream: list[Image], batch: int = 7) -> Sums:
    """Sums over images of a one-hot target, added up in batches."""
    accumulator = Accumulator(Sums.zero(WIDTH))
    put(accumulator, stream, batch)
    return accumulator.total()


def put(accumulator: Accumulator, stream: list[Image], batch: int, sign: int = 1) -> None:
    for update in updates(stream, batch):
        accumulator.add(update, sign)


def updates(stream: list[Image], batch: int = 7) -> list[ClearingUpdate]:
    """What a market with two more classes than it has seen finds for each batch."""
    found = []
    for start in range(0, len(stream), batch):
        some = stream[start : start + batch]
        products = np.frombuffer(b"".join(z for z, _ in some), np.uint8).reshape(-1, WIDTH)
        labels = tuple(label for _, label in some)
        classes = tuple(dict.fromkeys([*labels, *CLASSES[:2]]))
        targets = np.array([[256 * (label == c) for c in classes] for label in labels], np.int64)
        found.append(ClearingUpdate(products, targets, labels, classes))
    return found


def by_hand(stream: list[Image]) -> Sums:
    z = np.array([list(pixels) for pixels, _ in stream], np.int64).reshape(-1, WIDTH)
    labels = [label for _, label in stream]
    rows, columns = np.triu_indices(WIDTH)
    T = {c: 256 * z[[label == c for label in labels]].sum(axis=0) for c in labels}
    return Sums((z.T @ z)[rows, columns], T, {c: labels.count(c) for c in labels})


@given(streams)
def test_an_accumulator_adds_up_what_plain_integers_add_up(stream: list[Image]) -> None:
    assert summed(stream).digest("x") == by_hand(stream).digest("x")


@given(streams, st.randoms(use_true_random=False), st.integers(1, 40))
def test_order_and_batch_size_leave_no_trace(stream: list[Image], random: Random, batch: int) -> None:
    shuffled = list(stream)
    random.shuffle(shuffled)
    assert summed(shuffled, batch).digest("x") == summed(stream).digest("x")


@given(streams, streams, streams)
def test_learners_merge_by_adding(a: list[Image], b: list[Image], c: list[Image]) -> None:
    merged = summed(c) + summed(a) + summed(b)
    assert merged.digest("x") == summed(a + b + c).digest("x")
    assert merged.images == len(a + b + c)


@given(streams, streams)
def test_what_is_taken_back_leaves_no_trace(kept: list[Image], taken: list[Image]) -> None:
    assert (summed(kept + taken) - summed(taken)).digest("x") == summed(kept).digest("x")


@given(st.lists(st.tuples(streams, st.sampled_from([1, -1]), st.booleans(), st.booleans()), max_size=6))
def test_an_accumulator_adds_and_takes_away_images_and_sums_in_any_order(
    steps: list[tuple[list[Image], int, bool, bool]],
) -> None:
    accumulator, expected = Accumulator(Sums.zero(WIDTH)), Sums.zero(WIDTH)
    for stream, sign, as_sums, look in steps:
        if as_sums:
            accumulator.add_sums(summed(stream), sign)
        else:
            put(accumulator, stream, 4, sign)
        expected = expected + summed(stream) if sign > 0 else expected - summed(stream)
        if look:
            accumulator.equations()
    assert accumulator.total().digest("x") == expected.digest("x")
    assert accumulator.images == expected.images


@given(streams, streams)
def test_what_an_accumulator_adds_and_takes_away_again_leaves_nothing(kept: list[Image], passing: list[Image]) -> None:
    accumulator = Accumulator(summed(kept))
    put(accumulator, passing, 5)
    accumulator.add_sums(summed(passing))
    put(accumulator, passing, 3, -1)
    accumulator.add_sums(summed(passing), -1)
    total = accumulator.total()
    assert total.digest("x") == summed(kept).digest("x")
    assert not any(total.T[name].any() for name, count in total.counts.items() if not count)


@given(streams, streams, st.randoms(use_true_random=False))
def test_sums_of_updates_are_those_that_an_accumulator_adds_up(a: list[Image], b: list[Image], random: Random) -> None:
    parts = [LooseSums(None, (update,)) for update in updates(a, 2)]
    merged = LooseSums(Sums.zero(WIDTH), tuple(updates(b)))
    for part in parts:
        merged = LooseSums(merged.summed()) + part if random.random() < 0.3 else merged + part
    assert merged.images == len(a + b)
    assert merged.summed().digest("x") == summed(a + b).digest("x")
    assert merged.summed().classes == summed(a + b).classes
    less = merged - LooseSums(Sums.zero(WIDTH), tuple(updates(a)))
    assert less.summed().digest("x") == summed(b).digest("x")
    accumulator = Accumulator(summed(b))
    accumulator.add_sums(merged.summed())
    accumulator.add_sums(Sums.zero(WIDTH).with_images(updates(b, 3)), -1)
    assert accumulator.total().digest("x") == summed(a + b).digest("x")


@given(streams)
def test_an_accumulator_goes_on_from_sums(stream: list[Image]) -> None:
    accumulator = Accumulator(summed(stream))
    assert accumulator.total().digest("x") == summed(stream).digest("x")
    assert accumulator.images == len(stream)


def test_the_digest_depends_on_the_identity_and_on_every_part() -> None:
    stream = [(bytes([1, 2, 3, 4, 5, 6]), "a"), (bytes([9, 2, 3, 4, 5, 6]), "b")]
    relabelled = [(stream[0][0], "b"), (stream[1][0], "a")]
    digests = {
        summed(stream).digest("x"),
        summed(stream).digest("y"),
        summed(relabelled).digest("x"),
        summed(stream[:1]).digest("x"),
        summed([*stream, stream[0]]).digest("x"),
    }
    assert len(digests) == 5


def test_products_as_large_as_they_can_be_stay_exact() -> None:
    count = 3000  # in float32 alone, 255² times this would have been rounded long ago
    stream = [(bytes([255] * (WIDTH - 1) + [i % 2]), "a") for i in range(count)]
    total = summed(stream, batch=1000)
    assert total.A[0] == 255**2 * count
    assert total.digest("x") == by_hand(stream).digest("x")
    assert Sums.zero(WIDTH).with_images(updates(stream, 1000)).digest("x") == total.digest("x")


def test_sums_stay_loose_until_there_are_many_images() -> None:
    [update] = updates([(bytes(range(WIDTH)), "a")] * 400, 400)
    loose, few = LooseSums(Sums.zero(WIDTH)), LooseSums(None, (update,))
    assert [len((loose := loose + few).few) for _ in range(4)] == [1, 2, 0, 1]
    assert loose.images == 1600
