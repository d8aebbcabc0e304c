"""What one learner publishes and when; what befalls groups of them is in tests/simulation."""

import pytest

from pipeline.errors import FencedError, OutOfStepError
from pipeline.group.membership import Learnt
from pipeline.group.publishing import LONG_DELTA, MOST_UNPUBLISHED, PublishingOwner
from pipeline.group.shared import Delta, Retraction, Shared
from tests.simulation.arithmetic import Tally


def owner(shared: Shared[int] | None = None, most: int = 10_000) -> PublishingOwner[int, int]:
    """One that owns partition 0, where nothing was learnt yet."""
    found = PublishingOwner[int, int]("me", shared or Shared(0), lambda _, updates: sum(updates), most=most)
    found.mark_ready(0, found.acquire(0, None).stop)
    return found


def learn(me: PublishingOwner[int, int], images: int = 1, new_class: bool = False) -> Delta[int] | None:
    """Commit a micro-batch; what was published with it has come back."""
    stop = me.positions[0] + images
    publication = me.begin({0: stop})
    me.committed({0: Learnt(stop, images, images, new_class)})
    for record in publication.records:
        me.read(record, 1)
    return publication.delta


def test_it_publishes_after_an_eighth_more_images_and_later_after_half_as_many_again() -> None:
    me = owner()
    assert [n for n in range(1, 20) if learn(me)] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18]
    for _ in range(20, 5000):
        learn(me)
    assert [n for n in range(5000, 12_000) if learn(me)] == [7110, 10_665]


def test_small_micro_batches_at_first_do_not_make_it_publish_more_rarely_later() -> None:
    me = owner()
    for _ in range(20):
        learn(me, 8)
    assert [n for n in range(16) if learn(me, 256)] == [*range(9), 13]


def test_a_new_class_is_published_soon() -> None:
    me = owner()
    for _ in range(5000):
        learn(me)
    assert not any(learn(me) for _ in range(100))
    assert not learn(me, new_class=True)
    assert learn(me)


def test_it_publishes_every_so_many_images() -> None:
    me = owner(most=300)
    for _ in range(95):
        learn(me, 50)
    spans = [delta.spans[0] for _ in range(40) if (delta := learn(me, 50))]
    assert {stop - start for start, stop in spans[1:]} == {300}


def test_a_delta_ends_where_the_group_stood_before_the_micro_batch_that_it_goes_out_with() -> None:
    me = owner()
    learn(me, 5)
    delta = learn(me, 7)
    assert delta
    assert (delta.spans, delta.sums) == ({0: (0, 5)}, 5)


def test_a_checkpoint_is_due_after_what_it_takes_long_to_read() -> None:
    me = PublishingOwner[int, int]("me", Shared(0), Tally(0).beyond, most=10_000, checkpoint_images=2 * LONG_DELTA)
    me.mark_ready(0, me.acquire(0, None).stop)
    due = []
    for number, images in enumerate((30_000, 1, 900, 60)):
        me.read(Delta("other", {1: (number, number + 1)}, 1, images), number + 1)
        due.append(me.begin({}).checkpoint is not None)
        me.aborted()
    assert due == [False, False, False, True]


def test_the_positions_of_all_that_is_published_are_committed_with_it() -> None:
    me = PublishingOwner[int, int]("me", Shared(0), Tally(0).beyond, most=10_000)
    for partition in (0, 1, 2):
        me.acquire(partition, None)
        me.mark_ready(partition, 0)
    assert me.begin({0: 4}).positions == {0: 4}
    me.committed({0: Learnt(4, 4, 4)})
    publication = me.begin({1: 7})
    assert publication.delta
    assert publication.positions == {0: 4, 1: 7}
    me.committed({1: Learnt(7, 7, 7)})
    assert me.begin({}, at_rest=True).positions == {0: 4, 1: 7, 2: 0}


def test_it_publishes_nothing_more_before_its_own_has_come_back() -> None:
    me = owner(most=1)
    learn(me, 5)
    delta = me.begin({0: 6}).delta
    me.committed({0: Learnt(6, 1, 1)})
    assert delta
    assert me.begin({}, at_rest=True).records == []
    me.aborted()
    assert not me.complete
    me.read(delta, 1)
    again = me.begin({}, at_rest=True).delta
    assert again
    assert again.spans == {0: (5, 6)}


def test_it_is_full_when_it_has_learnt_as_much_as_a_delta_may_hold() -> None:
    me = owner()
    me.begin({0: MOST_UNPUBLISHED})
    me.committed({0: Learnt(MOST_UNPUBLISHED, 1, MOST_UNPUBLISHED)})
    assert me.full


def test_a_partition_whose_sums_reach_past_the_position_is_somebody_elses() -> None:
    me = owner(Shared(0, {0: 5}))
    with pytest.raises(FencedError, match="partition 0: the sums reach 5, past the group's position 4"):
        me.acquire(0, 4)


def test_a_partition_that_was_not_taken_over_cannot_be_committed() -> None:
    me = owner()
    with pytest.raises(FencedError, match="partitions \\[3\\] are not owned by me"):
        me.begin({3: 1})
    me.set_assignment([0])
    with pytest.raises(FencedError, match="partitions \\[0\\]"):
        me.begin({})


def test_it_does_not_read_while_a_transaction_is_open() -> None:
    me = owner()
    me.begin({})
    with pytest.raises(ValueError, match="end the open transaction"):
        me.read(Delta("other", {1: (0, 1)}, 1, 1), 1)


@pytest.mark.parametrize("span", [(3, 9), (6, 9)])
def test_a_delta_that_neither_begins_at_the_clock_nor_ends_before_it_is_out_of_step(span: tuple[int, int]) -> None:
    with pytest.raises(OutOfStepError, match=f"partition 0 from {span[0]} to 9, but the sums reach {{0: 5}}"):
        owner(Shared(0, {0: 5})).read(Delta("other", {0: span}, 1, 1), 1)


def test_a_retraction_of_images_that_are_not_published_is_out_of_step() -> None:
    with pytest.raises(OutOfStepError, match="retraction r"):
        owner(Shared(0, {0: 5})).read(Retraction("r", {0: 6}, 1), 1)
