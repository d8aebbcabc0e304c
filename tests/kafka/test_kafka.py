"""What holds for Kafka beyond the contract: fencing, groups of several, limits, trouble with the network."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource

from pipeline.broker import (
    Broker,
    Consumer,
    Member,
    Message,
    Partition,
    Position,
    Producer,
    Record,
    Topic,
    connect,
)
from pipeline.broker.kafka import KafkaBroker
from pipeline.broker.kafka_producer import KafkaProducer
from pipeline.errors import (
    BrokerBusyError,
    BrokerError,
    FencedError,
    OutcomeUnknownError,
    RecordTooLargeError,
    SettingsError,
    TopicError,
)
from pipeline.settings import Settings, load
from tests.broker.conftest import make_topic
from tests.broker.process import poll
from tests.kafka.server import PASSWORD, USER, Server


@pytest.fixture
def broker(kafka_url: str) -> Iterator[Broker]:
    with closing(connect(kafka_url)) as broker:
        yield broker


@pytest.fixture
def topic(broker: Broker) -> str:
    return make_topic(broker)


def write(broker: Broker, topic: str, numbers: Iterable[int], partition: int = 0) -> None:
    with closing(broker.producer("writer")) as producer, producer.transaction() as transaction:
        transaction.produce(Record(topic, b"%d" % number, partition=partition) for number in numbers)


def everything(broker: Broker, topic: str) -> list[int]:
    return [int(m.value) for part, span in broker.extents(topic).items() for m in broker.read(part, 0, span.end)]


class OopsError(Exception):
    pass


# Transactions


def flush(producer: Producer) -> None:
    """Have everything in the broker's hands, which else is so at the end of a transaction only."""
    assert isinstance(producer, KafkaProducer)
    producer._client.flush()


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


def test_a_transaction_open_for_too_long_is_undone_and_says_so(
    broker: Broker, kafka_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.broker.kafka_producer.TRANSACTION_SECONDS", 1.0)
    producer = broker.producer("slow")
    with ExitStack() as stack:
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


def poll_until(consumer: Consumer, partitions: int) -> list[Message]:
    """Poll until the consumer has so many partitions; what it gave until then: nothing in a poll that changed it."""
    messages: list[Message] = []
    deadline = time.monotonic() + 30
    while len(consumer.assignment) != partitions:
        assert time.monotonic() < deadline
        before = consumer.member, consumer.assignment
        more = consumer.poll(10, 0.1)
        if (consumer.member, consumer.assignment) != before:
            assert more == []
        messages += more
    return messages


def test_two_consumers_share_the_partitions_and_each_notices_what_it_loses(broker: Broker) -> None:
    topic = make_topic(broker, partitions=4)
    group = f"g-{topic}"
    first = broker.consumer(group, topic)
    assert {p.number for p in first.assignment} == {0, 1, 2, 3}
    assert not first.rebalancing
    alone = first.member
    with ThreadPoolExecutor(2) as pool:
        joining = pool.submit(broker.consumer, group, topic)
        poll_until(first, 2)
        second = joining.result()
        while first.member.generation != second.member.generation or first.rebalancing or second.rebalancing:
            for future in [pool.submit(consumer.poll, 1, 0.1) for consumer in (first, second)]:
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


# Topics and sizes


def test_what_exists_keeps_its_configuration(broker: Broker, kafka_url: str) -> None:
    name = f"test-{uuid.uuid4()}"
    broker.ensure_topics([Topic(name, 1, retention_bytes=1 << 30)])
    broker.ensure_topics([Topic(name)])
    admin = KafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    configs = admin.describe_configs([ConfigResource("TOPIC", name)])["topic"][name]
    admin.close()
    assert configs["retention.bytes"]["value"] == str(1 << 30)
    assert configs["segment.bytes"]["value"] == str(1 << 28)
    assert configs["retention.ms"]["value"] == "-1"


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        (Topic("t", 1, retention_records=10), "retention_bytes"),
        (Topic("a b"), "'a b'.*invalid"),
        (Topic("t", 0), "'t'.*artitions"),
    ],
)
def test_topics_that_cannot_be_are_refused(broker: Broker, topic: Topic, expected: str) -> None:
    with pytest.raises(TopicError, match=expected):
        broker.ensure_topics([topic])


def test_more_replicas_than_brokers_are_refused(kafka_url: str) -> None:
    with closing(connect(kafka_url, Settings(replication=3))) as broker, pytest.raises(TopicError, match="only 1 br"):
        broker.ensure_topics([Topic(f"test-{uuid.uuid4()}")])


def test_a_record_larger_than_the_setting_is_refused_before_it_is_sent(kafka_url: str) -> None:
    with closing(connect(kafka_url, Settings(record_bytes=200_000))) as broker:
        topic = make_topic(broker)
        producer = broker.producer("p")
        refused = pytest.raises(RecordTooLargeError, match=rf"{topic}.*200,001 bytes.*record_bytes")
        with refused, producer.transaction() as transaction:
            transaction.produce([Record(topic, b"small"), Record(topic, bytes(200_001))])
        with producer.transaction() as transaction:
            transaction.produce([Record(topic, os.urandom(200_000), headers=(("h", b"x" * 100),))])
        [message] = broker.read(Partition(topic, 0), 0, 9)
        assert len(message.value) == 200_000


