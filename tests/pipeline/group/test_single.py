"""Shares that need not publish."""

from typing import TypeVar

import pytest

from pipeline.errors import RecoveryError
from pipeline.group.membership import Learnt, PartitionOwner
from pipeline.group.shared import Retraction, Shared
from pipeline.group.single import ServingOwner, SingleOwner
from tests.simulation.arithmetic import Tally

H = TypeVar("H", bound=PartitionOwner[int])


def learn(share: PartitionOwner[int], images: int) -> None:
    """Commit a micro-batch of partition 0."""
    stop = share.positions[0] + images
    assert share.begin({0: stop}, at_rest=True).records == []
    share.committed({0: Learnt(stop, images, images)})


def held(share: H, committed: int | None, first: int = 0) -> H:
    share.set_assignment([0])
    share.mark_ready(0, share.acquire(0, committed, first)[1])
    return share


def test_what_it_keeps_is_all_that_it_has_learnt() -> None:
    me = held(SingleOwner("me", Shared(0, {0: 10}), Tally(10)), 10)
    learn(me, 5)
    kept = me.kept()
    assert (kept.sums, kept.clock, me.reach) == (15, {0: 15}, 15)
    assert me.complete


def test_it_subtracts_a_retraction_once_also_one_of_images_that_it_has_yet_to_learn_again() -> None:
    me = held(SingleOwner("me", Shared(0), Tally(0)), None)
    for position in (1, 2):
        me.read(Retraction("r", {0: 5}, 3), position)
    learn(me, 5)
    assert (me.kept().sums, me.kept().position, me.kept().retracted) == (2, 2, frozenset({"r"}))


def test_positions_that_were_moved_back_are_refused() -> None:
    with pytest.raises(RecoveryError, match="reaches offset 10, but the group stands at 7: positions were moved"):
        held(SingleOwner("me", Shared(0, {0: 10}), Tally(10)), 7)


def test_where_nobody_has_been_work_begins_at_the_first_record_that_is_left() -> None:
    assert held(SingleOwner("me", Shared(0), Tally(0)), None, first=40).positions == {0: 40}


def test_a_frozen_one_goes_where_its_group_stands_and_learns_nothing() -> None:
    me = held(ServingOwner("me", {0: 10}), None)
    learn(me, 5)
    assert me.positions == {0: 15}
    assert held(me, 12).positions == {0: 12}
