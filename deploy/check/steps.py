"""What is asserted of a stack that runs. Each step returns the line that is printed when it holds."""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from deploy.check.engine import run
from deploy.check.stack import ROOT, Stack
from deploy.local import queries
from pipeline.broker import Record, connect
from pipeline.data import scenario
from pipeline.errors import MarketstreamError
from pipeline.records.topics import Topics

SCENARIO = "demo"
ALERT = "LearnerDown"
SETTLED = "marketplace_model_images"
GRACE_SECONDS = 10.0

PATIENCE = 180.0
"""Seconds to wait for what should come soon, on a machine that has other things to do too."""

STREAM_SECONDS = 900.0
"""The same for the end of the stream, which takes 210 at its own rate."""
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
OWN_CLASS = "Umbrella"

T = TypeVar("T")


class CheckError(MarketstreamError):
    """Something that was asserted does not hold."""


def until(what: str, look: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """What ``look`` finds, as soon as it finds something. Raises CheckError if it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, StopIteration):  # not up yet
            if found := look():
                return found
        time.sleep(0.5)
    raise CheckError(f"{what}: not within {seconds:.0f} s")


def healthy(stack: Stack) -> str:
    """Every service runs and is healthy, or ran once and succeeded."""
    states = stack.states()
    wrong = {name: state for name, state in states.items() if state not in ("running healthy", "exited 0")}
    if wrong or not states:
        raise CheckError(f"not healthy: {wrong or 'nothing runs'}")
    return "all are healthy: " + ", ".join(f"{name} {state}" for name, state in sorted(states.items()))


def targets_up(stack: Stack) -> str:
    """Prometheus reaches learner, producer and itself."""

    def look() -> list[str] | None:
        targets = stack.prometheus("targets")["activeTargets"]
        jobs = sorted(target["labels"]["job"] for target in targets)
        up = all(target["health"] == "up" for target in targets)
        return jobs if up and {"learner", "producer", "prometheus"} <= set(jobs) else None

    return "all targets are up: " + ", ".join(until("all targets up", look))


def data_flows(stack: Stack) -> str:
    """Images are predicted and learnt from."""
    first = until("images learnt", lambda: stack.metric(SETTLED))
    last = until("more images learnt", lambda: n if (n := stack.metric(SETTLED)) > first else None)
    return f"data flows: {first:,.0f}, then {last:,.0f} images learnt"


def dead_letter(stack: Stack) -> str:
    """A record that is no image is put aside, and counted; the rest goes on."""
    topics = Topics()
    with closing(connect(f"kafka://localhost:{stack.port('KAFKA_PORT')}")) as broker:
        with closing(broker.producer("compose-check")) as producer, producer.transaction() as transaction:
            transaction.produce([Record(topics.images, b"no image")])

        def look() -> int:
            return sum(extent.end for extent in broker.extents(topics.dead_letters).values())

        until("a dead letter", look)
    return "through the published port: a record that is no image became a dead letter"


def rules_work(stack: Stack) -> str:
    """Every rule was evaluated without an error, and every recording rule gives a series."""

    def look() -> tuple[int, int] | None:
        rules = [rule for group in stack.prometheus("rules")["groups"] for rule in group["rules"]]
        if not rules or any(rule["health"] != "ok" for rule in rules):
            return None
        recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
        known = set(run_query(stack, 'count by (__name__) ({__name__=~".+:.+:.+"})'))
        return (len(recorded), len(rules) - len(recorded)) if recorded <= known else None

    recording, alerting = until("a series of every recording rule", look)
    return f"{recording} recording rules give their series, {alerting} alerts are evaluated"


def run_query(stack: Stack, expression: str) -> list[str]:
    """The names of the metrics that a query gives now."""
    lines = queries.ask(stack.prometheus_url, queries.Query("A", expression, instant=True), 0, time.time(), 1)
    return [line.labels["__name__"] for line in lines]


def resumes(stack: Stack) -> str:
    """``down`` and ``up`` go on where it stopped."""
    before = stack.metric(SETTLED)
    stack.down()
    stack.up()
    lines = stack.compose("logs", "--no-log-prefix", "producer").splitlines()
    sent = next(int(line.split()[4].replace(",", "")) for line in lines if f"{SCENARIO}-0: " in line)
    learnt = until("the learner's state", lambda: stack.metric(SETTLED))
    if not 0 < before <= min(sent, learnt):
        raise CheckError(
            f"{before:,.0f} images were learnt, then the producer began at {sent:,}, of {learnt:,.0f} learnt"
        )
    return f"down and up: the producer went on at {sent:,}, the learner has {learnt:,.0f} images"


def alert_fires_and_clears(stack: Stack) -> str:
    """The alert fires when the learner is stopped, and clears when it is back."""

    def firing() -> set[str]:
        return {a["labels"]["alertname"] for a in stack.prometheus("alerts")["alerts"] if a["state"] == "firing"}

    if ALERT in firing():
        raise CheckError(f"{ALERT} fires while the learner runs")
    begun = time.monotonic()
    stack.compose("stop", "learner")
    until(f"{ALERT} fires", lambda: ALERT in firing())
    fired = time.monotonic() - begun
    stack.compose("start", "learner")
    until(f"{ALERT} clears", lambda: ALERT not in firing())
    return f"{ALERT} fired {fired:.0f} s after the learner was stopped, and cleared when it was back"


def panels_have_data(stack: Stack, since: float) -> str:
    """Every query of every panel, and every mark, has an answer with numbers in it."""
    boards = [queries.read(path) for path in sorted(queries.FOLDER.glob("*.json"))]
    panels = [panel for board in boards for panel in queries.panels(board)]
    asked = [(f"{panel.dashboard}: {panel.title}", query) for panel in panels for query in panel.queries]
    asked += [(f"{board['title']}: mark {mark.ref}", mark) for board in boards for mark in queries.marks(board)]

    def empty() -> list[str]:
        now = time.time()
        return [
            f"{where}: {query.expr}"
            for where, query in asked
            if not queries.ask(stack.prometheus_url, query, since, now, 5)
        ]

    with suppress(CheckError):
        until("all panels", lambda: not empty())
    if missing := empty():
        raise CheckError("no data for " + "; ".join(missing))
    return f"all {len(asked)} queries of {len(panels)} panels in {len(boards)} dashboards have data"


def same_digest(stack: Stack, cache: Path) -> str:
    """At the end of the stream the sums are those of a run without any broker; SIGTERM is honoured in time."""
    total = scenario.load(SCENARIO).images
    until("the end of the stream", lambda: stack.metric(SETTLED) >= total, STREAM_SECONDS)
    begun = time.monotonic()
    stack.compose("stop", "learner")
    seconds = time.monotonic() - begun
    if seconds > GRACE_SECONDS or stack.states()["learner"] != "exited 0":
        raise CheckError(f"the learner took {seconds:.1f} s to stop: {stack.states()['learner']}")
    found = json.loads(stack.compose("logs", "--no-log-prefix", "learner").splitlines()[-1])["digest"]
    command = (sys.executable, "-m", "benchmarks.accuracy", "--scenario", SCENARIO, "--cache", cache, "--json")
    wanted = json.loads(run(*command, env={"PYTHONPATH": str(ROOT)}))["digest"]
    if found != wanted:
        raise CheckError(f"digest {found} of {total:,} images, but without a broker it is {wanted}")
    return f"{total:,} images learnt, stopped within {seconds:.1f} s, digest as without a broker: {found}"


def own_images(stack: Stack) -> str:
    """The example of docs/deploy.md, as it stands there, is a class that is learnt."""
    stack.compose("start", "learner")
    found = EXAMPLE.search((ROOT / "docs/deploy.md").read_text())
    if not found:
        raise CheckError("docs/deploy.md has no example")
    code = found[1].replace("localhost:9092", f"localhost:{stack.port('KAFKA_PORT')}")
    run(sys.executable, "-c", code)
    until(f"images of {OWN_CLASS}", lambda: stack.metric(f'marketplace_images_total{{class="{OWN_CLASS}"}}') >= 100)
    return "the example of docs/deploy.md sent images of a class of its own, and they were learnt"
