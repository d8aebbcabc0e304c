"""Scores of four learners, scraped by a real Prometheus: the dashboards show those of one group, rightly weighed."""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from deploy.local import prometheus
from deploy.local.process import free_ports
from deploy.local.queries import FOLDER, Line, Panel, Query, ask, name, panels, read
from deploy.local.stack import await_value, config
from pipeline.monitoring.metrics import Metrics
from pipeline.monitoring.scores import Scores
from pipeline.monitoring.server import serving
from tests.pipeline.monitoring.test_metrics import Progress

pytestmark = pytest.mark.xdist_group("four learners")

CLASSES = ("0", "7", "Dress")
WINDOW = 20
IMAGES = (400, 90, 30, 200)
"""Labelled images of each learner; the last one stands by now."""

PANELS = {panel.title: panel for path in FOLDER.glob("*.json") for panel in panels(read(path))}


def learner(number: int) -> tuple[Metrics, Scores]:
    """A learner's metrics: the more images it has had, the fewer mistakes it makes."""
    rng, scores = random.Random(number), Scores(WINDOW)
    labels = [rng.choice(CLASSES[: 2 + (number != 2)]) for _ in range(IMAGES[number])]
    scores.add((label, label if rng.random() < 0.4 + 0.15 * number else "0") for label in labels)
    metrics = Metrics(CollectorRegistry())
    metrics.watch(Progress(scores, generation=5 + number, model_images=sum(IMAGES)))
    metrics.settled_images.inc(IMAGES[number])
    metrics.at_work.set(number < 3)
    return metrics, scores


@pytest.fixture(scope="module")
def group(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Scores]]]:
    """The address of a Prometheus that has scraped all four, and their scores."""
    folder = tmp_path_factory.mktemp("several")
    with ExitStack() as stack:
        made = [learner(number) for number in range(len(IMAGES))]
        ports = [stack.enter_context(serving(m.registry, "127.0.0.1", 0, lambda: True)) for m, _ in made]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config({"learner": ports}, "1s")))
        url = stack.enter_context(prometheus.running(programs, folder / "prometheus.yml", *free_ports(1)))
        await_value(url, 'sum(up{job="learner"})', len(IMAGES))
        recorded = "timestamp(job:marketplace_rolling_accuracy_overall_ratio:avg)"
        await_value(url, f"{recorded} > bool {time.time()}", 1)
        yield url, [scores for _, scores in made]


def shown(url: str, panel: Panel, ref: str = "A") -> list[Line]:
    (query,) = (query for query in panel.queries if query.ref == ref)
    return ask(url, Query(ref, query.expr, query.legend, instant=True), 0, time.time(), 1)


def test_rolling_accuracy_of_a_class_is_over_the_images_of_all_learners_at_work(
    group: tuple[str, list[Scores]],
) -> None:
    url, scores = group
    for title in ("Rolling accuracy: old classes", "Rolling accuracy: new classes"):
        panel = PANELS[title]
        for line in shown(url, panel):
            found = [c for s in scores[:3] for c in s.classes() if c.name == name(line, panel.queries[0])]
            right = sum(c.rolling * c.recent for c in found)
            assert line.values[0] == pytest.approx(right / sum(c.recent for c in found))
    (plain,) = ask(
        url, Query("A", 'avg(marketplace_rolling_accuracy_ratio{class="7"})', instant=True), 0, time.time(), 1
    )
    weighed = [
        line.values[0] for line in shown(url, PANELS["Rolling accuracy: old classes"]) if "7" in line.labels.values()
    ]
    assert plain.values[0] != pytest.approx(weighed[0], abs=0.01)


def test_each_class_has_one_line_and_all_numbers_are_of_the_group(group: tuple[str, list[Scores]]) -> None:
    url, scores = group
    classes = [line.labels["class"] for line in shown(url, PANELS["Classes"], "C")]
    assert sorted(classes) == sorted(CLASSES)
    number = {
        title: shown(url, PANELS[title])[0].values for title in ("Right, all classes", "Images learnt", "Generation")
    }
    at_work = scores[:3]
    overall = sum(s.rolling * s.recent for s in at_work) / sum(s.recent for s in at_work)
    assert number["Right, all classes"] == pytest.approx([overall])
    assert number["Images learnt"] == (sum(IMAGES),)
    assert number["Generation"] == (8,)
    cells = shown(url, PANELS["What is taken for what"])
    for label in CLASSES:
        assert sum(cell.values[0] for cell in cells if cell.labels["label"] == label) == pytest.approx(1)


@pytest.mark.parametrize(
    "title", ["Right, old classes", "Right, new classes", "Most forgotten", "Classes seen", "Images a second"]
)
def test_a_number_is_one_number_for_four_learners_too(group: tuple[str, list[Scores]], title: str) -> None:
    assert len(shown(group[0], PANELS[title], "B" if title == "Images a second" else "A")) <= 1
