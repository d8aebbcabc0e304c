"""Topics, sizes, and how a broker is reached or dies."""

import os
import socket
import threading
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, errors
from kafka.admin import ConfigResource

from deploy.local.kafka import PASSWORD, USER, Address, Server
from pipeline.broker import Broker, Member, Partition, Position, Record, Topic, connect
from pipeline.broker.kafka.broker import KafkaBroker
from pipeline.broker.kafka.connection import Connection
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
from tests.kafka.stream import everything, write
from tests.pipeline.broker.conftest import make_topic
from tests.pipeline.broker.process import poll

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
        producer = broker.producer(f"p-{topic}")
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
        with refused, large.producer(f"p-{topic}").transaction() as transaction:
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
    monkeypatch.setattr("pipeline.broker.kafka.connection.ATTEMPT_SECONDS", 0.3)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"kafka://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BrokerBusyError, match=rf"{url}: no Kafka answered within 2 s .*REFUSED.*check address"):
            KafkaBroker(url, Settings(), patience=2)
    assert "does not answer" in caplog.text
    assert "trying again in 0.5 s" in caplog.text


def test_a_partition_that_has_no_leader_for_a_moment_is_asked_about_again() -> None:
    answers = iter([errors.UnknownBrokerIdError(-1), errors.LeaderNotAvailableError()])

    def question() -> int:
        if error := next(answers, None):
            raise error
        return 7

    assert Connection("kafka://127.0.0.1:9", Settings()).ask("offsets", question) == 7


def test_something_that_is_no_kafka_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"kafka://127.0.0.1:{other.getsockname()[1]}"
        before = threading.active_count()
        with pytest.raises(BrokerBusyError, match=f"{url}: no Kafka answered"):
            KafkaBroker(url, Settings(), patience=1)
        assert threading.active_count() == before


def login(password: str) -> Settings:
    return load({"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_username": USER, "kafka_password": password})


def test_a_login_is_used_everywhere(kafka_server: Address) -> None:
    with closing(connect(kafka_server.login_url, login(PASSWORD))) as broker:
        topic = make_topic(broker)
        write(broker, topic, [1])
        assert [m.value for m in poll(broker.consumer(f"g-{topic}", topic), 1)] == [b"1"]
        assert everything(broker, topic) == [1]


def test_a_refused_login_is_an_error_that_never_shows_the_password(kafka_server: Address) -> None:
    settings = login("looking-glass")
    with pytest.raises(BrokerError, match=r"login was refused.*check user name, password") as caught:
        connect(kafka_server.login_url, settings)
    assert "looking-glass" not in str(caught.value) + repr(settings)


def test_half_a_login_is_refused() -> None:
    with pytest.raises(SettingsError, match="kafka_username and kafka_password"):
        connect("kafka://127.0.0.1:9092", Settings(kafka_security_protocol="SASL_SSL", kafka_username="alice"))


def test_a_certificate_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match=r"kafka_ca_file nowhere\.pem: no such file"):
        connect("kafka://127.0.0.1:9092", Settings(kafka_ca_file=Path("nowhere.pem")))


# A broker that dies


@pytest.mark.xdist_group("a broker that may be killed")
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
    for module in ("producer", "consumer", "connection"):
        monkeypatch.setattr(f"pipeline.broker.kafka.{module}.ANSWER_SECONDS", 2.0)
    monkeypatch.setattr("pipeline.broker.kafka.producer.ABORT_SECONDS", 0.5)
    monkeypatch.setattr("pipeline.broker.kafka.connection.ATTEMPT_SECONDS", 1.0)
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
