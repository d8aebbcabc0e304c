"""What is patched in the Kafka client, where only a broker shows that the client still needs it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.consumer.fetcher import Fetcher
from kafka.structs import MemberState

from deploy.local.kafka import USER, Address
from pipeline.broker import Broker, Producer, Record
from pipeline.broker.kafka import patches
from pipeline.broker.kafka.connection import Connection
from pipeline.broker.kafka.consumer import READING
from pipeline.errors import FencedError, OutcomeUnknownError
from pipeline.settings import Settings
from tests.kafka.stream import everything, flush, write
from tests.pipeline.broker.conftest import make_topic


def client(url: str, kind: Any, **configs: object) -> Any:
    """A client of the library, connected."""
    return Connection(url, Settings()).make(kind, 30.0, **configs)


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_refused_login_is_told_to_the_log_and_raises_a_time_out(kafka_server: Address) -> None:
    patches.failures.refused = ""
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": USER}
    address = kafka_server.login_url.removeprefix("kafka://")
    with pytest.raises(errors.KafkaTimeoutError) as caught:
        patches.make_client(
            KafkaAdminClient,
            bootstrap_servers=address,
            bootstrap_timeout_ms=1000,
            **login,
            sasl_plain_password="looking-glass",
        )
    assert "Authentication" not in str(caught.value)
    assert "Authentication" in patches.failures.refused


# The consumer


def test_the_public_state_of_a_member_does_not_tell_that_its_group_is_about_to_rebalance(broker: Broker) -> None:
    topic = make_topic(broker, partitions=2)
    first: Any = broker.consumer(f"g-{topic}", topic)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(broker.consumer, f"g-{topic}", topic)
        until(lambda: patches.is_rebalancing(first._client))
        assert first._client.group_metadata().state is MemberState.STABLE
        while not joining.done():
            first.poll(1, 0.1)


def fetch_when_an_answer_comes(fetch: Callable[..., tuple[Any, bool]], fetcher: Any) -> tuple[Any, bool]:
    """What the library finds where an answer comes right after it looked for one."""
    look = fetcher.fetched_records

    def look_too_early(*_arguments: object, **_named: object) -> tuple[dict[TopicPartition, list[Any]], bool]:
        fetcher.fetched_records = look
        until(lambda: fetcher._completed_fetches)
        return {}, False

    fetcher.fetched_records = look_too_early
    return fetch(fetcher, 10, timeout_ms=0)


def test_where_an_answer_comes_while_the_library_looks_for_one_it_takes_itself_for_idle(
    broker: Broker, kafka_url: str, topic: str
) -> None:
    write(broker, topic, range(10))
    with closing(client(kafka_url, KafkaConsumer, **READING)) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        until(consumer._fetcher.send_fetches)  # not before it knows who leads the partition
        assert fetch_when_an_answer_comes(Fetcher.fetch_records.__wrapped__, consumer._fetcher) == ({}, True)
        records, idle = fetch_when_an_answer_comes(Fetcher.fetch_records, consumer._fetcher)
    assert [record.value for record in records[TopicPartition(topic, 0)]] == [b"%d" % n for n in range(10)]
    assert not idle


# The producer


def contest(broker: Broker, topic: str, old: Producer, stack: ExitStack) -> None:
    """Write with a producer, while a newer one of the same id is in a transaction until the end of the stack."""
    with old.transaction() as older:
        older.produce([Record(topic, b"1")])
        flush(old)  # the partition is in its transaction now
        new = broker.producer(f"contested-{topic}")
        newer = stack.enter_context(new.transaction())
        newer.produce([Record(topic, b"2")])
        flush(new)
        older.produce([Record(topic, b"3")])


def write_beside_an_older_producer(broker: Broker, topic: str) -> None:
    old: Any = broker.producer(f"contested-{topic}")
    with ExitStack() as stack:
        with pytest.raises(FencedError):
            contest(broker, topic, old, stack)
        until(lambda: not old._client._transaction_manager.is_bumping_epoch())


def test_a_fenced_producer_takes_its_id_back_while_the_newer_one_is_in_a_transaction(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(patches, "let_newer_producers_win", lambda _client: None)
        with pytest.raises((FencedError, OutcomeUnknownError)):
            write_beside_an_older_producer(broker, topic)
    assert everything(broker, topic) == []
    write_beside_an_older_producer(broker, topic)
    assert everything(broker, topic) == [2]


def test_the_library_wakes_its_thread_at_every_record_where_several_batches_wait(kafka_url: str, topic: str) -> None:
    with closing(client(kafka_url, KafkaProducer, batch_size=1000, linger_ms=1000)) as producer:  # 12 batches
        producer.partitions_for(topic)
        with patches.waking_once(producer):  # so that its thread sends none of them meanwhile
            woken: list[int] = []
            producer._sender.wakeup = lambda: woken.append(1)
            for _ in range(100):
                producer.send(topic, bytes(100), partition=0)
        assert len(woken) > 50


def test_a_producer_that_cannot_send_all_is_not_closed_and_its_thread_goes_on(kafka_url: str, topic: str) -> None:
    producer = client(kafka_url, KafkaProducer)
    producer.partitions_for(topic)
    with closing(client(kafka_url, KafkaAdminClient)) as admin:
        admin.delete_topics([topic])
        until(lambda: admin.describe_topics([topic])[0]["error_code"])
    producer.send(topic, b"1", partition=0)
    with pytest.raises(errors.KafkaTimeoutError):
        producer.close(timeout=0.2)
    assert producer._sender.is_alive()
    patches.close_producer(producer, 0.2)
    producer._sender.join(10)
    assert not producer._sender.is_alive()
