"""Owners that need not publish."""

from typing import Any, TypeVar

import pytest

from pipeline.errors import RecoveryError
from pipeline.group.membership import Learnt, PartitionOwner
from pipeline.group.shared import Retraction, Shared
from pipeline.group.single import ServingOwner, SingleOwner
from tests.simulation.arithmetic import Tally

H = TypeVar("H", bound=PartitionOwner[Any, Any])


def learn(owner: PartitionOwner[Any, Any], images: int, tally: Tally | None = None) -> None:
    """Commit a micro-batch of partition 0."""
    stop = owner.positions[0] + images
    assert owner.begin({0: stop}, at_rest=True).records == []
    owner.committed({0: Learnt(stop, images, images)}).apply(tally or Tally(0))


def owned(owner: H, committed: int | None, first: int = 0) -> H:
    owner.set_assignment([0])
    owner.mark_ready(0, owner.acquire(0, committed, first).stop)
    return owner


def single(shared: Shared[int], tally: Tally) -> SingleOwner[int, int]:
    return SingleOwner("me", shared, tally.sums)


def test_what_it_keeps_is_all_that_it_has_learnt() -> None:
    tally = Tally(10)
    me = owned(single(Shared(0, {0: 10}), tally), 10)
    learn(me, 5, tally)
    kept = me.kept()
    assert (kept.sums, kept.clock, me.reach) == (15, {0: 15}, (15, 0))
    assert me.complete


def test_it_subtracts_a_retraction_once_also_one_of_images_that_it_has_yet_to_learn_again() -> None:
    tally = Tally(0)
    me = owned(single(Shared(0), tally), None)
    for position in (1, 2):
        me.read(Retraction("r", {0: 5}, 3), position).apply(tally)
    learn(me, 5, tally)
    assert (me.kept().sums, me.kept().position, me.kept().retracted) == (2, 2, frozenset({"r"}))


def test_positions_that_were_moved_back_are_refused() -> None:
    with pytest.raises(RecoveryError, match="reaches offset 10, but the group stands at 7: positions were moved"):
        owned(single(Shared(0, {0: 10}), Tally(10)), 7)


def test_where_nobody_has_been_work_begins_at_the_first_record_that_is_left() -> None:
    assert owned(single(Shared(0), Tally(0)), None, first=40).positions == {0: 40}


def test_a_frozen_one_goes_where_its_group_stands_and_learns_nothing() -> None:
    me = owned(ServingOwner("me", {0: 10}), None)
    learn(me, 5)
    assert me.positions == {0: 15}
    assert owned(me, 12).positions == {0: 12}
