"""Every metric, in the one place where metrics are defined."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.monitoring.scores import NOTHING, ClassScore, Scores
from pipeline.records.images import REASONS

MOST_NAMES = 100
"""Classes that metrics name; all later ones share the name ``other``."""

OTHER = "other"

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Progress(Protocol):
    """What a worker knows about itself, read when Prometheus scrapes."""

    @property
    def scores(self) -> Scores: ...
    @property
    def generation(self) -> int: ...
    @property
    def settled_images(self) -> int: ...
    @property
    def lag(self) -> Mapping[int, int]: ...


@dataclass(frozen=True)
class Metrics:
    """The metrics that are counted where things happen. The registry is passed in, never the global one."""

    registry: CollectorRegistry
    quote_seconds: Histogram = field(init=False)
    settle_seconds: Histogram = field(init=False)
    clear_seconds: Histogram = field(init=False)
    take_over_seconds: Histogram = field(init=False)
    settled_images: Counter = field(init=False)
    dead_letters: Counter = field(init=False)
    snapshots: Counter = field(init=False)
    last_clear: Gauge = field(init=False)
    transactions: Counter = field(init=False)
    broker_errors: Counter = field(init=False)
    reconnects: Counter = field(init=False)
    rebalances: Counter = field(init=False)
    at_work: Gauge = field(init=False)

    def __post_init__(self) -> None:
        def histogram(name: str, about: str) -> Histogram:
            return Histogram(name, about, namespace="marketplace", buckets=BUCKETS, registry=self.registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, namespace="marketplace", registry=self.registry)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(name, about, namespace="marketplace", registry=self.registry)

        made = {
            "quote_seconds": histogram("quote_seconds", "Time to quote a micro-batch."),
            "settle_seconds": histogram("settle_seconds", "Time to settle a micro-batch and add what was found."),
            "clear_seconds": histogram("clear_seconds", "Time of a clearing: sums become weights."),
            "take_over_seconds": histogram("take_over_seconds", "Time from an assignment until it is served."),
            "settled_images": counter("settled_images", "Images that this learner learnt from."),
            "dead_letters": counter("dead_letters", "Records that could not be used, by reason.", "reason"),
            "snapshots": counter("snapshots", "Snapshots written."),
            "last_clear": gauge("last_clear_timestamp_seconds", "When the weights were last made."),
            "transactions": counter("transactions", "Micro-batches sent to the broker, by outcome.", "outcome"),
            "broker_errors": counter("broker_errors", "Troubles with the broker, by kind.", "kind"),
            "reconnects": counter("reconnects", "Times that work was taken up again after trouble with the broker."),
            "rebalances": counter("rebalances", "Times that partitions were assigned anew while at work."),
            "at_work": gauge("at_work", "1: learning or serving; 0: standing by, or waiting for the broker."),
        }
        for name, metric in made.items():
            object.__setattr__(self, name, metric)
        for outcome in ("committed", "aborted", "unknown"):  # from 0 on, so that the first one counts as a rise
            self.transactions.labels(outcome)
        for reason in (*REASONS, "classes", "loss"):
            self.dead_letters.labels(reason)
        for kind in ("busy", "fenced", "unknown", "out-of-step"):
            self.broker_errors.labels(kind)
        ProcessCollector(registry=self.registry)
        build = Gauge("build_info", "Always 1.", ["version"], namespace="marketplace", registry=self.registry)
        build.labels(version("marketstream")).set(1)

    def watch(self, progress: Progress) -> None:
        """Export a worker's scores and state, read anew at every scrape."""
        self.registry.register(_ProgressCollector(progress))


