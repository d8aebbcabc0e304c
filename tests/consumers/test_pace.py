"""How much a learner takes at once, when it reads and when it publishes, on a clock of the test's own."""

import pytest

from consumers.pace import (
    DELETE_SECONDS,
    FIRST_LIMIT,
    PUBLISH_SECONDS,
    RARELY_SECONDS,
    READ_SECONDS,
    READING_TIMES,
    Deletion,
    Pace,
    batch_limit,
)


@pytest.mark.parametrize(("learners", "part"), [(1, 2), (2, 5), (4, 6.5), (8, 7.25)])
def test_a_group_takes_a_part_of_what_it_knows_at_once_until_micro_batches_are_full(learners: int, part: float) -> None:
    def together(known: int) -> int:
        return learners * batch_limit(256, known, 1 / learners)

    assert together(0) == FIRST_LIMIT
    for known in (500, 1000, 2000):
        assert known / part <= together(known) < known / part + learners or together(known) == learners * 256
    assert together(1_000_000) == learners * 256


def test_whoever_has_no_partition_still_asks_for_one_record() -> None:
    assert batch_limit(256, 0, 0.0) == 1


def test_a_batch_size_of_one_stays() -> None:
    assert batch_limit(1, 0, 1.0) == 1


def test_it_reads_now_and_then() -> None:
    pace = Pace(100.0)
    assert not pace.is_time_to_read(100.0 + 0.9 * READ_SECONDS)
    assert pace.is_time_to_read(100.0 + READ_SECONDS)
    pace.read(101.0, 109.0)
    assert pace.is_time_to_read(109.0)
    assert not pace.is_time_to_read(101.0 + 0.9 * READ_SECONDS)


def test_it_publishes_now_and_then() -> None:
    pace = Pace(100.0)
    assert not pace.is_time_to_publish(99.0 + PUBLISH_SECONDS)
    assert pace.is_time_to_publish(101.0 + PUBLISH_SECONDS)
    pace.published(200.0)
    assert not pace.is_time_to_publish(199.0 + PUBLISH_SECONDS)
    assert pace.is_time_to_publish(201.0 + PUBLISH_SECONDS)


def test_where_reading_takes_long_it_publishes_more_rarely() -> None:
    pace, reading = Pace(0.0), PUBLISH_SECONDS / 2
    pace.read(1.0, 1.0 + reading)
    pace.read(20.0, 20.0 + reading)
    assert not pace.is_time_to_publish(2 * reading * READING_TIMES - 1.0)
    assert pace.is_time_to_publish(2 * reading * READING_TIMES + 1.0)
    pace.published(100.0)
    assert pace.is_time_to_publish(101.0 + PUBLISH_SECONDS)


def test_however_long_reading_takes_it_publishes_at_last() -> None:
    pace = Pace(0.0)
    for second in range(int(RARELY_SECONDS)):
        assert not pace.is_time_to_publish(second) or second > PUBLISH_SECONDS
        pace.read(second, second + 0.9)
    assert not pace.is_time_to_publish(RARELY_SECONDS - 1.0)
    assert pace.is_time_to_publish(RARELY_SECONDS + 1.0)


def test_what_a_base_covers_is_deleted_when_all_had_the_time_to_read_it() -> None:
    deletion = Deletion()
    assert deletion.due(0, 0.0) is None
    assert deletion.due(7, 100.0) is None
    assert deletion.due(9, 99.0 + DELETE_SECONDS) is None
    assert deletion.due(9, 101.0 + DELETE_SECONDS) == 7  # however many bases come meanwhile
    assert deletion.due(9, 100.0 + 2 * DELETE_SECONDS) is None
    assert deletion.due(9, 102.0 + 2 * DELETE_SECONDS) == 9
    assert deletion.due(9, 1000.0) is None
