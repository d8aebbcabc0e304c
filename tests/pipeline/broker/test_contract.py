"""What every broker must do. Nothing here but the protocol, so that it holds for each of them."""

import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.broker import Broker, Extent, Headers, Message, Partition, Position, Record, Tail, Topic, connect
from pipeline.errors import FencedError, RecordTooLargeError, TopicError
from tests.pipeline.broker.conftest import make_topic
from tests.pipeline.broker.process import child, poll

pytestmark = pytest.mark.xdist_group("one broker, the same names")


def write(broker: Broker, records: Iterable[Record], name: str = "writer") -> None:
    producer = broker.producer(name)
    with producer.transaction() as transaction:
        transaction.produce(records)
    producer.close()


def numbered(topic: str, numbers: Iterable[int], partition: int = 0) -> list[Record]:
    return [Record(topic, b"%d" % number, partition=partition) for number in numbers]


def everything(broker: Broker, topic: str) -> list[Message]:
    return [
        message
        for partition, extent in broker.extents(topic).items()
        for message in broker.read(partition, extent.first, extent.end)
    ]


def values(messages: Iterable[Message]) -> list[int]:
    return [int(message.value) for message in messages]


class OopsError(Exception):
    pass


# Topics


def test_a_new_topic_is_empty(broker: Broker) -> None:
    topic = make_topic(broker, partitions=2)
    assert broker.extents(topic) == {Partition(topic, 0): Extent(0, 0), Partition(topic, 1): Extent(0, 0)}
    assert everything(broker, topic) == []


def test_ensuring_a_topic_again_keeps_its_records_and_its_id(broker: Broker, url: str, topic: str) -> None:
    topic_id = broker.topic_id(topic)
    write(broker, numbered(topic, range(3)))
    other = connect(url)
    other.ensure_topics([Topic(topic)])
    assert other.topic_id(topic) == topic_id
    assert values(everything(other, topic)) == [0, 1, 2]
    other.close()


def test_topics_have_different_ids(broker: Broker) -> None:
    assert broker.topic_id(make_topic(broker)) != broker.topic_id(make_topic(broker))


def test_another_number_of_partitions_is_refused_with_both_numbers(broker: Broker) -> None:
    topic = make_topic(broker, partitions=3)
    with pytest.raises(TopicError, match=r"has 3 partitions, not 5"):
        broker.ensure_topics([Topic(topic, 5)])


def test_an_unknown_topic_is_refused_by_name(broker: Broker) -> None:
    producer = broker.producer("p")
    with pytest.raises(TopicError, match="'nowhere'"):
        broker.topic_id("nowhere")
    with pytest.raises(TopicError, match="'nowhere'"):
        broker.extents("nowhere")
    with pytest.raises(TopicError, match="'nowhere'"):
        broker.consumer("g", "nowhere")
    with pytest.raises(TopicError, match="'nowhere'"):
        list(broker.read(Partition("nowhere", 0), 0, 1))
    with pytest.raises(TopicError, match="'nowhere'"), producer.transaction() as transaction:
        transaction.produce([Record("nowhere", b"")])


def test_an_unknown_partition_is_refused(broker: Broker, topic: str) -> None:
    with pytest.raises(TopicError, match="no partition 1"):
        write(broker, numbered(topic, [1], partition=1))
    with pytest.raises(TopicError, match="no partition 1"):
        list(broker.read(Partition(topic, 1), 0, 1))


# Records

record_parts = st.tuples(
    st.binary(max_size=2000),
    st.none() | st.binary(max_size=50),
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=100)), max_size=10).map(tuple),
)


@given(st.lists(record_parts, min_size=1, max_size=20))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_is_read(
    broker: Broker, topic: str, parts: list[tuple[bytes, bytes | None, Headers]]
) -> None:
    start = broker.extents(topic)[Partition(topic, 0)].end
    write(broker, [Record(topic, value, key, headers) for value, key, headers in parts])
    read = list(broker.read(Partition(topic, 0), start, start + len(parts)))
    assert [(m.value, m.key, m.headers) for m in read] == parts


