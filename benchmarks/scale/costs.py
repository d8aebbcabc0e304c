"""What the parts of a learner's work cost on this machine: the numbers that the simulation is fed with."""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from benchmarks.scale.late import times
from pipeline.broker import Broker, Partition, Topic, connect
from pipeline.data.stream import Stream
from pipeline.features import Filters, make
from pipeline.group.encoding import GroupReader, LogIdentity, encode
from pipeline.group.shared import Checkpoint, Delta, GroupRecord, Shared
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import encode as encode_image
from pipeline.records.topics import Topics
from pipeline.settings import Settings

TIMES = 5
BATCH = 256
SQUARED = 4 * BATCH
PREDICTION_BYTES = 400
"""Of a prediction with its five best scores, as ``benchmarks.kafka`` has it."""


@dataclass(frozen=True)
class Costs:
    """Seconds are those of a clock on the wall unless they are called processor seconds.

    Parameters
    ----------
    quote, settle
        Processor seconds per image: predicting it; settling it and adding it to the sums.
    clear
        Processor seconds of a clearing.
    publish
        Seconds to take a delta out of the sums, encode it and commit it.
    read
        Seconds to read, decode and add somebody else's delta.
    read_base
        Seconds to read and decode a base, which every learner does.
    delta_bytes, base_bytes, image_bytes, prediction_bytes
        Of one record each, as they are handed to the client, which compresses all but the first two once more.
    width
        D, the number of products.
    """

    quote: float
    settle: float
    clear: float
    publish: float
    read: float
    read_base: float
    delta_bytes: int
    base_bytes: int
    image_bytes: int
    width: int
    prediction_bytes: int = PREDICTION_BYTES


def measure(url: str, stream: Stream, delta: Sums, settings: Settings) -> Costs:
    """``delta`` are the sums of ``settings.publish_images`` images."""
    quote, settle, clear = _learning(stream, delta, settings)
    run = LogIdentity("costs", "costs", ClearingIdentity.of(Filters(settings.seed, settings.filters)), "", delta.width)
    sums = Topics("costs.").sums("costs")
    patient = settings.model_copy(update={"session_timeout": 60.0})
    with closing(connect(url, patient)) as broker:
        broker.ensure_topics([Topic(sums.topic, 1)])
        publish, read, read_base, sizes = _publishing(broker, sums, run, delta)
    image = encode_image(stream.record(0), "images")
    image_bytes = len(image.value) + sum(len(name) + len(value) for name, value in image.headers)
    return Costs(quote, settle, clear, publish, read, read_base, *sizes, image_bytes, delta.width)


def _learning(stream: Stream, sums: Sums, settings: Settings) -> tuple[float, float, float]:
    """Settling is all of learning less quoting: squares are computed behind the back of the quotes that follow."""
    learner = Clearing(make(Filters(settings.seed, settings.filters), "blas"), sums)
    clear = _processor_seconds(learner.clear)
    parts = [(start, start + BATCH) for start in range(0, TIMES * SQUARED, BATCH)]
    images, labels = [stream.images(*part) for part in parts], [stream.labels[slice(*part)] for part in parts]

    def quote() -> None:
        for some in images:
            learner.quote(some)

    def learn() -> None:
        for some, names in zip(images, labels, strict=True):
            learner.add(learner.settle(learner.quote(some), names))

    quoted = _processor_seconds(quote)
    learn()  # from now on a square is under way, at the beginning as at the end
    return quoted / len(parts) / BATCH, (_processor_seconds(learn) - quoted) / len(parts) / BATCH, clear


def _processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _publishing(
    broker: Broker, sums: Partition, run: LogIdentity, delta: Sums
) -> tuple[float, float, float, tuple[int, int]]:
    """Seconds to publish a delta, to read one and to read a base, and the bytes of both."""
    accumulator, reached = Accumulator(Sums.zero(run.width)), Shared(Sums.zero(run.width))
    old = Checkpoint("base", Shared(times(delta, 500)))
    accumulator.add_sums(delta)
    publishes, reads, bases = [], [], []
    with closing(broker.producer("costs")) as producer, closing(broker.tail(sums, 0)) as tail:
        reader = GroupReader(run)

        def read() -> float:
            """Seconds to take in what was published."""
            nonlocal reached
            end, begun = broker.end(sums), time.perf_counter()
            while tail.position < end:
                for message in tail.poll(0.1):
                    found = reader.read(message)
                    if found and isinstance(found[0], Delta):
                        accumulator.add_sums(found[0].sums)  # and there is one more to publish
                        reached = reached.plus(found[0])
            return time.perf_counter() - begun

        def publish(record: GroupRecord[Sums], begun: float) -> tuple[float, int]:
            """Seconds since it was begun, and bytes."""
            pieces = encode(sums.topic, run, record)
            with producer.transaction() as transaction:
                transaction.produce(pieces)
            return time.perf_counter() - begun, sum(len(piece.value) for piece in pieces)

        for number in range(TIMES):
            spans = {0: (number, number + 1)}
            begun = time.perf_counter()
            record = Delta(str(number), spans, accumulator.total() - reached.sums, delta.images)
            seconds, delta_bytes = publish(record, begun)
            publishes.append(seconds)
            reads.append(read())
            _, base_bytes = publish(old, time.perf_counter())
            bases.append(read())
    return statistics.median(publishes), statistics.median(reads), statistics.median(bases), (delta_bytes, base_bytes)
