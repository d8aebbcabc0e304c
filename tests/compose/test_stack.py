"""What the shipped docker-compose.yml promises, in the order in which a user meets it: each test goes on where the one
before it stopped."""

import json
import sys
import time
from contextlib import closing

import pytest

from deploy.local import process, queries
from pipeline.broker import Record, connect
from pipeline.data import scenario
from pipeline.records.topics import Topics
from pipeline.settings import load
from tests.compose.engine import run
from tests.compose.stack import EXAMPLE, PATIENCE, PROJECT, ROOT, Stack, until

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800), pytest.mark.xdist_group("compose")]

SCENARIO = "demo"
ALERT = "LearnerDown"
SETTLED = "marketplace_model_images"
GRACE_SECONDS = 10.0
OWN_CLASS = "Umbrella"

STREAM_SECONDS = 900.0
"""To wait for the end of the stream, which takes 210 at its own rate."""


def assert_healthy(stack: Stack) -> None:
    states = stack.states()
    print(", ".join(f"{name} {state}" for name, state in sorted(states.items())))
    assert states.keys() == set(stack.services)
    assert set(states.values()) <= {"running healthy", "exited 0"}


def await_targets(stack: Stack) -> None:
    def look() -> bool:
        targets = stack.prometheus("targets")["activeTargets"]
        jobs = {target["labels"]["job"] for target in targets}
        return jobs >= {"learner", "producer", "prometheus"} and all(target["health"] == "up" for target in targets)

    until("all targets up", look)


def await_images(stack: Stack) -> None:
    first = until("images learnt", lambda: stack.metric(SETTLED))
    last = until("more images learnt", lambda: n if (n := stack.metric(SETTLED)) > first else None)
    print(f"{first:,.0f}, then {last:,.0f} images learnt")


def test_the_shipped_dockerfile_builds_the_image(stack: Stack) -> None:
    print("an engine of our own, stand-ins for images, no Grafana" if stack.engine.own else "the engine that answers")
    stack.compose("build", "--quiet")


def test_up_leaves_every_service_healthy_or_done(stack: Stack) -> None:
    stack.up()
    assert_healthy(stack)


def test_prometheus_reaches_learner_producer_and_itself(stack: Stack) -> None:
    await_targets(stack)


def test_images_are_predicted_and_learnt(stack: Stack) -> None:
    await_images(stack)


def test_down_and_up_go_on_where_they_stopped(stack: Stack) -> None:
    before = stack.metric(SETTLED)
    stack.down()
    stack.up()
    lines = stack.compose("logs", "--no-log-prefix", "producer").splitlines()
    sent = next(int(line.split()[4].replace(",", "")) for line in lines if f"{SCENARIO}-0: " in line)
    learnt = until("the learner's state", lambda: stack.metric(SETTLED))
    print(f"{before:,.0f} images were learnt; the producer went on at {sent:,}, the learner has {learnt:,.0f}")
    assert 0 < before <= min(sent, learnt)
    assert_healthy(stack)
    await_targets(stack)


def test_the_alert_fires_when_the_learner_is_stopped_and_clears_when_it_is_back(stack: Stack) -> None:
    def firing() -> bool:
        alerts = stack.prometheus("alerts")["alerts"]
        return any(alert["labels"]["alertname"] == ALERT and alert["state"] == "firing" for alert in alerts)

    assert not firing()
    begun = time.monotonic()
    stack.compose("stop", "learner")
    until(f"{ALERT} fires", firing)
    print(f"{ALERT} fired after {time.monotonic() - begun:.0f} s")
    stack.compose("start", "learner")
    until(f"{ALERT} clears", lambda: not firing())
    await_images(stack)


def test_a_record_that_is_no_image_becomes_a_dead_letter(stack: Stack) -> None:
    topics = Topics()
    with closing(connect(f"kafka://localhost:{stack.port('KAFKA_PORT')}")) as broker:
        with closing(broker.producer("compose-check")) as producer, producer.transaction() as transaction:
            transaction.produce([Record(topics.images, b"no image")])
        until("a dead letter", lambda: sum(extent.end for extent in broker.extents(topics.dead_letters).values()))


def test_every_rule_is_evaluated_and_every_recording_rule_gives_a_series(stack: Stack) -> None:
    named = queries.Query("A", 'count by (__name__) ({__name__=~".+:.+:.+"})', instant=True)

    def look() -> list[str] | None:
        rules = [rule for group in stack.prometheus("rules")["groups"] for rule in group["rules"]]
        recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
        series = {line.labels["__name__"] for line in queries.ask(stack.prometheus_url, named, 0, time.time(), 1)}
        sound = all(rule["health"] == "ok" for rule in rules) and recorded <= series
        return [rule["name"] for rule in rules] if sound else None

    print(", ".join(until("a series of every recording rule", look)))


def test_no_panel_and_no_mark_of_the_dashboards_is_empty(stack: Stack) -> None:
    boards = [queries.read(path) for path in sorted(queries.FOLDER.glob("*.json"))]
    asked = [query for board in boards for panel in queries.panels(board) for query in panel.queries]
    asked += [mark for board in boards for mark in queries.marks(board)]

    def empty() -> list[str]:
        now = time.time()
        return [q.expr for q in asked if not queries.ask(stack.prometheus_url, q, now - 1800, now, 5)]

    process.until(lambda: not empty(), PATIENCE)
    assert empty() == []
    print(f"{len(asked)} queries of {len(boards)} dashboards have data")


def test_at_the_end_of_the_stream_the_learner_stops_in_time_with_the_digest_of_a_run_without_a_broker(
    stack: Stack,
) -> None:
    total = scenario.load(SCENARIO).images
    until("the end of the stream", lambda: stack.metric(SETTLED) >= total, STREAM_SECONDS)
    begun = time.monotonic()
    stack.compose("stop", "learner")
    seconds = time.monotonic() - begun
    assert seconds <= GRACE_SECONDS
    assert stack.states()["learner"] == "exited 0"
    found = json.loads(stack.compose("logs", "--no-log-prefix", "learner").splitlines()[-1])["digest"]
    print(f"{total:,} images learnt, stopped within {seconds:.1f} s, digest {found}")
    command = (sys.executable, "-m", "benchmarks.accuracy", "--scenario", SCENARIO, "--cache", load({}).cache, "--json")
    assert found == json.loads(run(*command, env={"PYTHONPATH": str(ROOT)}))["digest"]


def test_images_of_a_class_of_ones_own_are_learnt_as_the_documentation_says(stack: Stack) -> None:
    stack.compose("start", "learner")
    [example] = EXAMPLE.findall((ROOT / "docs/deploy.md").read_text())
    run(sys.executable, "-c", example.replace("localhost:9092", f"localhost:{stack.port('KAFKA_PORT')}"))
    until(f"images of {OWN_CLASS}", lambda: stack.metric(f'marketplace_images_total{{class="{OWN_CLASS}"}}') >= 100)


def test_down_with_volumes_leaves_nothing(stack: Stack) -> None:
    stack.forget()
    mine = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
    for kind in (("container", "ls", "--all"), ("volume", "ls"), ("network", "ls")):
        assert stack.engine.docker(*kind, *mine) == ""
