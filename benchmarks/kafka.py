"""How fast records go to a Kafka broker and come back, how long a learner's transaction takes, and how fast it learns.

    python -m deploy.local.kafka &
    python -m benchmarks.kafka --broker kafka://127.0.0.1:9092

Writing and reading are measured beside the bare client library with the same records, in turn: what is lost to this
project's code is told apart from what the library and the machine take.
"""

import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks import report, speed
from benchmarks.speed import timed
from pipeline import cli
from pipeline.broker import Broker, Partition, Position, Record, Topic, connect
from pipeline.broker.kafka.connection import Connection
from pipeline.broker.kafka.consumer import READING
from pipeline.broker.kafka.producer import BATCH_BYTES, COMPRESSION, LINGER_MS
from pipeline.records.images import ImageRecord, encode
from pipeline.settings import Settings

RECORDS = 20_000
OF_A_TRANSACTION = 2_000
TURNS = 3
PATIENCE = 30.0
"""Seconds to wait for the broker."""

TRANSACTIONS = 300
MICRO_BATCH = 256
FIRST = 20
"""Transactions that are not counted: connections are made in them."""

KEPT = 64 << 20
"""Bytes that the broker keeps of each topic that is only written and read."""

PREDICTION = b"x" * 400
JOURNAL = b"x" * 600


def pixels(seed: int) -> bytes:
    """An image that compresses about as well as a digit: noise with a black frame."""
    image = np.zeros((28, 28), np.uint8)
    image[6:22, 8:20] = np.random.default_rng(seed).integers(0, 256, (16, 12))
    return image.tobytes()


def produce(broker: Broker, topic: str, records: Sequence[Record]) -> float:
    """Records/s written, in large transactions."""
    with closing(broker.producer(f"{topic}-write")) as producer:

        def write() -> None:
            for start in range(0, RECORDS, OF_A_TRANSACTION):
                with producer.transaction() as transaction:
                    transaction.produce(records[start : start + OF_A_TRANSACTION])

        with producer.transaction() as transaction:
            transaction.produce(records[:1])
        return RECORDS / timed(write)


def bare_produce(connection: Connection, topic: str, records: Sequence[Record]) -> float:
    """The same by the library alone, without transactions."""
    sending = {"batch_size": BATCH_BYTES, "linger_ms": LINGER_MS, "compression_type": COMPRESSION}
    with closing(connection.make(KafkaProducer, PATIENCE, **sending)) as client:

        def write() -> None:
            for record in records:
                client.send(topic, record.value, record.key, list(record.headers))
            client.flush(PATIENCE)

        client.send(topic, records[0].value).get(PATIENCE)
        return RECORDS / timed(write)


def take(poll: Callable[[int], int]) -> float:
    """Records/s read, as micro-batches are; the first record is not counted."""

    def read() -> None:
        taken = 0
        while taken < RECORDS:
            taken += poll(MICRO_BATCH)

    poll(1)
    return RECORDS / timed(read)


def consume(broker: Broker, topic: str) -> float:
    with closing(broker.consumer(uuid.uuid4().hex, topic)) as consumer:
        return take(lambda most: len(consumer.poll(most, PATIENCE)))


def bare_consume(connection: Connection, topic: str) -> float:
    """The same by the library alone, without a group."""
    with closing(connection.make(KafkaConsumer, PATIENCE, **READING)) as client:
        client.assign([TopicPartition(topic, 0)])
        client.seek_to_beginning()
        return take(lambda most: sum(map(len, client.poll(1000 * PATIENCE, most).values())))


def commit(broker: Broker, topic: str) -> list[float]:
    """Seconds of each transaction: a micro-batch's predictions, its journal and its positions."""
    predictions = [Record(topic, PREDICTION, b"image-%d" % i) for i in range(MICRO_BATCH)]
    seconds = []
    with closing(broker.consumer(topic, topic)) as consumer, closing(broker.producer(f"{topic}-commit")) as producer:
        for number in range(FIRST + TRANSACTIONS):
            begun = time.perf_counter()
            with producer.transaction() as transaction:
                transaction.produce([*predictions, Record(topic, JOURNAL)])
                transaction.commit_offsets(consumer.member, {Partition(topic, 0): Position(number)})
            seconds.append(time.perf_counter() - begun)
    return sorted(seconds[FIRST:])


def measure(settings: Settings) -> dict[str, float]:
    """All of it, on topics of its own."""
    run, connection = f"benchmark-{uuid.uuid4().hex[:8]}-", Connection(settings.broker, settings)
    images, results = f"{run}images", f"{run}results"
    records = [encode(ImageRecord(f"image-{i}", "benchmark", pixels(i), "7"), images) for i in range(RECORDS)]
    with closing(connect(settings.broker, settings)) as broker:
        broker.ensure_topics(Topic(name, retention_bytes=KEPT) for name in (images, results))
        rates: dict[str, Callable[[], float]] = {
            "produced": lambda: produce(broker, images, records),
            "bare_produced": lambda: bare_produce(connection, images, records),
            "consumed": lambda: consume(broker, images),
            "bare_consumed": lambda: bare_consume(connection, images),
        }
        turns = [[rate() for rate in rates.values()] for _ in range(TURNS)]
        seconds = commit(broker, results)
    learnt = speed.end_to_end(settings, settings.broker, run)
    return {
        **{f"{name}_records_per_second": statistics.median(found) for name, *found in zip(rates, *turns, strict=True)},
        "transaction_median_ms": 1000 * statistics.median(seconds),
        "transaction_p99_ms": 1000 * seconds[int(0.99 * len(seconds))],
        "images_per_second": learnt["broker_images_per_second"],
        "share_of_brokerless_rate": 1 / learnt["broker_to_brokerless"],
    }


def main() -> int:
    """Measure and print."""
    parser = cli.parser("Measure a Kafka broker to play with: topics benchmark-… stay, 300 MB.", "broker")
    arguments = parser.parse_args()
    result = measure(cli.settings_of(arguments))
    rows = [
        ("records/s written", "produced_records_per_second", ",.0f", "≥ 20,000"),
        ("  by the library alone", "bare_produced_records_per_second", ",.0f", ""),
        ("records/s read", "consumed_records_per_second", ",.0f", "≥ 30,000"),
        ("  by the library alone", "bare_consumed_records_per_second", ",.0f", ""),
        ("ms of a learner's transaction, median", "transaction_median_ms", ".1f", ""),
        ("the same, 99th of 100", "transaction_p99_ms", ".1f", ""),
        ("images/s learnt from", "images_per_second", ",.0f", ""),
        ("the same, to the rate without a broker", "share_of_brokerless_rate", ".2f", "≥ 0.85"),
    ]
    shown = [(what, f"{result[name]:{form}}", aim) for what, name, form, aim in rows]
    cli.tell(arguments.json, result, report.table(("measured", "", "aim"), shown))
    return 0


if __name__ == "__main__":
    cli.run(main)
