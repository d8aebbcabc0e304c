"""Reads one partition of Kafka on and on, outside any group."""

from kafka import KafkaConsumer as Client
from kafka import errors

from pipeline.broker import Message, Partition
from pipeline.broker.kafka.connection import Connection
from pipeline.broker.kafka.consumer import READING, gone, message, place


class KafkaTail:
    """As in the protocol. The position moves over control records, and over what was aborted, without a message."""

    def __init__(self, connection: Connection, partition: Partition, start: int) -> None:
        self._connection, self._partition, self._place = connection, partition, place(partition)
        self._client = connection.make(Client, **READING)
        self._client.assign([self._place])
        self._client.seek(self._place, start)
        self.position = start

    def poll(self, timeout: float) -> list[Message]:
        """What is there, or what comes within ``timeout`` seconds. Raises TopicError if the position is gone."""
        with self._connection.translating(f"reading {self._partition}"):
            try:
                records = self._client.poll(1000 * timeout).get(self._place, [])
            except errors.OffsetOutOfRangeError as error:
                raise gone(self._client, error) from error
            self.position = self._client.position(self._place)
        return [message(record) for record in records]

    def close(self) -> None:
        self._client.close()
