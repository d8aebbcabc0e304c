"""The dashboards: sound, readable, and never empty where a real learner is watched."""

import json
import re
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from benchmarks.dashboards import answered, draw
from deploy.local.queries import FOLDER, Panel, Query, QueryError, ask, marks, name, panels, read
from deploy.local.stack import SHIPPED, Stack, await_value, running
from pipeline.data.datasets import DIGITS, FASHION
from tests.deploy.metrics import exported, named

pytestmark = pytest.mark.xdist_group("one stack")

PROVISIONING = FOLDER.parent / "provisioning"
BOARDS = {path.stem: read(path) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [panel for board in BOARDS.values() for panel in panels(board)]
MARKS = [mark for board in BOARDS.values() for mark in marks(board)]

IMAGES = 4000
SCENARIO = """
name: small
about: The demo in small.
phases:
  - {name: digits, images: 1200, classes: {digits: 1}}
  - {name: dress, images: 800, classes: {digits: 3, Dress: 1}}
  - {name: clothes, images: 1200, classes: {digits: 1, fashion: 3}}
  - {name: digits-again, images: 800, classes: {digits: 1}}
rate: 250
"""


def label(panel: Panel) -> str:
    return f"{panel.dashboard}: {panel.title}"


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_file_is_as_grafana_exports_it_and_as_it_reads_it_from_disk(path: Path) -> None:
    text = path.read_text()
    board = json.loads(text)
    assert board.get("schemaVersion", 0) >= 41, "export the model Classic"
    assert {"__inputs", "__requires"} & set(board) == set(), "do not export it for another instance"
    assert {"id", "version"} & set(board) == set(), "these are of one Grafana: jq 'del(.id, .version)'"
    assert text == json.dumps(board, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "jq --sort-keys"
    assert {panel["type"] for panel in board["panels"]} <= {"timeseries", "stat", "table", "state-timeline"}


def test_addresses_of_dashboards_stay_as_they_are() -> None:
    assert {name: board["uid"] for name, board in BOARDS.items()} == {"learning": "learning", "pipeline": "pipeline"}


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_no_two_panels_overlap_or_share_id_or_title(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    assert len({panel["title"] for panel in board["panels"]}) == len(places)


@pytest.mark.parametrize("panel", PANELS, ids=label)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: Panel) -> None:
    assert panel.spec["description"].endswith(".")
    assert panel.spec["fieldConfig"]["defaults"]["unit"]
    assert panel.queries


@pytest.mark.parametrize("panel", PANELS, ids=label)
def test_a_panel_is_readable_on_a_laptop(panel: Panel) -> None:
    place = panel.spec["gridPos"]
    column, row = 1300 / 24, 38  # pixels, on a screen 1366 wide
    least = {"stat": (200, 120), "timeseries": (400, 250), "state-timeline": (400, 150), "table": (600, 600)}
    width, height = least[panel.spec["type"]]
    assert place["w"] * column >= width
    assert place["h"] * row >= height


def test_old_and_new_classes_are_told_apart_by_colour() -> None:
    (means,) = (panel for panel in PANELS if panel.title == "Old and new classes")
    colours = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in means.spec["fieldConfig"]["overrides"]
    }
    assert {query.legend for query in means.queries} == set(colours)
    assert len(set(colours.values())) == len(colours)


@pytest.mark.parametrize("query", [q for p in PANELS for q in p.queries] + MARKS, ids=lambda query: query.expr)
def test_queries_name_metrics_that_exist(query: Query) -> None:
    groups = yaml.safe_load((SHIPPED / "rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"]}
    assert named(query.expr) - exported() - recorded - {"up", "ALERTS"} == set()
    assert "$" not in query.expr


def test_what_is_provisioned_is_what_the_dashboards_ask_for() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    variables = [v for board in BOARDS.values() for v in board["templating"]["list"] if v["name"] == "datasource"]
    assert {variable["current"]["value"] for variable in variables} == {source["uid"]}
    shipped = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == shipped["global"]["scrape_interval"]


@pytest.fixture(scope="module")
def watched(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, float]]:
    """A stream that was replayed, learnt and watched to its end, and when that was."""
    folder = tmp_path_factory.mktemp("stack")
    (folder / "small.yaml").write_text(SCENARIO)
    learner = ("--filters", "16", "--window", "100")
    with running(folder, programs, "1s", [str(folder / "small.yaml")], learner) as stack:
        assert stack.producer.wait(60) == 0
        await_value(stack.url, "sum(marketplace_images_total)", IMAGES)
        yield stack, time.time()


@pytest.mark.parametrize("panel", PANELS, ids=label)
def test_no_panel_is_empty_where_a_learner_is_watched(watched: tuple[Stack, float], panel: Panel) -> None:
    stack, end = watched
    for query in panel.queries:
        lines = ask(stack.url, query, stack.began, end, 1)
        assert lines, query.expr
        assert all("{{" not in name(line, query) for line in lines)


def lines_of(watched: tuple[Stack, float], title: str) -> set[str]:
    stack, end = watched
    (panel,) = (panel for panel in PANELS if panel.title == title)
    return {name(line, query) for query in panel.queries for line in ask(stack.url, query, stack.began, end, 1)}


def test_every_class_is_shown_as_old_or_new(watched: tuple[Stack, float]) -> None:
    assert lines_of(watched, "Rolling accuracy: old classes") == set(DIGITS)
    assert lines_of(watched, "Rolling accuracy: new classes") == set(FASHION)


def test_memory_and_processors_of_every_process_are_shown(watched: tuple[Stack, float]) -> None:
    for title in ("Memory", "Processors"):
        assert {line.split()[0] for line in lines_of(watched, title)} == {"learner", "producer", "prometheus"}


def test_every_phase_is_marked_and_no_alert_is(watched: tuple[Stack, float]) -> None:
    stack, end = watched
    found = {query.ref: ask(stack.url, query, stack.began, end, 1) for query in MARKS}
    assert {line.labels["phase"] for line in found["Phases of the stream"]} == {
        phase["name"] for phase in yaml.safe_load(SCENARIO)["phases"]
    }
    assert found["Alerts"] == []


def test_a_query_that_prometheus_refuses_is_named(watched: tuple[Stack, float]) -> None:
    stack, end = watched
    with pytest.raises(QueryError, match=re.escape("sum(")):
        ask(stack.url, Query("A", "sum("), stack.began, end, 1)


def test_a_picture_of_both_dashboards_is_drawn_of_the_answers(watched: tuple[Stack, float], tmp_path: Path) -> None:
    stack, end = watched
    boards = [answered(stack.url, FOLDER / f"{name}.json", stack.began, end) for name in ("learning", "pipeline")]
    assert [len(board.panels) for board in boards] == [len(board["panels"]) for board in BOARDS.values()]
    draw(boards, tmp_path / "dashboards.png")
    with Image.open(tmp_path / "dashboards.png") as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    assert (tmp_path / "dashboards.png").stat().st_size < 400_000
