"""Metrics: what Prometheus reads is what happened, under names that stay."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pipeline.monitoring.metrics import MOST_NAMES, OTHER, Metrics
from pipeline.monitoring.scores import NOTHING, Scores
from pipeline.records.images import REASONS

Outcome = tuple[str, str | None]
Key = tuple[str, ...]


@dataclass
class Progress:
    """A worker that is asked how it fares."""

    scores: Scores = field(default_factory=lambda: Scores(4))
    generation: int = 0
    model_images: int = 0
    lag: Mapping[int, int] = field(default_factory=dict)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def families(metrics: Metrics) -> list[Metric]:
    """What a scrape gives. Fails if a series is there twice."""
    found = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    series = [(s.name, tuple(sorted(s.labels.items()))) for family in found for s in family.samples]
    assert len(series) == len(set(series))
    return found


def samples(metrics: Metrics) -> dict[str, dict[Key, float]]:
    """Values by name and the values of the labels."""
    result: dict[str, dict[Key, float]] = {}
    for family in families(metrics):
        for sample in family.samples:
            result.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return result


def scrape(outcomes: Iterable[Outcome], window: int = 4) -> dict[str, dict[Key, float]]:
    """What a worker with these outcomes shows."""
    metrics, progress = Metrics(CollectorRegistry()), Progress(Scores(window))
    progress.scores.add(outcomes)
    metrics.watch(progress)
    return samples(metrics)


def test_names_types_and_labels_are_those_of_the_dashboards(metrics: Metrics) -> None:
    progress = Progress(lag={0: 3})
    progress.scores.add([("a", "a")])
    metrics.watch(progress)
    metrics.dead_letters.labels("shape").inc()
    shown = {
        family.name: (family.type, sorted({label for s in family.samples for label in s.labels} - {"le"}))
        for family in families(metrics)
        if not family.name.endswith("_created") and not family.name.startswith("process_")
    }
    assert shown == {
        "marketplace_images": ("counter", ["class"]),
        "marketplace_correct": ("counter", ["class"]),
        "marketplace_confusion": ("counter", ["label", "predicted"]),
        "marketplace_rolling_accuracy_ratio": ("gauge", ["class"]),
        "marketplace_rolling_images": ("gauge", ["class"]),
        "marketplace_forgetting_ratio": ("gauge", ["class"]),
        "marketplace_rolling_accuracy_overall_ratio": ("gauge", []),
        "marketplace_rolling_overall_images": ("gauge", []),
        "marketplace_generation": ("gauge", []),
        "marketplace_model_images": ("gauge", []),
        "marketplace_settled_images": ("counter", []),
        "marketplace_consumer_lag_records": ("gauge", ["partition"]),
        "marketplace_quote_seconds": ("histogram", []),
        "marketplace_settle_seconds": ("histogram", []),
        "marketplace_clear_seconds": ("histogram", []),
        "marketplace_take_over_seconds": ("histogram", []),
        "marketplace_dead_letters": ("counter", ["reason"]),
        "marketplace_snapshots": ("counter", []),
        "marketplace_transactions": ("counter", ["outcome"]),
        "marketplace_broker_errors": ("counter", ["kind"]),
        "marketplace_reconnects": ("counter", []),
        "marketplace_rebalances": ("counter", []),
        "marketplace_at_work": ("gauge", []),
        "marketplace_last_clear_timestamp_seconds": ("gauge", []),
        "marketplace_build_info": ("gauge", ["version"]),
    }
    counters = {name for name, (kind, _) in shown.items() if kind == "counter"}
    assert {f"{name}_total" for name in counters} <= set(samples(metrics))


def test_scores_are_shown_class_by_class() -> None:
    seen = scrape([("a", "a"), ("a", "a"), ("a", "a"), ("a", "a"), ("a", "b"), ("b", None), ("b", "b")])
    assert seen["marketplace_images_total"] == {("a",): 5, ("b",): 2}
    assert seen["marketplace_correct_total"] == {("a",): 4, ("b",): 1}
    assert seen["marketplace_rolling_accuracy_ratio"] == {("a",): 0.75, ("b",): 0.5}
    assert seen["marketplace_forgetting_ratio"] == {("a",): 0.25, ("b",): 0.0}
    assert seen["marketplace_rolling_images"] == {("a",): 4, ("b",): 2}
    assert seen["marketplace_rolling_accuracy_overall_ratio"] == {(): 0.5}
    assert seen["marketplace_rolling_overall_images"] == {(): 4}
    assert seen["marketplace_confusion_total"] == {("a", "a"): 4, ("a", "b"): 1, ("b", NOTHING): 1, ("b", "b"): 1}


def test_a_worker_is_read_anew_at_every_scrape(metrics: Metrics) -> None:
    progress = Progress()
    metrics.watch(progress)
    progress.scores.add([("a", "a")])
    progress.generation, progress.model_images, progress.lag = 7, 4096, {0: 5, 11: 0}
    seen = samples(metrics)
    assert seen["marketplace_images_total"] == {("a",): 1}
    assert seen["marketplace_generation"] == {(): 7}
    assert seen["marketplace_model_images"] == {(): 4096}
    assert seen["marketplace_consumer_lag_records"] == {("0",): 5, ("11",): 0}
    progress.scores.add([("a", "b")])
    assert samples(metrics)["marketplace_images_total"] == {("a",): 2}


def test_what_no_image_came_of_has_no_series() -> None:
    seen = scrape([])
    for name in ("images_total", "correct_total", "confusion_total", "rolling_accuracy_ratio", "forgetting_ratio"):
        assert f"marketplace_{name}" not in seen
    assert "marketplace_rolling_accuracy_overall_ratio" not in seen
    assert "marketplace_rolling_overall_images" not in seen
    assert seen["marketplace_model_images"] == seen["marketplace_settled_images_total"] == {(): 0}


@pytest.mark.parametrize("more", [0, 1, 30])
def test_classes_past_the_hundredth_are_taken_together(more: int) -> None:
    names = [f"class {i}" for i in range(MOST_NAMES + more)]
    outcomes = [(name, names[0]) for name in names] + [(name, name) for name in names[MOST_NAMES:]]
    seen = scrape(outcomes)
    images = seen["marketplace_images_total"]
    expected = {(name,) for name in names[:MOST_NAMES]} | ({(OTHER,)} if more else set())
    assert set(images) == set(seen["marketplace_rolling_accuracy_ratio"]) == expected
    if more:
        assert images[OTHER,] == 2 * more
        assert seen["marketplace_correct_total"][OTHER,] == more
        assert seen["marketplace_rolling_accuracy_ratio"][OTHER,] == pytest.approx(0.5)
        assert seen["marketplace_confusion_total"][OTHER, names[0]] == more
        assert seen["marketplace_confusion_total"][OTHER, OTHER] == more


LABELS = st.sampled_from(["a", "b", "c", OTHER])
OUTCOMES = st.lists(st.tuples(LABELS, st.one_of(LABELS, st.none())), max_size=30)


@settings(max_examples=30)
@given(OUTCOMES)
def test_confusion_adds_up_to_images(outcomes: list[Outcome]) -> None:
    seen = scrape(outcomes)
    confusion, images = seen.get("marketplace_confusion_total", {}), seen.get("marketplace_images_total", {})
    assert sum(confusion.values()) == sum(images.values()) == len(outcomes)
    for (name,), count in images.items():
        assert sum(n for (label, _), n in confusion.items() if label == name) == count
        assert confusion.get((name, name), 0) == seen["marketplace_correct_total"][name,]


def test_a_class_that_is_called_other_shares_its_series_and_none_is_lost() -> None:
    names = [OTHER, *(f"class {i}" for i in range(MOST_NAMES + 1))]
    seen = scrape([(name, name) for name in names])
    for name in ("images_total", "correct_total", "confusion_total"):
        assert sum(seen[f"marketplace_{name}"].values()) == len(names)


def test_what_was_taken_for_a_class_that_no_image_came_of_yet_is_named() -> None:
    """A worker that begins with an earlier model may predict such a class."""
    assert scrape([("a", "b")])["marketplace_confusion_total"] == {("a", "b"): 1}


@settings(max_examples=30)
@given(OUTCOMES, OUTCOMES)
def test_counters_never_go_down(before: list[Outcome], after: list[Outcome]) -> None:
    earlier, later = scrape(before), scrape([*before, *after])
    for name in (name for name in earlier if name.endswith("_total")):
        for key, value in earlier[name].items():
            assert later[name].get(key, 0) >= value


def test_times_are_counted_in_seconds_from_a_millisecond_to_ten_seconds(metrics: Metrics) -> None:
    for seconds in (0.0005, 0.003, 9.0, 60.0):
        metrics.quote_seconds.observe(seconds)
    seen = samples(metrics)
    buckets = {float(le): count for (le,), count in seen["marketplace_quote_seconds_bucket"].items()}
    assert [buckets[le] for le in (0.001, 0.002, 0.005, 5, 10, float("inf"))] == [1, 1, 2, 2, 3, 4]
    assert seen["marketplace_quote_seconds_sum"] == {(): pytest.approx(69.0035)}
    for name in ("settle", "clear", "take_over"):
        assert {float(le) for (le,) in seen[f"marketplace_{name}_seconds_bucket"]} == set(buckets)


def test_what_happens_is_counted(metrics: Metrics) -> None:
    metrics.dead_letters.labels("shape").inc()
    metrics.dead_letters.labels("shape").inc()
    metrics.snapshots.inc()
    metrics.last_clear.set(1.5e9)
    seen = samples(metrics)
    dead = seen["marketplace_dead_letters_total"]
    assert dead.pop(("shape",)) == 2
    assert set(dead) == {(r,) for r in (*REASONS, "classes", "loss")} - {("shape",)}  # so that the first one is a rise
    assert set(dead.values()) == {0}
    assert seen["marketplace_snapshots_total"] == {(): 1}
    assert seen["marketplace_last_clear_timestamp_seconds"] == {(): 1.5e9}
    assert list(seen["marketplace_build_info"].values()) == [1]


def test_each_registry_has_its_own_and_the_global_one_has_none(metrics: Metrics) -> None:
    other = Metrics(CollectorRegistry())
    other.watch(Progress(generation=5))
    other.snapshots.inc()
    assert samples(metrics)["marketplace_snapshots_total"] == {(): 0}
    assert "marketplace_generation" not in samples(metrics)
    assert b"marketplace_" not in generate_latest(REGISTRY)
