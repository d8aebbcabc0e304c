"""Any number of learners, whatever befalls them, come to the sums of one that was never disturbed."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.group import encoding as sums_records
from pipeline.group.membership import Learnt
from pipeline.group.publishing import PublishingOwner
from pipeline.group.shared import Shared
from tests.simulation.arithmetic import Counted, Real, Tally
from tests.simulation.bugs import BUGS, OnlyTheEndsCommitted
from tests.simulation.check import first_violation
from tests.simulation.kafka import Kafka
from tests.simulation.learner import Images, Learner
from tests.simulation.world import World


@pytest.mark.parametrize("first", range(0, 3200, 400))
def test_every_schedule_comes_to_the_same_sums_and_predicts_each_image_once(first: int) -> None:
    assert first_violation(range(first, first + 400)) is None


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 1 << 20), max_size=400))
def test_so_does_every_schedule_that_hypothesis_thinks_of(choices: list[int]) -> None:
    left, random = iter(choices), Random(0)
    World(lambda n: next(left, random.getrandbits(20)) % n, Counted()).play()


def test_so_do_real_sums_through_the_real_codec_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_records, "PIECE", 60)
    assert first_violation(range(8), Real()) is None


@pytest.mark.parametrize(("learner", "waits"), [(Learner, True), (OnlyTheEndsCommitted, False)])
def test_whoever_takes_a_partition_over_waits_for_a_delta_of_it_on_its_way(learner: type[Learner], waits: bool) -> None:
    """One schedule in 2,000 comes upon it: positions arrive, the group changes, then the rest of the transaction."""
    kafka = Kafka()
    kafka.rebalance({"a"}, 2, lambda _: 0)
    owner = PublishingOwner[int, int]("a", Shared(0), Tally(1).beyond, most=1)
    for partition in (0, 1):
        owner.acquire(partition, None)
        owner.mark_ready(partition, 0)
    owner.begin({0: 1})
    owner.committed({0: Learnt(1, 1, 1)})
    publication = owner.begin({1: 1})
    assert publication.delta
    assert publication.delta.spans == {0: (0, 1)}
    transaction = kafka.begin("id", kafka.init("id"))
    positions = learner("a", "id", kafka, Images([]), Counted(), lambda _: 0).positions(publication, {1: 1})
    kafka.commit_positions(transaction, "a", 1, positions)
    kafka.rebalance({"b"}, 2, lambda _: 0)
    assert (kafka.stable_positions([0]) is None) == waits


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug: type[Learner]) -> None:
    assert first_violation(range(800), learner=bug)
