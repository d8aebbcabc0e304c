"""Every metric, in the one place where metrics are defined."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.monitoring.scores import NOTHING, ClassScore, Scores
from pipeline.records.images import REASONS

NAMESPACE = "marketplace"
"""Begins the name of every metric."""

MOST_NAMES = 100
"""So many classes have series of their own. All later ones share the name ``other``."""

OTHER = "other"

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Seconds at which the buckets of every histogram end."""

Values = Mapping[tuple[str, ...], float]
"""The values of a metric by the values of its labels."""


class Progress(Protocol):
    """What a worker tells about itself. It is read whenever Prometheus scrapes."""

    @property
    def scores(self) -> Scores: ...
    @property
    def generation(self) -> int: ...
    @property
    def model_images(self) -> int: ...
    @property
    def lag(self) -> Mapping[int, int]: ...


class Metrics:
    """The metrics that are counted where things happen.

    Parameters
    ----------
    registry
        Holds them. Each learner has one of its own; the global one stays empty.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry, buckets=BUCKETS)

        self.quote_seconds = histogram("quote_seconds", "Time to quote a micro-batch.")
        self.settle_seconds = histogram("settle_seconds", "Time to settle a micro-batch.")
        self.clear_seconds = histogram("clear_seconds", "Time of a clearing: sums become weights.")
        self.take_over_seconds = histogram("take_over_seconds", "Time from an assignment until it is served.")
        self.settled_images = counter("settled_images", "Images that this learner learnt from.")
        self.dead_letters = counter("dead_letters", "Records that could not be used, by reason.", ["reason"])
        self.snapshots = counter("snapshots", "Snapshots written.")
        self.last_clear = gauge("last_clear_timestamp_seconds", "When the weights were last made.")
        self.transactions = counter("transactions", "Micro-batches sent to the broker, by outcome.", ["outcome"])
        self.broker_errors = counter("broker_errors", "Troubles with the broker, by kind.", ["kind"])
        self.reconnects = counter("reconnects", "Times that work was taken up again after trouble with the broker.")
        self.rebalances = counter("rebalances", "Times that partitions were assigned anew while at work.")
        self.at_work = gauge("at_work", "1: learning or serving; 0: standing by, or waiting for the broker.")
        gauge("build_info", "Always 1.", ["version"]).labels(version("marketstream")).set(1)
        ProcessCollector(registry=registry)

        # A series that begins at 0 shows its first event as a rise.
        for outcome in ("committed", "aborted", "unknown"):
            self.transactions.labels(outcome)
        for reason in (*REASONS, "classes", "loss"):
            self.dead_letters.labels(reason)
        for kind in ("busy", "fenced", "unknown", "out-of-step"):
            self.broker_errors.labels(kind)

    def watch(self, progress: Progress) -> None:
        """Export a worker's scores and state. Every scrape reads them anew."""
        self.registry.register(_ProgressCollector(progress))


class _ProgressCollector(Collector):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterator[Metric]:
        p, scores = self._progress, self._progress.scores
        classes = _named(scores)

        def each(value: Callable[[ClassScore], float]) -> Values:
            return {(c.name,): value(c) for c in classes}

        yield _counter("images", "Labelled images that were predicted.", each(lambda c: c.images), "class")
        yield _counter(
            "correct", "Those predicted right before the label was known.", each(lambda c: c.correct), "class"
        )
        yield _gauge("rolling_images", "Images that rolling accuracy is over.", each(lambda c: c.recent), "class")
        yield _gauge("rolling_accuracy_ratio", "Right among a class's last images.", each(lambda c: c.rolling), "class")
        yield _gauge(
            "forgetting_ratio", "Best rolling accuracy less the present one.", each(lambda c: c.forgetting), "class"
        )
        about = "Labelled images by what they are and were taken for."
        yield _counter("confusion", about, _confusion(scores), "label", "predicted")
        about = "Right among the last images of any class."
        yield _gauge("rolling_accuracy_overall_ratio", about, {(): scores.rolling} if classes else {})
        about = "Images that rolling accuracy over all classes is over."
        yield _gauge("rolling_overall_images", about, {(): scores.recent} if classes else {})
        lag: Values = {(str(partition),): records for partition, records in p.lag.items()}
        yield _gauge("consumer_lag_records", "Records of images that were not read yet.", lag, "partition")
        yield _gauge("generation", "Version of the weights that are served.", {(): p.generation})
        # A gauge: images may be taken back, and go with a partition that is lost before they are published.
        about = "Images that the model is made of, whoever learnt from them."
        yield _gauge("model_images", about, {(): p.model_images})


def _counter(name: str, about: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"{NAMESPACE}_{name}", about, labels=labels), values)


def _gauge(name: str, about: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"{NAMESPACE}_{name}", about, labels=labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
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


def _confusion(scores: Scores) -> Values:
    named = {NOTHING, *scores.names()[:MOST_NAMES]}
    cells: dict[tuple[str, ...], float] = {}
    for pair, count in scores.confusion().items():
        key = tuple(name if name in named else OTHER for name in pair)
        cells[key] = cells.get(key, 0) + count
    return cells


class ReplayMetrics:
    """What a producer shows: the phase of its scenario that is being replayed, and how many images were sent.

    Parameters
    ----------
    registry
        Holds the metrics.
    scenario
        Its name.
    phases
        Their names. Each has its series from the start, so that its first images show as a rise.
    """

    def __init__(self, registry: CollectorRegistry, scenario: str, phases: Sequence[str]) -> None:
        self.registry = registry
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        self._images = counter("replayed_images", "Images sent, by phase.", ["phase"])
        phase = gauge("replay_phase", "1 for the phase that is being replayed.", ["scenario", "phase"])
        self._phases = {name: phase.labels(scenario, name) for name in phases}
        for name in phases:
            self._images.labels(name)
        ProcessCollector(registry=registry)

    def sent(self, phase: str, images: int) -> None:
        """Count that many more images of a phase as sent."""
        self._images.labels(phase).inc(images)

    def replaying(self, phase: str) -> None:
        """Show that this phase is being replayed, and no other."""
        for name, gauge in self._phases.items():
            gauge.set(name == phase)
