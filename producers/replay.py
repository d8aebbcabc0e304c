"""Replay a scenario into the topic ``images``.

    marketstream replay mixed [--rate 500] [--max-lag 10000] [--broker sqlite:///state/stream.db]

The position in the scenario is committed in the transaction that writes the records, so that a run which was
stopped, or killed at any moment, goes on where it was, without a gap and without a duplicate.
"""

import argparse
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from pipeline import cli
from pipeline.broker import Broker, Member, Partition, Position, Topic, connect
from pipeline.data.scenario import load
from pipeline.data.stream import Stream, load_splits, make_stream
from pipeline.errors import SettingsError
from pipeline.monitoring.metrics import ReplayMetrics
from pipeline.monitoring.server import serving
from pipeline.records.images import Encoding, encode
from pipeline.records.topics import Topics
from pipeline.settings import Settings

log = logging.getLogger(__name__)

MOST_RECORDS = 512
"""Records of one transaction. Twice a micro-batch: the embedded broker's rows and micro-batches then begin together."""

SLICE = 0.25
"""Seconds of stream that one transaction holds at most, where there is a rate."""

LAG_SECONDS = 0.02
"""How often a producer that is too far ahead looks again."""

LOG_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MaxLag:
    """Never be more than ``records`` ahead of what the consumer group has committed."""

    records: int
    group: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call of ``replay`` did: positions in the scenario, and the time it took."""

    start: int
    position: int
    seconds: float
    complete: bool


def replay(
    broker: Broker,
    stream: Stream,
    topic: Topic,
    stop: threading.Event,
    *,
    rate: float | None = None,
    max_lag: MaxLag | None = None,
    encoding: Encoding = "raw",
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Send a stream from where its run was to its end, or until ``stop`` is set and a transaction is whole.

    ``rate`` is in images/s; 0: as fast as possible; None: as the scenario says. ``progress`` is given the
    position at the start and after every commit. Raises SettingsError if the run belongs to another
    scenario, FencedError if another process took this run over, and what the broker raises.
    """
    name = f"replay-{stream.run}"
    broker.ensure_topics([topic])
    producer = broker.producer(name)  # before the position is read: from here on an older one cannot move it
    try:
        start = position = _committed(broker, stream, topic.name, name)
        began = due = time.monotonic()
        progress(position)
        while position < len(stream) and not stop.wait(max(0.0, due - time.monotonic())):
            pace = _pace(stream, position) if rate is None else rate
            end = min(position + _most(pace, max_lag), stream.span(position).stop)
            if max_lag and not _wait_for(broker, topic.name, max_lag, end - position, stop):
                break
            records = [encode(stream.record(i), topic.name, encoding) for i in range(position, end)]
            with producer.transaction() as transaction:
                transaction.produce(records)
                at_end = {Partition(topic.name, 0): Position(end, stream.scenario.digest())}
                transaction.commit_offsets(Member(name), at_end)
            if pace:  # a producer that fell behind makes up for a little of it, not all at once
                due = max(due, time.monotonic() - SLICE) + (end - position) / pace
            position = end
            progress(position)
        return Outcome(start, position, time.monotonic() - began, position >= len(stream))
    finally:
        producer.close()


def _committed(broker: Broker, stream: Stream, topic: str, name: str) -> int:
    position = broker.committed(name, topic).get(Partition(topic, 0), Position(0, stream.scenario.digest()))
    if position.note != stream.scenario.digest():
        raise SettingsError(
            f"run {stream.run!r} sent {position.offset:,} images of another scenario or seed to topic {topic!r}; "
            "choose another --run"
        )
    return position.offset


def _pace(stream: Stream, position: int) -> float:
    return stream.span(position).phase.rate or stream.scenario.rate or 0.0


