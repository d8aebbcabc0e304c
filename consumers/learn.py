"""Learn from a stream while serving it.

    python -m consumers.learn

Predicts every image of the topic ``images`` before it has seen its label, then learns from it. Stop it with Ctrl-C
or kill it: started again, it goes on where it was.
"""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry
from rich.console import Console

from consumers.display import Display, class_table, summary
from consumers.state import Recovery
from consumers.worker import Worker
from pipeline import cli, snapshots
from pipeline.broker import Broker, Consumer, Partition, connect
from pipeline.errors import BrokerBusyError, FencedError, GroupBusyError, OutcomeUnknownError, SnapshotError
from pipeline.metrics import Metrics
from pipeline.server import serving
from pipeline.settings import Settings
from pipeline.snapshots import Folder, Snapshot
from pipeline.topics import Topics
from pipeline.trunk import Filters, make

log = logging.getLogger(__name__)

SHORTEST_WAIT, LONGEST_WAIT = 0.5, 10.0
"""Seconds between two tries where the broker is in trouble."""

TROUBLES = {BrokerBusyError: "busy", FencedError: "fenced", OutcomeUnknownError: "unknown"}
"""What passes, and as which kind it is counted."""

STAND_BY = 1.0
"""Seconds between two looks at which partitions a waiting learner has."""

SETTINGS = (
    *("broker", "topic_prefix", "partitions", "retention", "retention_bytes", "replication", "session_timeout"),
    *("group", "seed", "filters", "backend"),
    *("batch_size", "batch_wait", "window", "snapshots", "snapshot_images", "snapshots_kept"),
    *("metrics_host", "metrics_port"),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("Learn from a stream while serving it.", *SETTINGS)
    parser.add_argument("--freeze", action="store_true", help="serve without learning, as group GROUP-frozen")
    parser.add_argument("--snapshot", type=Path, metavar="S", help="begin with this earlier model")
    parser.add_argument("--images", type=int, metavar="N", help="stop after N records (default: go on for ever)")
    return parser.parse_args(arguments)


def main(command_line: Sequence[str] | None = None) -> int:
    """Learn as the command line says."""
    arguments = parse(command_line)
    settings = cli.settings_of(arguments)
    folder = Folder(settings.snapshots / f"{settings.topic_prefix}{settings.group}", settings.snapshots_kept)
    base = _base(arguments.snapshot, arguments.freeze, folder)
    with cli.stop_on_signals(cli.PATIENCE) as stop, closing(connect(settings.broker, settings)) as broker:
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
    """Join the group, recover and work until told to stop, then say how it went."""
    topics = Topics(settings.topic_prefix)
    filters = Filters(settings.seed, settings.filters)
    trunk = make(filters, settings.backend, settings.batch_size)  # compiles: before joining the group
    broker.ensure_topics([topics.source(settings), *topics.results()])
    group = settings.group + ("-frozen" if arguments.freeze else "")
    metrics = Metrics(CollectorRegistry())
    worker = Worker(broker, topics, metrics, None if arguments.freeze else folder, settings)
    sizes = settings.window, settings.batch_size
    recovery = Recovery(broker, topics, group, filters, trunk, *sizes, arguments.freeze, worker.came_round)
    display = Display(worker)
    with ExitStack() as shown:
        address = settings.metrics_host, settings.metrics_port
        port = shown.enter_context(serving(metrics.registry, *address, worker.healthy))
        log.info("metrics at http://%s:%d/metrics", settings.metrics_host, port)
        newcomer = True
        for session in _sessions(stop, worker, metrics):
            with session, _attached(worker, recovery, folder, base, stop, newcomer):
                if newcomer:
                    newcomer = False
                    metrics.watch(worker)
                    shown.enter_context(display.shown())
                worker.run(stop, arguments.images, display.update)
                break
        else:
            log.warning("stopped while the broker was out of reach")
            return
    report(worker, group, display, arguments.json)


@contextmanager
def _attached(
    worker: Worker, recovery: Recovery, folder: Folder, base: Snapshot | None, stop: threading.Event, newcomer: bool
) -> Iterator[None]:
    """Join the group, recover its state, and leave the group at the end."""
    broker, images, group = recovery.broker, recovery.topics.images, recovery.group
    with closing(broker.consumer(group, images)) as consumer:
        _await_partitions(consumer, worker, set(broker.extents(images)), stop, newcomer)
        # Only now: whoever had the partitions before is fenced from here on.
        with closing(broker.producer(f"{images}.{group}")) as producer:
            worker.attach(consumer, producer, recovery.state(folder, base))
            try:
                yield
            finally:
                worker.detach()


def _await_partitions(
    consumer: Consumer, worker: Worker, wanted: set[Partition], stop: threading.Event, newcomer: bool
) -> None:
    """Stand by until this learner has all partitions: its sums are those of the whole topic.

    Raises GroupBusyError for a newcomer that is given some of them: the learner that is at work needs them all.
    """
    said = False
    while consumer.assignment != wanted and not stop.is_set():
        worker.came_round()
        if consumer.assignment and newcomer:
            raise GroupBusyError(
                f"group {consumer.member.group} has another learner; a group learns with one learner at a time: "
                "stop the other one, or give this one another --group"
            )
        consumer.poll(1, STAND_BY)  # what it hands out is read again: the worker seeks before it reads
        if not consumer.assignment and not said:
            log.info("standing by: group %s has another learner, or is being joined", consumer.member.group)
            said = True


def _sessions(stop: threading.Event, worker: Worker, metrics: Metrics) -> Iterator[AbstractContextManager[None]]:
    """One session after the other, each of which may end in trouble with the broker, with longer and longer waits."""
    delay = SHORTEST_WAIT

    @contextmanager
    def session() -> Iterator[None]:
        nonlocal delay
        begun = time.monotonic()
        try:
            yield
        except tuple(TROUBLES) as error:
            metrics.broker_errors.labels(TROUBLES[type(error)]).inc()
            delay = SHORTEST_WAIT if time.monotonic() - begun > LONGEST_WAIT else min(2 * delay, LONGEST_WAIT)
            log.warning("%s; nothing is lost, trying again in %.1f s", error, delay)

    yield session()
    while not stop.wait(delay):
        worker.came_round()
        metrics.reconnects.inc()
        yield session()


def report(worker: Worker, group: str, display: Display, as_json: bool) -> None:
    """Print the summary: one JSON object, or a table."""
    result = summary(worker, group, display.seconds)
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