def test_offsets_increase_from_0_and_messages_say_where_they_are(broker: Broker, topic: str) -> None:
    before = time.time_ns() // 1_000_000
    write(broker, numbered(topic, range(200)))
    write(broker, numbered(topic, range(200, 300)))
    messages = everything(broker, topic)
    assert [(m.topic, m.partition, int(m.value)) for m in messages] == [(topic, 0, i) for i in range(300)]
    assert all(before <= m.timestamp <= time.time_ns() // 1_000_000 for m in messages)
    offsets = [m.offset for m in messages]
    assert offsets == sorted(set(offsets))
    assert offsets[:200] == list(range(200))
    extent = broker.extents(topic)[Partition(topic, 0)]
    assert extent.first == 0
    assert extent.end in (offsets[-1] + 1, offsets[-1] + 2)  # a broker may end a transaction with one of its own


def test_a_key_always_goes_to_the_same_partition_and_keys_spread(broker: Broker) -> None:
    topic = make_topic(broker, partitions=4)
    for _ in range(2):
        write(broker, [Record(topic, b"", key=b"key %d" % i) for i in range(100)])
    places: dict[bytes | None, set[int]] = {}
    for message in everything(broker, topic):
        places.setdefault(message.key, set()).add(message.partition)
    assert len(places) == 100
    assert all(len(place) == 1 for place in places.values())
    assert set.union(*places.values()) == {0, 1, 2, 3}


def test_a_partition_wins_over_the_key_and_neither_means_partition_0(broker: Broker) -> None:
    topic = make_topic(broker, partitions=4)
    write(broker, [Record(topic, b"", key=b"k%d" % i, partition=2) for i in range(20)])
    write(broker, [Record(topic, b"")] * 5)
    assert Counter(message.partition for message in everything(broker, topic)) == {0: 5, 2: 20}


def test_read_gives_exactly_the_range_asked_for(broker: Broker, topic: str) -> None:
    write(broker, numbered(topic, range(150)))
    partition = Partition(topic, 0)
    assert values(broker.read(partition, 3, 140)) == list(range(3, 140))
    assert values(broker.read(partition, 149, 1000)) == [149]
    assert values(broker.read(partition, 5, 5)) == []
    assert values(broker.read(partition, 150, 160)) == []


def test_a_record_of_12_mb_is_taken_and_one_of_100_mb_is_refused(broker: Broker, topic: str) -> None:
    large = os.urandom(12 << 20)
    write(broker, [Record(topic, large)])
    with pytest.raises(RecordTooLargeError, match=topic):
        write(broker, [Record(topic, bytes(100 << 20))])
    assert [message.value for message in everything(broker, topic)] == [large]


# Transactions


def test_a_transaction_writes_records_and_positions_together(broker: Broker, topic: str) -> None:
    other = make_topic(broker, partitions=2)
    consumer, producer = broker.consumer("g", topic), broker.producer("p")
    with producer.transaction() as transaction:
        transaction.produce(numbered(topic, range(3)))
        transaction.produce(numbered(other, range(2), partition=1))
        transaction.commit_offsets(consumer.member, {Partition(topic, 0): Position(7, "a note: é")})
        assert everything(broker, topic) == everything(broker, other) == []
        assert broker.committed("g", topic) == {}
    assert values(everything(broker, topic)) == [0, 1, 2]
    assert [(m.partition, int(m.value)) for m in everything(broker, other)] == [(1, 0), (1, 1)]
    assert broker.committed("g", topic) == {Partition(topic, 0): Position(7, "a note: é")}
    assert broker.committed("g", topic, [0]) == broker.committed("g", topic)
    assert broker.committed("another group", topic) == broker.committed("g", other) == broker.committed("g", topic, [])
    assert broker.committed("g", other) == {}


def test_a_transaction_that_raises_writes_nothing_and_the_next_one_works(broker: Broker, topic: str) -> None:
    consumer, producer = broker.consumer("g", topic), broker.producer("p")

    def fail() -> None:
        with producer.transaction() as transaction:
            transaction.produce(numbered(topic, range(3)))
            transaction.commit_offsets(consumer.member, {Partition(topic, 0): Position(3)})
            raise OopsError

    with pytest.raises(OopsError):
        fail()
    assert broker.committed("g", topic) == {}
    with producer.transaction() as transaction:
        transaction.produce(numbered(topic, [5]))
    assert values(everything(broker, topic)) == [5]


def test_a_newer_producer_fences_an_older_one_which_then_writes_nothing(broker: Broker, url: str, topic: str) -> None:
    old, bystander = broker.producer("p"), broker.producer("q")
    other = connect(url)
    new = other.producer("p")
    with pytest.raises(FencedError, match="'p'"), old.transaction() as transaction:
        transaction.produce(numbered(topic, [1]))
    for producer, number in ((new, 2), (bystander, 3)):
        with producer.transaction() as transaction:
            transaction.produce(numbered(topic, [number]))
    assert values(everything(broker, topic)) == [2, 3]
    other.close()


def test_two_processes_write_to_one_partition_without_loss_and_each_in_order(
    broker: Broker, url: str, topic: str
) -> None:
    with child(url, "produce", topic, "a", 50, 7) as a, child(url, "produce", topic, "b", 50, 7) as b:
        for each in (a, b):
            each.hear()
        for each in (a, b):
            each.tell()
        assert (a.process.wait(30), b.process.wait(30)) == (0, 0)
    messages = [message.value.decode().split() for message in everything(broker, topic)]
    for name in "ab":
        assert [int(number) for who, number in messages if who == name] == list(range(350))


# Reading on


def read_to(tail: Tail, end: int) -> list[int]:
    """Everything up to ``end``."""
    messages: list[Message] = []
    deadline = time.monotonic() + 30
    while tail.position < end:
        assert time.monotonic() < deadline
        messages += tail.poll(0.1)
    return values(messages)


def test_a_tail_reads_on_and_says_how_far_it_came(broker: Broker, topic: str) -> None:
    partition = Partition(topic, 0)
    write(broker, numbered(topic, range(10)))
    with closing(broker.tail(partition, 4)) as tail:
        assert tail.position == 4
        assert read_to(tail, broker.end(partition)) == [4, 5, 6, 7, 8, 9]
        assert tail.poll(0.0) == []
        write(broker, numbered(topic, [10]))
        assert read_to(tail, broker.end(partition)) == [10]
        assert tail.position == broker.end(partition)


def test_a_tail_passes_what_was_aborted_and_stops_at_what_is_open(broker: Broker, topic: str) -> None:
    partition = Partition(topic, 0)
    producer = broker.producer("p")

    def fail() -> None:
        with producer.transaction() as transaction:
            transaction.produce(numbered(topic, range(3)))
            raise OopsError

    with pytest.raises(OopsError):
        fail()
    with closing(broker.tail(partition, 0)) as tail:
        with producer.transaction() as transaction:
            transaction.produce(numbered(topic, [5]))
            assert tail.poll(0.5) == []
        assert read_to(tail, broker.end(partition)) == [5]


def test_the_end_is_never_before_that_of_what_is_committed(broker: Broker, topic: str) -> None:
    partition = Partition(topic, 0)
    assert broker.end(partition) == 0
    with broker.producer("p").transaction() as transaction:
        transaction.produce(numbered(topic, range(3)))
        assert broker.end(partition) >= broker.extents(topic)[partition].end == 0
    assert broker.end(partition) == broker.extents(topic)[partition].end >= 3


def test_what_is_deleted_is_gone_and_the_rest_keeps_its_offsets(broker: Broker, topic: str) -> None:
    partition = Partition(topic, 0)
    for number in range(5):
        write(broker, numbered(topic, [number]))
    messages = everything(broker, topic)
    broker.delete_before(partition, messages[3].offset)
    assert broker.extents(topic)[partition].first == messages[3].offset
    assert everything(broker, topic) == messages[3:]
    with closing(broker.tail(partition, 0)) as tail, pytest.raises(TopicError, match="position 0 is gone"):
        read_to(tail, messages[3].offset)
    broker.delete_before(partition, broker.end(partition))
    write(broker, numbered(topic, [5]))
    assert everything(broker, topic)[-1].offset > messages[4].offset


# Consumers


def test_a_consumer_reads_from_the_first_record_on_and_then_nothing(broker: Broker, topic: str) -> None:
    write(broker, numbered(topic, range(10)))
    consumer = broker.consumer("g", topic)
    assert consumer.assignment == {Partition(topic, 0)}
    assert consumer.member.group == "g"
    assert values(poll(consumer, 4)) == [0, 1, 2, 3]
    assert values(poll(consumer, 6)) == [4, 5, 6, 7, 8, 9]
    assert consumer.poll(10, 0.05) == []
    write(broker, numbered(topic, [10]))
    assert values(poll(consumer, 1)) == [10]


def test_poll_gives_no_more_than_asked_and_does_not_wait_for_that_many(broker: Broker, topic: str) -> None:
    write(broker, numbered(topic, range(10)))
    consumer = broker.consumer("g", topic)
    assert len(consumer.poll(3, 10.0)) <= 3
    started = time.monotonic()
    assert 1 <= len(consumer.poll(1000, 60.0)) <= 9
    assert time.monotonic() - started < 30


def test_a_consumer_goes_on_at_the_committed_position_not_where_it_had_read_to(broker: Broker, topic: str) -> None:
    write(broker, numbered(topic, range(10)))
    consumer, producer = broker.consumer("g", topic), broker.producer("p")
    poll(consumer, 8)
    with producer.transaction() as transaction:
        transaction.commit_offsets(consumer.member, {Partition(topic, 0): Position(5)})
    consumer.close()
    assert values(poll(broker.consumer("g", topic), 5)) == [5, 6, 7, 8, 9]
    assert values(poll(broker.consumer("h", topic), 1)) == [0]


def test_seek_goes_anywhere(broker: Broker, topic: str) -> None:
    write(broker, numbered(topic, range(10)))
    consumer = broker.consumer("g", topic)
    poll(consumer, 8)
    consumer.seek(Partition(topic, 0), 2)
    assert values(poll(consumer, 8)) == [2, 3, 4, 5, 6, 7, 8, 9]
    consumer.seek(Partition(topic, 0), 0)
    assert values(poll(consumer, 1)) == [0]


def test_lag_counts_what_this_consumer_was_not_given(broker: Broker) -> None:
    topic = make_topic(broker, partitions=2)
    one, two = Partition(topic, 0), Partition(topic, 1)
    consumer = broker.consumer("g", topic)
    assert consumer.lag() == {one: 0, two: 0}
    write(broker, numbered(topic, range(10), partition=1))
    lag = consumer.lag()[two]
    assert lag in (10, 11)  # a broker may end a transaction with a record of its own
    poll(consumer, 4)
    assert consumer.lag() == {one: 0, two: lag - 4}
    consumer.seek(two, 9)
    assert consumer.lag() == {one: 0, two: lag - 9}


def test_no_partition_is_starved_and_each_stays_in_order(broker: Broker) -> None:
    topic = make_topic(broker, partitions=3)
    for number in range(3):
        padding = [os.urandom(25_000) for _ in range(100)]
        write(broker, [Record(topic, b"%d" % i, key, partition=number) for i, key in enumerate(padding)])
    consumer = broker.consumer("g", topic)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for turn in range(30):
        for message in poll(consumer, 10):
            seen[message.partition].append(int(message.value))
        if turn == 8:
            assert all(seen.values())
    assert seen == {number: list(range(100)) for number in range(3)}


def test_poll_returns_nothing_at_its_timeout(broker: Broker, topic: str) -> None:
    consumer = broker.consumer("g", topic)
    started = time.monotonic()
    assert consumer.poll(10, 0.1) == []
    assert 0.09 <= time.monotonic() - started < 5


def test_a_commit_of_another_process_wakes_a_waiting_poll(broker: Broker, url: str, topic: str) -> None:
    consumer = broker.consumer("g", topic)
    with child(url, "echo", topic) as other:
        other.hear()
        other.tell()
        started = time.monotonic()
        for number in range(10):
            other.tell(str(number))
            assert values(poll(consumer, 1)) == [number]
        assert time.monotonic() - started < 5  # a poll that looks once a second would take 10


def test_a_process_killed_inside_a_transaction_leaves_the_state_of_its_last_commit(
    broker: Broker, url: str, topic: str
) -> None:
    targets = [make_topic(broker), make_topic(broker)]
    write(broker, numbered(topic, range(40)))
    with child(url, "copy", "g", topic, *targets) as other:
        other.hear()
        other.process.kill()
    broker.producer("copy")  # settles what became of the last transaction, so that nobody has to wait for that
    assert broker.committed("g", topic) == {Partition(topic, 0): Position(10, "turn 0")}
    for target in targets:
        assert values(everything(broker, target)) == list(range(10))
    assert values(poll(broker.consumer("g", topic), 5)) == [10, 11, 12, 13, 14]


def test_a_process_killed_while_it_commits_leaves_whole_transactions_only(broker: Broker, url: str) -> None:
    topics = [make_topic(broker), make_topic(broker)]
    for kill in range(3):
        with child(url, "count", *topics) as other:
            for _ in range(5 + 7 * kill):
                other.hear()
            other.process.kill()
        broker.producer("count")
        first, second = [len(everything(broker, topic)) for topic in topics]
        assert first == second
        assert first >= 5 + 7 * kill


def test_closing_twice_is_fine(broker: Broker, topic: str) -> None:
    producer, consumer = broker.producer("p"), broker.consumer("g", topic)
    for _ in range(2):
        producer.close()
        consumer.close()
    broker.close()
    broker.close()
