"""Learn from a stream while serving it.

    python -m consumers.learn

Predicts every image of the topic ``images`` before it has seen its label, then learns from it. Stop it with Ctrl-C
or kill it: started again, it goes on where it was.
"""

import argparse
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry
from rich.console import Console

from consumers.display import Display, class_table, summary
from consumers.server import serving
from consumers.state import Recovery, State
from consumers.worker import Worker
from pipeline import cli, snapshots
from pipeline.broker import Broker, Consumer, connect
from pipeline.errors import SnapshotError
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.snapshots import Folder, Snapshot
from pipeline.topics import Topics
from pipeline.trunk import Filters, make

SETTINGS = (
    *("broker", "topic_prefix", "partitions", "retention", "group", "seed", "filters", "backend"),
    *("batch_size", "batch_wait", "window", "snapshots", "snapshot_images", "snapshots_kept"),
    *("metrics_host", "metrics_port"),
)


def parse() -> argparse.Namespace:
    parser = cli.parser("Learn from a stream while serving it.", *SETTINGS)
    parser.add_argument("--freeze", action="store_true", help="serve without learning, as group GROUP-frozen")
    parser.add_argument("--snapshot", type=Path, metavar="S", help="begin with this earlier model")
    parser.add_argument("--images", type=int, metavar="N", help="stop after N records (default: go on for ever)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    settings = cli.settings_of(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = Folder(settings.snapshots / f"{settings.topic_prefix}{settings.group}", settings.snapshots_kept)
    base = _base(arguments.snapshot, arguments.freeze, folder)
    with closing(connect(settings.broker)) as broker:
        work(broker, settings, folder, base, stop, arguments)
    return 0


def _base(path: Path | None, freeze: bool, folder: Folder) -> Snapshot | None:
    if path:
        return snapshots.read(path)
    base = folder.newest() if freeze else None
    if freeze and base is None:
        raise SnapshotError(f"nothing to serve: no snapshot in {folder.path}; name one with --snapshot")
    return base


def work(
    broker: Broker,
    settings: Settings,
    folder: Folder,
    base: Snapshot | None,
    stop: threading.Event,
    arguments: argparse.Namespace,
) -> None:
    """Join the group, recover, work until told to stop, say how it went."""
    topics = Topics(settings.topic_prefix)
    filters = Filters(settings.seed, settings.filters)
    trunk = make(filters, settings.backend, settings.batch_size)  # compiles: before joining the group
    broker.ensure_topics(topics.specifications(settings.partitions, settings.retention))
    group = settings.group + ("-frozen" if arguments.freeze else "")
    with ExitStack() as stack:
        consumer = stack.enter_context(closing(broker.consumer(group, topics.images)))
        producer = stack.enter_context(closing(broker.producer(f"{settings.topic_prefix}{group}")))
        state = Recovery(
            broker, topics, group, filters, trunk, settings.window, settings.batch_size, arguments.freeze
        ).state(folder, base)
        _seek(consumer, state)
        metrics = Metrics(CollectorRegistry())
        worker = Worker(
            broker,
            consumer,
            producer,
            topics,
            state,
            metrics,
            None if arguments.freeze else folder,
            batch_size=settings.batch_size,
            batch_wait=settings.batch_wait,
            snapshot_images=settings.snapshot_images,
        )
        metrics.watch(worker)
        stack.enter_context(serving(metrics.registry, settings.metrics_host, settings.metrics_port, worker.healthy))
        begun = time.monotonic()
        display = Display(worker)
        with display.shown():
            worker.run(stop, arguments.images, display.update)
        report(worker, state, group, time.monotonic() - begun, arguments.json)


def _seek(consumer: Consumer, state: State) -> None:
    for partition in consumer.assignment:
        consumer.seek(partition, state.clock[partition.number])


def report(worker: Worker, state: State, group: str, seconds: float, as_json: bool) -> None:
    """Print the summary: one JSON object, or a table."""
    result = summary(worker, group, seconds, state.learner.sums().digest(state.identity.digest))
    if as_json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    console = Console()
    console.print(class_table(worker.scores))
    accuracy = "–" if result["accuracy"] is None else f"{result['accuracy']:.4f}"
    console.print(f"predicted before learning: {accuracy} right of {result['labelled_images']:,} images")
    console.print(f"{result['records']:,} records, {result['images_per_second']:,.0f} a second", highlight=False)
    console.print(f"digest {result['digest']}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
