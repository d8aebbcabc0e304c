"""What holds for Kafka beyond the contract: fencing, groups of several, records that are gone."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.consumer import group

from pipeline.broker import Broker, Consumer, Member, Message, Partition, Position, Record, connect
from pipeline.errors import FencedError, OutcomeUnknownError, TopicError
from pipeline.settings import Settings
from tests.kafka.stream import everything, flush, write
from tests.pipeline.broker.conftest import make_topic
from tests.pipeline.broker.process import poll

pytestmark = pytest.mark.xdist_group("one broker, the same names")


class OopsError(Exception):
    pass


# Transactions


def abort(broker: Broker, topic: str, count: int) -> None:
    def fail() -> None:
        with closing(broker.producer("aborts")) as producer, producer.transaction() as transaction:
            transaction.produce(Record(topic, b"0" * 1000) for _ in range(count))
            flush(producer)
            raise OopsError

    with pytest.raises(OopsError):
        fail()


def test_an_aborted_transaction_is_never_seen_and_only_leaves_a_gap(broker: Broker, topic: str) -> None:
    consumer = broker.consumer(f"g-{topic}", topic)
    write(broker, topic, [1, 2])
    abort(broker, topic, 5)
    write(broker, topic, [3])
    assert everything(broker, topic) == [1, 2, 3]
    messages = poll(consumer, 3)
    assert [int(m.value) for m in messages] == [1, 2, 3]
    assert messages[2].offset - messages[1].offset > 5


def test_reading_ends_where_only_records_of_the_broker_are_left(broker: Broker, topic: str) -> None:
    write(broker, topic, [1])
    abort(broker, topic, 5)
    end = broker.extents(topic)[Partition(topic, 0)].end
    assert end >= 8
    assert [m.value for m in broker.read(Partition(topic, 0), 0, end)] == [b"1"]
    assert list(broker.read(Partition(topic, 0), 1, end)) == []


def test_what_is_aborted_or_taken_by_the_broker_is_no_lag(broker: Broker, topic: str) -> None:
    consumer = broker.consumer(f"g-{topic}", topic)
    write(broker, topic, [1])
    abort(broker, topic, 5)
    assert consumer.lag()[Partition(topic, 0)] >= 8
    poll(consumer, 1)
    assert consumer.poll(1, 0.2) == []
    assert consumer.lag() == {Partition(topic, 0): 0}


def test_a_committed_transaction_can_be_read_at_once(broker: Broker, topic: str) -> None:
    with closing(broker.producer("p")) as producer:
        for number in range(20):
            with producer.transaction() as transaction:
                transaction.produce([Record(topic, b"%d" % number)])
            assert broker.extents(topic)[Partition(topic, 0)].end == 2 * number + 2


def test_a_fenced_producer_does_not_take_its_id_back(broker: Broker, topic: str) -> None:
    old = broker.producer("contested")
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(FencedError, match="'contested'"))
        transaction = stack.enter_context(old.transaction())
        transaction.produce([Record(topic, b"1")])
        flush(old)  # the partition is in its transaction now
        new = broker.producer("contested")
        transaction.produce([Record(topic, b"2")])
    with pytest.raises(FencedError), old.transaction():
        pass
    with new.transaction() as transaction:
        transaction.produce([Record(topic, b"3")])
    assert everything(broker, topic) == [3]


def test_a_transaction_open_for_too_long_is_undone_and_says_so(broker: Broker, kafka_url: str, topic: str) -> None:
    with ExitStack() as stack:
        producer = stack.enter_context(closing(connect(kafka_url, Settings(session_timeout=1)))).producer("slow")
        stack.enter_context(pytest.raises((FencedError, OutcomeUnknownError)))
        stack.enter_context(producer.transaction()).produce([Record(topic, b"1")])
        flush(producer)
        admin = stack.enter_context(KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://")))
        while admin.describe_transactions(["slow"])["slow"].state.value != "CompleteAbort":
            time.sleep(0.05)
    assert everything(broker, topic) == []
    write(broker, topic, [2])
    assert everything(broker, topic) == [2]


# Groups


def commit(broker: Broker, topic: str, member: Member, offset: int) -> None:
    with closing(broker.producer("committer")) as producer, producer.transaction() as transaction:
        transaction.produce([Record(topic, b"0")])
        transaction.commit_offsets(member, {Partition(topic, 0): Position(offset)})


def test_a_member_of_a_generation_gone_by_cannot_commit(broker: Broker, topic: str) -> None:
    group = f"g-{topic}"
    old = broker.consumer(group, topic)
    commit(broker, topic, old.member, 1)
    old.close()
    new = broker.consumer(group, topic)
    with pytest.raises(FencedError, match="start anew"):
        commit(broker, topic, old.member, 2)
    assert everything(broker, topic) == [0]
    assert broker.committed(group, topic) == {Partition(topic, 0): Position(1)}
    commit(broker, topic, new.member, 3)
    assert broker.committed(group, topic) == {Partition(topic, 0): Position(3)}


def test_positions_without_a_membership_can_be_committed(broker: Broker, topic: str) -> None:
    commit(broker, topic, Member(f"replay-{topic}"), 7)
    assert broker.committed(f"replay-{topic}", topic) == {Partition(topic, 0): Position(7)}


def poll_once(consumer: Consumer) -> list[Message]:
    """What a poll gave: nothing, if it changed what the consumer has."""
    before = consumer.member, consumer.assignment
    messages = consumer.poll(10, 0.1)
    if (consumer.member, consumer.assignment) != before:
        assert messages == []
    return messages


def poll_until(consumer: Consumer, partitions: int) -> None:
    """Poll until the consumer has so many partitions."""
    deadline = time.monotonic() + 30
    while len(consumer.assignment) != partitions:
        assert time.monotonic() < deadline
        poll_once(consumer)


def test_two_consumers_share_the_partitions_and_each_notices_what_it_loses(broker: Broker) -> None:
    topic = make_topic(broker, partitions=4)
    group = f"g-{topic}"
    first = broker.consumer(group, topic)
    assert {p.number for p in first.assignment} == {0, 1, 2, 3}
    assert not first.rebalancing
    alone = first.member
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(2) as pool:
        joining = pool.submit(broker.consumer, group, topic)
        while not joining.done():
            assert poll_once(first) == []
        second = joining.result()
        while (
            [len(consumer.assignment) for consumer in (first, second)] != [2, 2]
            or first.member.generation != second.member.generation
            or first.rebalancing
            or second.rebalancing
        ):
            assert time.monotonic() < deadline
            for future in [pool.submit(poll_once, consumer) for consumer in (first, second)]:
                assert future.result() == []
    assert first.member != alone
    assert first.assignment | second.assignment == {Partition(topic, n) for n in range(4)}
    assert not first.assignment & second.assignment
    for number in range(4):
        write(broker, topic, range(100), number)
    for consumer in (first, second):
        read = [(m.partition, int(m.value)) for m in poll(consumer, 200)]
        wanted = [(p.number, n) for p in consumer.assignment for n in range(100)]
        assert sorted(read) == sorted(wanted)
    with pytest.raises(FencedError):
        commit(broker, topic, alone, 1)
    commit(broker, topic, first.member, 1)
    second.close()
    poll_until(first, 4)


def test_a_coming_change_of_the_group_is_known_before_the_poll_that_makes_it(broker: Broker) -> None:
    topic = make_topic(broker, partitions=2)
    first = broker.consumer(f"g-{topic}", topic)
    member = first.member
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(broker.consumer, f"g-{topic}", topic)
        deadline = time.monotonic() + 10
        while not first.rebalancing:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert first.member == member
        commit(broker, topic, member, 1)
        poll_until(first, 1)
        joining.result()


# Records that are gone


def remove(url: str, topic: str, partition: int, before: int) -> None:
    """Remove the oldest records, as retention does."""
    admin = KafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://"))
    admin.delete_records({TopicPartition(topic, partition): before})
    admin.close()


def test_a_position_whose_records_are_gone_is_refused_with_the_offsets(broker: Broker, kafka_url: str) -> None:
    topic = make_topic(broker, partitions=2)
    write(broker, topic, range(100), 0)
    write(broker, topic, range(5), 1)
    group = f"g-{topic}"
    commit(broker, topic, Member(group), 3)
    remove(kafka_url, topic, 0, 60)
    consumer = broker.consumer(group, topic)
    others: list[Message] = []

    def read_on() -> None:
        while True:
            others.extend(consumer.poll(10, 5.0))

    with pytest.raises(TopicError, match=rf"{topic}', partition 0: position 3 is gone, .* kept is 60 and"):
        read_on()
    consumer.seek(Partition(topic, 0), 60)
    found = [(m.partition, int(m.value)) for m in others + poll(consumer, 46 - len(others))]
    assert sorted(found) == [(0, 0), *((0, n) for n in range(60, 100)), *((1, n) for n in range(5))]
    assert poll(broker.consumer(f"new-{topic}", topic), 1)[0].offset in (0, 60)
    assert broker.extents(topic)[Partition(topic, 0)].first == 60
    assert next(broker.read(Partition(topic, 0), 0, 100)).offset == 60


def test_a_reader_never_sleeps_while_there_are_records(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(topic, os.urandom(800)) for _ in range(10_000)]
    with closing(broker.producer("much")) as producer, producer.transaction() as transaction:
        transaction.produce(records)
    slept: list[float] = []
    for turn in range(4):
        with closing(broker.consumer(f"g{turn}-{topic}", topic)) as consumer:
            values = [message.value for message in poll(consumer, 1)]
            with monkeypatch.context() as patch:
                patch.setattr(group, "time", SimpleNamespace(**{**vars(time), "sleep": slept.append}))
                while len(values) < len(records):
                    values += [message.value for message in consumer.poll(256, 30)]
        assert values == [record.value for record in records]
    assert slept == []


def test_a_position_past_the_end_is_refused_and_not_moved(broker: Broker, topic: str) -> None:
    write(broker, topic, [1, 2])
    commit(broker, topic, Member(f"g-{topic}"), 1000)
    with pytest.raises(TopicError, match="position 1000 is gone"):
        broker.consumer(f"g-{topic}", topic).poll(10, 10.0)


def test_a_reader_that_retention_overtakes_is_told_so(broker: Broker, kafka_url: str, topic: str) -> None:
    for _ in range(4):
        with closing(broker.producer("writer")) as producer, producer.transaction() as transaction:
            transaction.produce(Record(topic, os.urandom(320_000)) for _ in range(10))
    end = broker.extents(topic)[Partition(topic, 0)].end
    messages = broker.read(Partition(topic, 0), 0, end)
    next(messages)
    remove(kafka_url, topic, 0, end - 2)
    with pytest.raises(TopicError, match="gone"):
        list(messages)
