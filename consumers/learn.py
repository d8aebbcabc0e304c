"""Learn from a stream while serving it.

    marketstream learn

Predicts every image of the topic ``images`` before it has seen its label, then learns from it. Stop it with Ctrl-C
or kill it: started again, it goes on where it was.
"""

import argparse
import logging
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry
from rich.console import Console

from consumers.display import Display, class_table, summary
from consumers.recovery.clearing import ClearingRecovery
from consumers.recovery.marketplace import MarketplaceRecovery
from consumers.recovery.state import Recovery, State
from consumers.worker import Worker
from pipeline import cli
from pipeline.broker import Broker, connect
from pipeline.errors import (
    BrokerBusyError,
    FencedError,
    OutcomeUnknownError,
    OutOfStepError,
    SettingsError,
    SnapshotError,
)
from pipeline.monitoring.metrics import Metrics
from pipeline.monitoring.server import serving
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import Folder, Snapshot

log = logging.getLogger(__name__)

SHORTEST_WAIT, LONGEST_WAIT = 0.5, 10.0
"""Seconds between two tries where the broker is in trouble."""

TROUBLES = {
    BrokerBusyError: "busy",
    FencedError: "fenced",
    OutcomeUnknownError: "unknown",
    OutOfStepError: "out-of-step",
}
"""What passes, and as which kind it is counted."""

SETTINGS = (
    *("broker", "topic_prefix", "partitions", "retention", "retention_bytes", "replication", "session_timeout"),
    *("group", "learner", "base", "seed", "filters", "backend"),
    *("batch_size", "batch_wait", "window", "publish_images", "snapshots", "snapshot_images", "snapshots_kept"),
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
    folder = Folder.of(settings)
    start = _start(settings, arguments.snapshot, arguments.freeze, folder)
    with cli.stop_on_signals(cli.PATIENCE) as stop, closing(connect(settings.broker, settings)) as broker:
        topics = Topics(settings.topic_prefix)
        broker.ensure_topics([topics.source(settings), *topics.results()])
        group = settings.group + ("-frozen" if arguments.freeze else "")
        metrics = Metrics(CollectorRegistry())
        worker = Worker(
            broker,
            topics,
            transactional_id=_transactional_id(broker, topics, group),
            metrics=metrics,
            folder=None if arguments.freeze else folder,
            settings=settings,
        )
        recovery = (ClearingRecovery if settings.learner == "clearing" else MarketplaceRecovery)(
            broker=broker,
            topics=topics,
            group=group,
            folder=folder,
            start=start,
            frozen=arguments.freeze,
            settings=settings,
            heartbeat=worker.heartbeat,
        )
        display = Display(worker)
        if work(worker, recovery, metrics, display, stop, arguments.images):
            report(worker, group, display, arguments.json)
    return 0


def _start(settings: Settings, path: Path | None, freeze: bool, folder: Folder) -> Snapshot | None:
    """The model to begin with, or to serve. Raises SettingsError, SnapshotError."""
    if settings.base and settings.learner == "clearing":
        raise SettingsError(
            f"--base {settings.base}: clearing begins with a --snapshot; --base is for --learner marketplace"
        )
    if path and not freeze and settings.learner != "clearing":
        raise SettingsError(f"--snapshot {path}: marketplace begins with a --base, which may be one of its snapshots")
    if path:
        return snapshots.read(path)
    start = folder.newest() if freeze else None
    if freeze and start is None:
        raise SnapshotError(f"nothing to serve: no snapshot in {folder.path}; name one with --snapshot")
    return start


def work(
    worker: Worker, recovery: Recovery, metrics: Metrics, display: Display, stop: threading.Event, most: int | None
) -> bool:
    """Join the group, recover and work until told to stop; False if that came while the broker was out of reach.

    Trouble with the broker ends a session. The next one begins after a wait, each time a longer one.
    """
    settings = recovery.settings
    state: State | None = None
    lost: State | None = None  # out of step with what others have published
    newcomer, delay = True, SHORTEST_WAIT
    with ExitStack() as shown:
        address = settings.metrics_host, settings.metrics_port
        port = shown.enter_context(serving(metrics.registry, *address, worker.healthy))
        log.info("metrics at http://%s:%d/metrics", settings.metrics_host, port)
        while True:
            begun = time.monotonic()
            try:
                # Before joining: it takes a while, and whoever differs from those at work is not to disturb them.
                state = state or recovery.state(lost)
                with closing(recovery.consumer(stop)) as consumer, worker.joined(consumer, state, stop):
                    if newcomer:
                        recovery.restore_scores(state)
                        metrics.watch(worker)
                        shown.enter_context(display.shown())
                        newcomer = False
                    worker.run(stop, most)
                return True
            except tuple(TROUBLES) as error:
                metrics.broker_errors.labels(TROUBLES[type(error)]).inc()
                delay = SHORTEST_WAIT if time.monotonic() - begun > LONGEST_WAIT else min(2 * delay, LONGEST_WAIT)
                log.warning("%s; nothing is lost, trying again in %.1f s", error, delay)
                if isinstance(error, OutOfStepError) and state:
                    state.log.close()
                    state, lost = None, state
            if stop.wait(delay):
                log.warning("stopped while the broker was out of reach")
                return False
            worker.heartbeat()
            metrics.reconnects.inc()


def _transactional_id(broker: Broker, topics: Topics, group: str) -> str:
    """Where learners share a group, they must not fence each other: their places in the group fence them."""
    name = f"{topics.images}.{group}"
    return f"{name}.{uuid.uuid4().hex}" if broker.shares_groups else name


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
