"""Numbers, written and read."""

from collections.abc import Iterable
from contextlib import closing

from pipeline.broker import Broker, Producer, Record
from pipeline.broker.kafka.producer import KafkaProducer


def write(broker: Broker, topic: str, numbers: Iterable[int], partition: int = 0) -> None:
    with closing(broker.producer(f"writer-{topic}")) as producer, producer.transaction() as transaction:
        transaction.produce(Record(topic, b"%d" % number, partition=partition) for number in numbers)


def everything(broker: Broker, topic: str) -> list[int]:
    return [int(m.value) for part, span in broker.extents(topic).items() for m in broker.read(part, 0, span.end)]


def flush(producer: Producer) -> None:
    """Have everything in the broker's hands, which else is so at the end of a transaction only."""
    assert isinstance(producer, KafkaProducer)
    producer._client.flush()
