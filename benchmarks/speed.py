"""How fast the learner is, in ratios taken in one run: absolute times differ from machine to machine.

    python -m benchmarks.speed

- learning from a stream against predicting it with learning switched off plus the bare symmetric zᵀz;
- end to end through the embedded broker against without a broker;
- after 500,000 images against after 50,000, with the memory that the process holds then.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from scipy.linalg.blas import ssyrk

from pipeline import cli
from pipeline.cores import blas_on_all_cores
from pipeline.data import scenario
from pipeline.data.stream import Stream, load_splits, make_stream
from pipeline.features import Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.monitoring.scores import Scores
from pipeline.settings import Settings

BATCH = 256
STREAM = 76_800
EARLY, LATE, STRETCH = 50_000, 500_000, 25_600
COMPARISONS = 3
PIECE = 15_360
"""Images from one part of learning to the next: whole squares of 1,024, so that none is cut in two."""


def batches(stream: Stream, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
    for i in range(start, stop, BATCH):
        yield stream.images(i, min(i + BATCH, stop)), stream.labels[i : min(i + BATCH, stop)]


def learn(learner: Clearing, scores: Scores, images: Any, labels: Any) -> None:
    """One micro-batch as the consumer does it, without the broker."""
    quotes = learner.quote(images)
    scores.add(zip(labels, quotes.predictions(), strict=True))
    learner.add(learner.settle(quotes, labels))
    learner.clear()


def predict(learner: Clearing, scores: Scores, images: Any, labels: Any) -> None:
    """The same with learning switched off."""
    scores.add(zip(labels, learner.quote(images).predictions(), strict=True))


def timed(work: Callable[[Any, Any], None], stream: Stream, start: int, stop: int) -> float:
    """Seconds for a stretch of the stream."""
    begun = time.perf_counter()
    for images, labels in batches(stream, start, stop):
        work(images, labels)
    return time.perf_counter() - begun


def finished(learner: Clearing) -> float:
    """Seconds until no core is busy with what was learnt: the squares are computed behind the back of what follows."""
    begun = time.perf_counter()
    learner.sums()
    return time.perf_counter() - begun


class Square:
    """The bare symmetric product of a micro-batch's products, on all cores, and nothing else."""

    def __init__(self, width: int) -> None:
        self._square = np.zeros((width, width), np.float32, order="F")
        self._products = np.random.default_rng(0).integers(0, 256, (BATCH, width)).astype(np.float32)

    def seconds(self, times: int) -> float:
        with blas_on_all_cores():
            begun = time.perf_counter()
            for _ in range(times):
                self._square = ssyrk(1.0, self._products.T, beta=1.0, c=self._square, overwrite_c=True, lower=True)
            return time.perf_counter() - begun


def learning(settings: Settings) -> dict[str, float]:
    """Learning, predicting and squaring, in turn on pieces of one stream, so that a busy machine slows all alike."""
    stream = drawn("mixed", STREAM, settings)
    filters = Filters(0, settings.filters)
    learner, scores = Clearing(make(filters, settings.backend), Sums.zero(filters.width)), Scores(settings.window)
    square = Square(filters.width)
    square.seconds(3)
    seconds = {"learn": 0.0, "predict": 0.0, "square": 0.0}
    for start in range(0, STREAM, PIECE):
        stop = start + PIECE
        seconds["predict"] += timed(lambda x, y: predict(learner, scores, x, y), stream, start, stop)
        seconds["learn"] += timed(lambda x, y: learn(learner, scores, x, y), stream, start, stop) + finished(learner)
        seconds["square"] += square.seconds((stop - start) // BATCH)
    return {f"{name}_images_per_second": STREAM / value for name, value in seconds.items()} | {
        "learn_to_predict_and_square": seconds["learn"] / (seconds["predict"] + seconds["square"]),
    }


def end_to_end(settings: Settings, broker: str | None = None, prefix: str = "") -> dict[str, float]:
    """A consumer of a filled topic, and the same stream without a broker before and after it.

    The median of three such comparisons. Without ``broker``, it is an embedded one.
    """
    found = [compared(settings, broker, f"{prefix}{turn}.") for turn in range(COMPARISONS)]
    return sorted(found, key=itemgetter("broker_to_brokerless"))[COMPARISONS // 2]


def compared(settings: Settings, broker: str | None, prefix: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        url = broker or f"sqlite:///{Path(folder) / 'stream.db'}"
        common = ["--broker", url, "--topic-prefix", prefix, "--images", str(STREAM), "--json"]
        run("producers.replay", "mixed", "--rate", "0", "--producer-metrics-port", "0", *common)
        before = brokerless(settings)
        learner = ["--filters", str(settings.filters), "--snapshots", f"{folder}/snapshots", "--metrics-port", "0"]
        summary = run("consumers.learn", "--group", f"{prefix}learn", *learner, *common)
    seconds = (before + brokerless(settings)) / 2
    return {
        "broker_images_per_second": summary["images_per_second"],
        "brokerless_images_per_second": STREAM / seconds,
        "broker_to_brokerless": summary["seconds"] / seconds,
    }


def brokerless(settings: Settings) -> float:
    """Seconds to learn from the stream without a broker."""
    stream = drawn("mixed", STREAM, settings)
    filters = Filters(0, settings.filters)
    learner, scores = Clearing(make(filters, settings.backend), Sums.zero(filters.width)), Scores(settings.window)
    return timed(lambda images, labels: learn(learner, scores, images, labels), stream, 0, STREAM)


def run(module: str, *arguments: str) -> dict[str, Any]:
    """A program's JSON."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True)
    result: dict[str, Any] = orjson.loads(done.stdout)
    return result


def endurance(settings: Settings) -> dict[str, float]:
    """Speed of the same number of images, and memory, early and late in a long stream."""
    stream = drawn("long", LATE + STRETCH, settings)
    filters = Filters(0, settings.filters)
    learner, scores = Clearing(make(filters, settings.backend), Sums.zero(filters.width)), Scores(settings.window)

    def work(images: Any, labels: Any) -> None:
        learn(learner, scores, images, labels)

    timed(work, stream, 0, EARLY)
    early, early_memory = timed(work, stream, EARLY, EARLY + STRETCH), memory()
    timed(work, stream, EARLY + STRETCH, LATE)
    late, late_memory = timed(work, stream, LATE, LATE + STRETCH), memory()
    return {
        "early_images_per_second": STRETCH / early,
        "late_images_per_second": STRETCH / late,
        "late_to_early": late / early,
        "early_megabytes": early_memory,
        "late_megabytes": late_memory,
    }


def memory() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def drawn(name: str, images: int, settings: Settings) -> Stream:
    """A stream; ``long`` is the mixed one, gone through again and again."""
    chosen = scenario.load("mixed", images=None if name == "long" else images)
    if name == "long":
        chosen = chosen.model_copy(update={"repeat": True}).first(images)
    return make_stream(chosen, load_splits(chosen, settings))


def measure(settings: Settings) -> dict[str, float]:
    """Everything that this benchmark prints, as one object."""
    # Endurance first: the most memory so far is then its own.
    return endurance(settings) | learning(settings) | end_to_end(settings)


def main() -> int:
    arguments = cli.parser("Measure the learner's speed.", "filters", "backend", "window").parse_args()
    result = measure(cli.settings_of(arguments))
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return 0
    table = Table("what", "value")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if value > 50 else f"{value:.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    cli.run(main)