def test_a_record_larger_than_the_topic_takes_is_refused_by_the_broker(kafka_url: str) -> None:
    with closing(connect(kafka_url, Settings(record_bytes=1024))) as small, closing(connect(kafka_url)) as large:
        topic = make_topic(small)
        refused = pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes")
        with refused, large.producer("p").transaction() as transaction:
            transaction.produce([Record(topic, os.urandom(1_600_000))])
        assert everything(large, topic) == []


# Reaching a broker


@pytest.mark.parametrize(
    "url",
    ["kafka://", "kafka://host", "kafka://host:x", "kafka://a:1,", "kafka://a:1/t", "kafka:a:1", "kafka://u:p@a:1"],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="kafka://HOST:PORT"):
        connect(url)


def test_a_wrong_address_is_tried_again_and_then_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.broker.kafka_connection.ATTEMPT_SECONDS", 0.3)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"kafka://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BrokerBusyError, match=rf"{url}: no Kafka answered within 2 s .*REFUSED.*check address"):
            KafkaBroker(url, Settings(), patience=2)
    assert "does not answer" in caplog.text
    assert "trying again in 0.5 s" in caplog.text


def test_something_that_is_no_kafka_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"kafka://127.0.0.1:{other.getsockname()[1]}"
        before = threading.active_count()
        with pytest.raises(BrokerBusyError, match=f"{url}: no Kafka answered"):
            KafkaBroker(url, Settings(), patience=1)
        assert threading.active_count() == before


def login(password: str) -> Settings:
    return load({"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_username": USER, "kafka_password": password})


def test_a_login_is_used_everywhere(kafka_server: Server) -> None:
    with closing(connect(kafka_server.login_url, login(PASSWORD))) as broker:
        topic = make_topic(broker)
        write(broker, topic, [1])
        assert [m.value for m in poll(broker.consumer(f"g-{topic}", topic), 1)] == [b"1"]
        assert everything(broker, topic) == [1]


def test_a_refused_login_is_an_error_that_never_shows_the_password(kafka_server: Server) -> None:
    settings = login("looking-glass")
    with pytest.raises(BrokerError, match=r"login was refused.*check user name, password") as caught:
        connect(kafka_server.login_url, settings)
    assert "looking-glass" not in str(caught.value) + repr(settings)


def test_half_a_login_is_refused() -> None:
    with pytest.raises(SettingsError, match="kafka_username and kafka_password"):
        connect("kafka://127.0.0.1:9092", Settings(kafka_security_protocol="SASL_SSL", kafka_username="alice"))


# A broker that dies


def test_a_broker_killed_in_a_transaction_and_back_again_leaves_it_whole_or_undone(own_kafka_server: Server) -> None:
    with closing(connect(own_kafka_server.url)) as broker:
        topic = make_topic(broker)
        partition = Partition(topic, 0)
        producer, member = broker.producer("p"), Member("group")
        with producer.transaction() as transaction:
            transaction.produce([Record(topic, b"1")])
            transaction.commit_offsets(member, {partition: Position(1)})
        outcome: BrokerError | None = None
        try:
            with producer.transaction() as transaction:
                transaction.produce([Record(topic, b"2")])
                own_kafka_server.kill()
                own_kafka_server.start()
                transaction.produce([Record(topic, b"3")])
                transaction.commit_offsets(member, {partition: Position(2)})
        except (BrokerBusyError, FencedError, OutcomeUnknownError) as error:
            outcome = error
        again = broker.producer("p")  # settles what became of it
        happened = broker.committed("group", topic)[partition].offset == 2
        assert everything(broker, topic) == ([1, 2, 3] if happened else [1])
        assert happened or outcome
        assert not (happened and isinstance(outcome, BrokerBusyError | FencedError))
        with again.transaction() as transaction:
            transaction.produce([Record(topic, b"4")])
        assert everything(broker, topic)[-1] == 4


def test_without_a_broker_everything_is_an_error_and_with_it_back_all_goes_on(
    own_kafka_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kafka_producer", "kafka_consumer", "kafka_connection"):
        monkeypatch.setattr(f"pipeline.broker.{module}.ANSWER_SECONDS", 2.0)
    monkeypatch.setattr("pipeline.broker.kafka_producer.ABORT_SECONDS", 0.5)
    monkeypatch.setattr("pipeline.broker.kafka.ATTEMPT_SECONDS", 1.0)
    monkeypatch.setattr("pipeline.broker.kafka_connection.ATTEMPT_SECONDS", 1.0)
    with closing(connect(own_kafka_server.url)) as broker:
        topic = make_topic(broker)
        write(broker, topic, [1])
        consumer, producer = broker.consumer("g", topic), broker.producer("p")
        poll(consumer, 1)
        own_kafka_server.kill()
        with pytest.raises(BrokerBusyError, match=own_kafka_server.url), producer.transaction() as transaction:
            transaction.produce([Record(topic, b"lost")])
        with pytest.raises(BrokerBusyError, match=own_kafka_server.url):
            consumer.lag()
        with pytest.raises(BrokerBusyError, match=own_kafka_server.url):
            broker.producer("p")
        with pytest.raises(BrokerBusyError, match=own_kafka_server.url):
            broker.extents(topic)
        assert consumer.poll(1, 0.2) == []
        own_kafka_server.start()
        write(broker, topic, [2])
        assert everything(broker, topic) == [1, 2]
        assert [m.value for m in poll(consumer, 1)] == [b"2"]
