"""Which metrics exist, and which ones a query names."""

import re

from prometheus_client import CollectorRegistry

from pipeline.monitoring.metrics import Metrics, ReplayMetrics
from tests.pipeline.monitoring.test_metrics import Progress

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
_WORDS = {"and", "or", "unless", "bool", "offset"}

_STRINGS = r'"(?:[^"\\]|\\.)*"'
_GROUPINGS = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
_SELECTORS = r"\{[^}]*\}|\[[^\]]*\]"
_NAMES = r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])"


def exported() -> set[str]:
    """The names of all samples of learner and producer."""
    learner, producer = CollectorRegistry(), CollectorRegistry()
    Metrics(learner).watch(Progress())
    ReplayMetrics(producer, "demo", ["digits"])
    families = [*learner.collect(), *producer.collect()]
    return {f.name + suffix for f in families for suffix in _SUFFIXES.get(f.type, ("",))}


def named(expr: str) -> set[str]:
    """The metrics that a query names: all words but functions, labels and operators."""
    for noise in (_STRINGS, _GROUPINGS, _SELECTORS):
        expr = re.sub(noise, " ", expr)
    return set(re.findall(_NAMES, expr)) - _WORDS
