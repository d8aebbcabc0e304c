"""How fast records go to a Kafka broker and come back, how long a learner's transaction takes, and how fast it learns.

python -m tests.kafka.server &
python -m benchmarks.kafka --broker kafka://127.0.0.1:9092
"""

import statistics
import sys
import time
import uuid
from contextlib import closing

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks import speed
from pipeline import cli
from pipeline.broker import Broker, Partition, Position, Record, Topic, connect
from pipeline.records import ImageRecord, encode
from pipeline.settings import Settings

RECORDS = 40_000
OF_A_TRANSACTION = 2_000

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


def produce(broker: Broker, topic: str) -> float:
    """Records/s written, in large transactions."""
    records = [encode(ImageRecord(f"image-{i}", "benchmark", pixels(i), "7"), topic) for i in range(OF_A_TRANSACTION)]
    with closing(broker.producer(f"{topic}-write")) as producer:
        with producer.transaction() as transaction:
            transaction.produce(records[:1])
        begun = time.perf_counter()
        for _ in range(RECORDS // OF_A_TRANSACTION):
            with producer.transaction() as transaction:
                transaction.produce(records)
        return RECORDS / (time.perf_counter() - begun)


def consume(broker: Broker, topic: str, group: str) -> float:
    """Records/s read, as micro-batches are."""
    with closing(broker.consumer(group, topic)) as consumer:
        taken = len(consumer.poll(1, 30.0))
        begun = time.perf_counter()
        while taken <= RECORDS:
            taken += len(consumer.poll(MICRO_BATCH, 30.0))
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


def measure(broker: Broker) -> dict[str, float]:
    """All of it, on topics of its own."""
    run = uuid.uuid4().hex[:8]
    images, results = f"benchmark-{run}-images", f"benchmark-{run}-results"
    broker.ensure_topics(Topic(name, retention_bytes=KEPT) for name in (images, results))
    written, read = produce(broker, images), consume(broker, images, f"benchmark-{run}-read")
    seconds = commit(broker, results, f"benchmark-{run}-commit")
    return {
        "produced_records_per_second": written,
        "consumed_records_per_second": read,
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
        result = measure(broker) | learning(settings)
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return 0
    table = Table("measured", "", "aim")
    table.add_row("records/s written", f"{result['produced_records_per_second']:,.0f}", "≥ 20,000")
    table.add_row("records/s read", f"{result['consumed_records_per_second']:,.0f}", "≥ 30,000")
    table.add_row("ms of a learner's transaction, median", f"{result['transaction_median_ms']:.1f}", "")
    table.add_row("the same, 99th of 100", f"{result['transaction_p99_ms']:.1f}", "")
    table.add_row("images/s learnt from", f"{result['images_per_second']:,.0f}", "")
    table.add_row("the same, to the rate without a broker", f"{result['share_of_brokerless_rate']:.2f}", "≥ 0.85")
    Console().print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
