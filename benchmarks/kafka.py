"""How fast records go to a Kafka broker and come back, how long a learner's transaction takes, and how fast it learns.

    python -m deploy.local.kafka &
    python -m benchmarks.kafka --broker kafka://127.0.0.1:9092

Writing and reading are measured beside the bare client library with the same records, in turn: what is lost to this
project's code is told apart from what the library and the machine take.
"""

import statistics
import sys
import time
import uuid
from contextlib import closing

import numpy as np
import orjson
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks import speed
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


def some_records(topic: str) -> list[Record]:
    """As many as go into one transaction."""
    return [encode(ImageRecord(f"image-{i}", "benchmark", pixels(i), "7"), topic) for i in range(OF_A_TRANSACTION)]


def produce(broker: Broker, topic: str) -> float:
    """Records/s written, in large transactions."""
    records = some_records(topic)
    with closing(broker.producer(f"{topic}-write")) as producer:
        with producer.transaction() as transaction:
            transaction.produce(records[:1])
        begun = time.perf_counter()
        for _ in range(RECORDS // OF_A_TRANSACTION):
            with producer.transaction() as transaction:
                transaction.produce(records)
        return RECORDS / (time.perf_counter() - begun)


def bare_produce(connection: Connection, topic: str) -> float:
    """The same by the library alone, without transactions."""
    sending = {"batch_size": BATCH_BYTES, "linger_ms": LINGER_MS, "compression_type": COMPRESSION}
    records = [(record.value, record.key, list(record.headers)) for record in some_records(topic)]
    with closing(connection.make(KafkaProducer, PATIENCE, **sending)) as client:
        client.send(topic, *records[0]).get(PATIENCE)
        begun = time.perf_counter()
        for _ in range(RECORDS // OF_A_TRANSACTION):
            for record in records:
                client.send(topic, *record)
        client.flush(PATIENCE)
        return RECORDS / (time.perf_counter() - begun)


def consume(broker: Broker, topic: str, group: str) -> float:
    """Records/s read, as micro-batches are."""
    with closing(broker.consumer(group, topic)) as consumer:
        taken = len(consumer.poll(1, PATIENCE))
        begun = time.perf_counter()
        while taken <= RECORDS:
            taken += len(consumer.poll(MICRO_BATCH, PATIENCE))
        return RECORDS / (time.perf_counter() - begun)


def bare_consume(connection: Connection, topic: str) -> float:
    """The same by the library alone, without a group."""
    with closing(connection.make(KafkaConsumer, PATIENCE, **READING)) as client:
        client.assign([TopicPartition(topic, 0)])
        client.seek_to_beginning()
        taken = len(client.poll(1000 * PATIENCE, 1))
        begun = time.perf_counter()
        while taken <= RECORDS:
            taken += sum(map(len, client.poll(1000 * PATIENCE, MICRO_BATCH).values()))
        return RECORDS / (time.perf_counter() - begun)


def commit(broker: Broker, topic: str, group: str) -> list[float]:
    """Seconds of each transaction: a micro-batch's predictions, its journal and its positions."""
    predictions = [Record(topic, PREDICTION, b"image-%d" % i) for i in range(MICRO_BATCH)]
    seconds = []
    with closing(broker.consumer(group, topic)) as consumer, closing(broker.producer(f"{topic}-commit")) as producer:
        for number in range(FIRST + TRANSACTIONS):
            begun = time.perf_counter()
            with producer.transaction() as transaction:
                transaction.produce([*predictions, Record(topic, JOURNAL)])
                transaction.commit_offsets(consumer.member, {Partition(topic, 0): Position(number)})
            seconds.append(time.perf_counter() - begun)
    return sorted(seconds[FIRST:])


def measure(broker: Broker, connection: Connection) -> dict[str, float]:
    """All of it, on topics of its own."""
    run = uuid.uuid4().hex[:8]
    images, results = f"benchmark-{run}-images", f"benchmark-{run}-results"
    broker.ensure_topics(Topic(name, retention_bytes=KEPT) for name in (images, results))
    written, bare_written, read, bare_read = zip(
        *(
            (
                produce(broker, images),
                bare_produce(connection, images),
                consume(broker, images, f"benchmark-{run}-read-{turn}"),
                bare_consume(connection, images),
            )
            for turn in range(TURNS)
        ),
        strict=True,
    )
    seconds = commit(broker, results, f"benchmark-{run}-commit")
    return {
        "produced_records_per_second": statistics.median(written),
        "bare_produced_records_per_second": statistics.median(bare_written),
        "consumed_records_per_second": statistics.median(read),
        "bare_consumed_records_per_second": statistics.median(bare_read),
        "transaction_median_ms": 1000 * statistics.median(seconds),
        "transaction_p99_ms": 1000 * seconds[int(0.99 * len(seconds))],
    }


def learning(settings: Settings) -> dict[str, float]:
    """Learning from the stream over Kafka, as a share of the rate without a broker."""
    found = speed.end_to_end(settings, settings.broker, f"benchmark-{uuid.uuid4().hex[:8]}-")
    return {
        "images_per_second": found["broker_images_per_second"],
        "share_of_brokerless_rate": 1 / found["broker_to_brokerless"],
    }


def main() -> int:
    """Measure and print."""
    parser = cli.parser("Measure a Kafka broker to play with: topics benchmark-… stay, 300 MB.", "broker")
    arguments = parser.parse_args()
    settings = cli.settings_of(arguments)
    with closing(connect(settings.broker, settings)) as broker:
        result = measure(broker, Connection(settings.broker, settings)) | learning(settings)
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return 0
    table = Table("measured", "", "aim")
    for what, name, aim in (("written", "produced", "≥ 20,000"), ("read", "consumed", "≥ 30,000")):
        table.add_row(f"records/s {what}", f"{result[f'{name}_records_per_second']:,.0f}", aim)
        table.add_row("  by the library alone", f"{result[f'bare_{name}_records_per_second']:,.0f}", "")
    table.add_row("ms of a learner's transaction, median", f"{result['transaction_median_ms']:.1f}", "")
    table.add_row("the same, 99th of 100", f"{result['transaction_p99_ms']:.1f}", "")
    table.add_row("images/s learnt from", f"{result['images_per_second']:,.0f}", "")
    table.add_row("the same, to the rate without a broker", f"{result['share_of_brokerless_rate']:.2f}", "≥ 0.85")
    Console().print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
