"""How fast the learner is, in ratios taken in one run: absolute times differ from machine to machine.

    python -m benchmarks.speed

- learning from a stream against predicting it with learning switched off plus the bare symmetric zᵀz;
- end to end through the embedded broker against without a broker;
- after 500,000 images against after 50,000, with the memory that the process holds then.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from scipy.linalg.blas import ssyrk

from benchmarks import report
from benchmarks.accuracy import BATCH, Run, draw
from pipeline import cli
from pipeline.cores import blas_on_all_cores
from pipeline.data import scenario
from pipeline.data.stream import Stream, load_splits, make_stream
from pipeline.features import Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.settings import PREFIX, Settings

STREAM = 76_800
EARLY, LATE, STRETCH = 50_000, 500_000, 25_600
COMPARISONS = 3
PIECE = 15_360
"""Images from one part of learning to the next: whole squares of 1,024, so that none is cut in two."""


def begin(stream: Stream, settings: Settings) -> tuple[Run, Clearing]:
    """A learner that knows nothing, on a stream."""
    filters = Filters(settings.seed, settings.filters)
    learner = Clearing(make(filters, settings.backend), Sums.zero(filters.width))
    return Run(learner, stream, settings.window), learner


def timed(work: Callable[[], object]) -> float:
    """Seconds on the wall."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def square(width: int, times: int) -> float:
    """Seconds of so many bare symmetric products zᵀz of a micro-batch, on all cores, and of nothing else."""
    result = np.full((width, width), 0, np.float32, order="F")
    products = np.random.default_rng(0).integers(0, 256, (BATCH, width)).astype(np.float32)
    with blas_on_all_cores():
        begun = time.perf_counter()
        for _ in range(times):
            result = ssyrk(1.0, products.T, beta=1.0, c=result, overwrite_c=True, lower=True)
        return time.perf_counter() - begun


def learning(settings: Settings) -> dict[str, float]:
    """Learning, predicting and squaring, in turn on pieces of one stream, so that a busy machine slows all alike.

    Squares are computed behind the back of what follows, so learning ends when its sums are there.
    """
    run, learner = begin(draw("mixed", settings, STREAM), settings)
    width = learner.sums().width
    square(width, 3)
    learn = predict = squared = 0.0
    for start in range(0, STREAM, PIECE):
        predict += run.seconds(start, start + PIECE, learn=False)[0]
        learn += run.seconds(start, start + PIECE)[0] + timed(learner.sums)
        squared += square(width, PIECE // BATCH)
    return {
        "learn_images_per_second": STREAM / learn,
        "predict_images_per_second": STREAM / predict,
        "square_images_per_second": STREAM / squared,
        "learn_to_predict_and_square": learn / (predict + squared),
    }


def end_to_end(settings: Settings, broker: str | None = None, prefix: str = "") -> dict[str, float]:
    """A consumer of a filled topic, and the same stream without a broker before and after it.

    The median of three such comparisons. Without ``broker``, it is an embedded one.
    """
    found = [compared(settings, broker, f"{prefix}{turn}.") for turn in range(COMPARISONS)]
    return sorted(found, key=itemgetter("broker_to_brokerless"))[COMPARISONS // 2]


def compared(settings: Settings, broker: str | None, prefix: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        common = {"broker": broker or f"sqlite:///{folder}/stream.db", "topic_prefix": prefix}
        program("producers.replay", "mixed", "--rate", "0", "--images", STREAM, **common, producer_metrics_port=0)
        before = brokerless(settings)
        mine = {"group": f"{prefix}learn", "filters": settings.filters, "snapshots": folder, "metrics_port": 0}
        summary = program("consumers.learn", "--images", STREAM, **common, **mine)
    seconds = (before + brokerless(settings)) / 2
    return {
        "broker_images_per_second": summary["images_per_second"],
        "brokerless_images_per_second": STREAM / seconds,
        "broker_to_brokerless": summary["seconds"] / seconds,
    }


def brokerless(settings: Settings) -> float:
    """Seconds to learn from the stream without a broker."""
    seconds: float = begin(draw("mixed", settings, STREAM), settings)[0].seconds()[0]
    return seconds


def environment(**settings: object) -> dict[str, str]:
    """Variables that tell a program its settings."""
    return {**os.environ, **{f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items()}}


def program(module: str, *arguments: object, **settings: object) -> dict[str, Any]:
    """Run a program to its end; its JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment(**settings), check=True, capture_output=True)
    result: dict[str, Any] = orjson.loads(done.stdout)
    return result


def endurance(settings: Settings) -> dict[str, float]:
    """Speed of the same number of images, and memory, early and late in a long stream: ``mixed`` again and again."""
    long = scenario.load("mixed").model_copy(update={"repeat": True}).first(LATE + STRETCH)
    run, _ = begin(make_stream(long, load_splits(long, settings)), settings)
    run.seconds(0, EARLY)
    early, early_memory = run.seconds(EARLY, EARLY + STRETCH)[0], memory()
    run.seconds(EARLY + STRETCH, LATE)
    late, late_memory = run.seconds(LATE, LATE + STRETCH)[0], memory()
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


def main() -> int:
    arguments = cli.parser("Measure the learner's speed.", "filters", "backend", "window").parse_args()
    settings = cli.settings_of(arguments)
    # Endurance first: the most memory so far is then its own.
    result = endurance(settings) | learning(settings) | end_to_end(settings)
    rows = [(n.replace("_", " "), f"{value:,.0f}" if value > 50 else f"{value:.3f}") for n, value in result.items()]
    cli.tell(arguments.json, result, report.table(("what", "value"), rows))
    return 0


if __name__ == "__main__":
    cli.run(main)
