"""Any number of learners, whatever befalls them, come to the sums of one that was never disturbed."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import sums_records
from tests.simulation.arithmetic import Counted, Real
from tests.simulation.bugs import BUGS
from tests.simulation.check import first_violation
from tests.simulation.learner import Learner
from tests.simulation.world import World


@pytest.mark.parametrize("first", range(0, 4000, 500))
def test_every_schedule_comes_to_the_same_sums_and_predicts_each_image_once(first: int) -> None:
    assert first_violation(range(first, first + 500)) is None


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 1 << 20), max_size=400))
def test_so_does_every_schedule_that_hypothesis_thinks_of(choices: list[int]) -> None:
    left, random = iter(choices), Random(0)
    World(lambda n: next(left, random.getrandbits(20)) % n, Counted()).play()


def test_so_do_real_sums_through_the_real_codec_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_records, "PIECE", 60)
    assert first_violation(range(8), Real()) is None


@pytest.mark.parametrize("bug", BUGS)
def test_a_seeded_bug_is_found(bug: type[Learner]) -> None:
    assert first_violation(range(800), learner=bug)
