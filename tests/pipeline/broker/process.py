"""Second processes for the broker tests. In the child: ``python -m tests.pipeline.broker.process URL ACTION ARGUMENT…``

A child prints a line when it is ready, and goes on when it is given one.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.broker import Broker, Consumer, Message, Partition, Position, Record, connect

ROOT = Path(__file__).parents[3]


class Child:
    """A started process: lines in, lines out."""

    def __init__(self, url: str, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.pipeline.broker.process", url, *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@contextmanager
def child(url: str, *arguments: object) -> Iterator[Child]:
    """A child that is killed, if it has not ended, at the end of the block."""
    started = Child(url, *arguments)
    with started.process:
        try:
            yield started
        finally:
            started.process.kill()


def produce(broker: Broker, topic: str, name: str, transactions: str, size: str) -> None:
    """Write ``transactions`` of ``size`` records, numbered, beginning at a word from the parent."""
    producer = broker.producer(name)
    pause()
    for number in range(int(transactions)):
        with producer.transaction() as transaction:
            values = (f"{name} {number * int(size) + i}" for i in range(int(size)))
            transaction.produce(Record(topic, value.encode()) for value in values)


def echo(broker: Broker, topic: str) -> None:
    """Write one record for each line from the parent."""
    producer = broker.producer("echo")
    pause()
    for line in sys.stdin:
        with producer.transaction() as transaction:
            transaction.produce([Record(topic, line.strip().encode())])


def copy(broker: Broker, group: str, source: str, *targets: str) -> None:
    """Copy ``source`` to all ``targets``, ten records a transaction; pause before the second one's end."""
    consumer, producer = broker.consumer(group, source), broker.producer("copy")
    for turn in range(2):
        with producer.transaction() as transaction:
            messages = poll(consumer, 10)
            for target in targets:
                transaction.produce(Record(target, message.value) for message in messages)
            last = messages[-1]
            end = {Partition(source, last.partition): Position(last.offset + 1, f"turn {turn}")}
            transaction.commit_offsets(consumer.member, end)
            if turn == 1:
                pause()


def count(broker: Broker, *topics: str) -> None:
    """Write one record to every topic, transaction after transaction; print a line for each."""
    producer = broker.producer("count")
    while True:
        with producer.transaction() as transaction:
            transaction.produce(Record(topic, bytes(10_000)) for topic in topics)
        print("committed", flush=True)


def hold(broker: Broker, group: str, topic: str) -> None:
    """Be the group's consumer until killed."""
    broker.consumer(group, topic)
    pause()


def poll(consumer: Consumer, wanted: int) -> list[Message]:
    """Poll until that many messages came; fail after ten seconds without any."""
    messages: list[Message] = []
    while len(messages) < wanted:
        more = consumer.poll(wanted - len(messages), 10.0)
        assert more, f"{len(messages)} messages of {wanted}"
        messages += more
    return messages


def pause() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    url, action, *arguments = sys.argv[1:]
    broker = connect(url)
    actions: dict[str, Callable[..., None]] = {f.__name__: f for f in (produce, echo, copy, count, hold)}
    actions[action](broker, *arguments)
    broker.close()