class _ProgressCollector(Collector):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        p = self._progress
        classes = _named(p.scores)
        for name, about, values in (
            ("images", "Labelled images that were predicted.", {c.name: c.images for c in classes}),
            ("correct", "Those predicted right before the label was known.", {c.name: c.correct for c in classes}),
        ):
            yield _counter(name, about, ["class"], {(c,): value for c, value in values.items()})
        for name, about, gauges in (
            ("rolling_images", "Images that rolling accuracy is over.", {c.name: c.recent for c in classes}),
            ("rolling_accuracy_ratio", "Right among a class's last images.", {c.name: c.rolling for c in classes}),
            (
                "forgetting_ratio",
                "Best rolling accuracy less the present one.",
                {c.name: c.forgetting for c in classes},
            ),
        ):
            yield _gauge(name, about, ["class"], {(c,): value for c, value in gauges.items()})
        yield _confusion(p.scores)
        for name, about, overall in (
            ("rolling_accuracy_overall_ratio", "Right among the last images of any class.", p.scores.rolling),
            ("rolling_overall_images", "Images that rolling accuracy over all classes is over.", p.scores.recent),
        ):
            yield _gauge(name, about, [], {(): overall} if classes else {})
        lag: dict[tuple[str, ...], float] = {(str(partition),): records for partition, records in p.lag.items()}
        yield _gauge("consumer_lag_records", "Records of images that were not read yet.", ["partition"], lag)
        yield _gauge("generation", "Version of the weights that are served.", [], {(): p.generation})
        # A gauge: images may be taken back, and go with a partition that is lost before they are published.
        about = "Images that the model is made of, whoever learnt from them."
        yield _gauge("model_images", about, [], {(): p.settled_images})


def _counter(name: str, about: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(f"marketplace_{name}", about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, about: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(f"marketplace_{name}", about, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _named(scores: Scores) -> list[ClassScore]:
    """The classes that metrics name, and all others taken together."""
    named = set(scores.names()[:MOST_NAMES])
    together: dict[str, list[ClassScore]] = {}
    for c in scores.classes():
        together.setdefault(c.name if c.name in named else OTHER, []).append(c)
    return [_merged(name, classes) for name, classes in together.items()]


def _merged(name: str, classes: Sequence[ClassScore]) -> ClassScore:
    images = sum(c.images for c in classes)
    recent = sum(c.recent for c in classes)
    rolling = sum(c.rolling * c.recent for c in classes) / recent
    forgetting = sum(c.forgetting * c.recent for c in classes) / recent
    return ClassScore(name, images, sum(c.correct for c in classes), rolling, forgetting, recent)


def _confusion(scores: Scores) -> Metric:
    named = {NOTHING, *scores.names()[:MOST_NAMES]}
    cells: dict[tuple[str, ...], float] = {}
    for pair, count in scores.confusion().items():
        key = tuple(name if name in named else OTHER for name in pair)
        cells[key] = cells.get(key, 0) + count
    return _counter("confusion", "Labelled images by what they are and were taken for.", ["label", "predicted"], cells)


class ReplayMetrics:
    """What a producer shows: which phase of its scenario is being replayed, and how many images were sent.

    Parameters
    ----------
    phases
        Their names. Each has its series from the start, so that no first image is missed.
    """

    def __init__(self, registry: CollectorRegistry, scenario: str, phases: Sequence[str]) -> None:
        self.registry = registry
        self._images = Counter(
            "replayed_images", "Images sent, by phase.", ["phase"], namespace="marketplace", registry=registry
        )
        about = "1 for the phase that is being replayed."
        phase = Gauge("replay_phase", about, ["scenario", "phase"], namespace="marketplace", registry=registry)
        self._phases = {name: phase.labels(scenario, name) for name in phases}
        for name in phases:
            self._images.labels(name)
        ProcessCollector(registry=registry)

    def sent(self, phase: str, images: int) -> None:
        """So many images more of a phase are on the topic."""
        self._images.labels(phase).inc(images)

    def replaying(self, phase: str) -> None:
        """This phase is being replayed, and no other."""
        for name, gauge in self._phases.items():
            gauge.set(name == phase)