def _most(pace: float, max_lag: MaxLag | None) -> int:
    """How many records the next transaction may have."""
    most = MOST_RECORDS
    if pace:
        most = min(most, int(pace * SLICE))
    if max_lag:  # in steps, so that the consumer need not run dry before it is sent more
        most = min(most, max_lag.records // 4)
    return max(1, most)


def _wait_for(broker: Broker, topic: str, max_lag: MaxLag, records: int, stop: threading.Event) -> bool:
    """Wait until so many records more are allowed; False if ``stop`` came first."""
    while _lag(broker, topic, max_lag.group) + records > max_lag.records:
        if stop.wait(LAG_SECONDS):
            return False
    return True


def _lag(broker: Broker, topic: str, group: str) -> int:
    """Records of the topic that the group has not committed."""
    extents, committed = broker.extents(topic), broker.committed(group, topic)
    return sum(
        extent.end - (committed[partition].offset if partition in committed else extent.first)
        for partition, extent in extents.items()
    )


@contextmanager
def _progress(stream: Stream, settings: Settings) -> Iterator[Callable[[int], None]]:
    """For people, a bar on a terminal and log lines elsewhere; and for Prometheus."""
    name, host = stream.scenario.name, settings.metrics_host
    metrics = ReplayMetrics(CollectorRegistry(), name, [span.phase.name for span in stream.phases])
    flag = "--producer-metrics-port"
    with (
        serving(metrics.registry, host, settings.producer_metrics_port, lambda: True, flag) as port,
        cli.bar(name, len(stream)) as bar,
    ):
        log.info("metrics at http://%s:%d/metrics", host, port)
        last: int | None = None
        said = -math.inf, ""  # when, and which phase

        def progress(position: int) -> None:
            nonlocal last, said
            phase, now = stream.span(position).phase.name, time.monotonic()
            if last is not None:  # what one transaction sends is of one phase
                metrics.sent(stream.span(last).phase.name, position - last)
            metrics.replaying(phase)
            last = position
            bar(completed=position, description=f"{name}: {phase}")
            if not sys.stderr.isatty() and (phase != said[1] or now - said[0] >= LOG_SECONDS):
                said = now, phase
                log.info("%s: %s of %s images, phase %s", stream.run, f"{position:,}", f"{len(stream):,}", phase)

        yield progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a scenario as the command line says."""
    options = _parser().parse_args(arguments)
    settings = cli.settings_of(options)
    if options.run and not re.fullmatch(r"[A-Za-z0-9._-]+", options.run):
        raise SettingsError(f"--run: expected letters, digits, '.', '_' or '-', but it is {options.run!r}")
    lag = None if options.max_lag is None else MaxLag(options.max_lag, settings.group)
    scenario = load(options.scenario, options.scenario_seed, options.images)
    stream = make_stream(scenario, load_splits(scenario, settings), options.run)
    topic = Topics(settings.topic_prefix).source(settings)
    with (
        cli.stop_on_signals(cli.PATIENCE) as stop,
        closing(connect(settings.broker, settings)) as broker,
        _progress(stream, settings) as progress,
    ):
        outcome = replay(
            broker, stream, topic, stop, rate=options.rate, max_lag=lag, encoding=options.encoding, progress=progress
        )
    _report(stream, outcome, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    topic = ("broker", "topic_prefix", "partitions", "retention", "retention_bytes", "replication")
    metrics = ("metrics_host", "producer_metrics_port")
    parser = cli.parser("Replay a scenario into the topic images.", *topic, "group", "data", "cache", *metrics)
    parser.add_argument("scenario", metavar="SCENARIO", help="a shipped scenario's name, or a file")
    parser.add_argument("--run", metavar="NAME", help="of the run, to resume or tell apart (default: SCENARIO-SEED)")
    cli.add_number(parser, "--images", 1, "how many images, instead of as many as the scenario has")
    cli.add_number(parser, "--rate", 0.0, "images/s, instead of the scenario's; 0: as fast as possible")
    cli.add_number(parser, "--max-lag", 1, "never be more than N images ahead of --group (default: no limit)")
    # under another name than the setting, which is the features' seed
    cli.add_number(parser, "--seed", 0, "seed, instead of the scenario's", dest="scenario_seed")
    parser.add_argument("--encoding", choices=("raw", "png", "jpeg"), default="raw", help="of pixels (default: raw)")
    return parser


def _report(stream: Stream, outcome: Outcome, json: bool) -> None:
    sent = outcome.position - outcome.start
    speed = sent / outcome.seconds if sent else 0.0
    if outcome.complete and not sent:
        again = "choose another --run to begin again"
        log.info("%s is already complete, at image %s; %s", stream.run, outcome.position, again)
    elif outcome.complete:
        log.info("%s is complete: %s images sent, %.0f images/s", stream.run, sent, speed)
    else:
        log.info("%s stopped at %s of %s; run it again to go on", stream.run, outcome.position, len(stream))
    result = {
        "scenario": stream.scenario.name,
        "run": stream.run,
        "images": len(stream),
        "sent": sent,
        "position": outcome.position,
        "seconds": outcome.seconds,
        "images_per_second": speed,
        "complete": outcome.complete,
    }
    cli.tell(json, result)


if __name__ == "__main__":
    cli.run(main)
