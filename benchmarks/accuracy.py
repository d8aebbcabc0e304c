"""A scenario through a learner, without a broker: how well it predicts while learning, and what it knows at the end.

python -m benchmarks.accuracy --scenario mixed --learner clearing --seed 0
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks import report
from benchmarks.learners.table import LEARNERS, digest, make
from pipeline import cli
from pipeline.data import datasets, scenario
from pipeline.data.datasets import CLASSES, DIGITS, FASHION
from pipeline.data.stream import Stream, load_splits, make_stream
from pipeline.features import takes_blas
from pipeline.learners.protocol import AnyLearner
from pipeline.monitoring.scores import ClassScore, Scores
from pipeline.settings import Settings

BATCH = 256
LAST = 50
DRESS = "Dress"
DRESS_AFTER = (0, 1, 2, 3, 5, 10, 25, 50, 100, 240, 500, 1000, 2000, 3250)
"""Micro-batches since the first dress after which test dresses are looked at."""

WITH_DRESSES = ("dress", "published", "published-stream")
"""Scenarios in which they are."""

CPU = "CPU"
"""As tinygrad calls it."""

PREDICT_ONLY = 100
"""Micro-batches that are predicted once more at the end, with learning switched off."""

log = logging.getLogger(__name__)

GROUPS = {"digits": DIGITS, "fashion": FASHION, "overall": CLASSES}

Names = Sequence[str | None]


def draw(name: str, settings: Settings, images: int | None = None) -> Stream:
    """The stream of a scenario, or its first images."""
    drawn = scenario.load(name, seed=settings.seed, images=images)
    return make_stream(drawn, load_splits(drawn, settings))


def judged(labels: Names, predictions: Names) -> list[tuple[str, str | None]]:
    """Label and prediction of all images that have a label."""
    return [(label, p) for label, p in zip(labels, predictions, strict=True) if label is not None]


def grouped(classes: Sequence[ClassScore], ratio: Callable[[Sequence[ClassScore]], float]) -> dict[str, Any]:
    """A ratio of every class, and of the classes of each group together; None where none of them was seen."""
    known = {c.name: c for c in classes}

    def of(names: Sequence[str]) -> float | None:
        some = [known[name] for name in names if name in known]
        return ratio(some) if some else None

    return {
        **{name: of(members) for name, members in GROUPS.items()},
        "classes": {name: of([name]) for name in CLASSES},
    }


def accuracy(scores: Scores) -> dict[str, Any]:
    """Accuracy over the images of the groups, and of every class."""
    return grouped(scores.classes(), lambda some: sum(c.correct for c in some) / sum(c.images for c in some))


def forgetting(classes: Sequence[ClassScore]) -> dict[str, Any]:
    """Forgetting at the end of the stream: of every class, and the mean over the classes of each group."""
    return grouped(classes, lambda some: sum(c.forgetting for c in some) / len(some))


class HeldOut:
    """The test images, and how much of them a learner gets right; right is what the scenario has them called."""

    def __init__(self, settings: Settings, renamed: Mapping[str, str] | None = None) -> None:
        splits = [datasets.load(name, "test", settings) for name in ("mnist", "fashion-mnist")]
        self.images = np.concatenate([split.images for split in splits])
        self.labels = [split.classes[i] for split in splits for i in split.labels]
        self._right = [(renamed or {}).get(label, label) for label in self.labels]

    def accuracy(self, learner: AnyLearner, names: Sequence[str] = CLASSES) -> dict[str, Any]:
        """Of the test images of some classes."""
        chosen, scores = [i for i, label in enumerate(self.labels) if label in names], Scores(1)
        for start in range(0, len(chosen), BATCH):
            some = chosen[start : start + BATCH]
            found = zip(some, learner.quote(self.images[some]).predictions(), strict=True)
            scores.add((self.labels[i], self.labels[i] if p == self._right[i] else None) for i, p in found)
        return accuracy(scores)


class Step(NamedTuple):
    """A micro-batch that was done, in ``seconds`` of a clock on the wall and of processor time."""

    number: int
    outcomes: list[tuple[str, str | None]]
    seconds: NDArray[np.float64]


class Run:
    """A learner on a stream, as the consumer has it, without the broker: predict, then learn, in micro-batches."""

    def __init__(self, learner: AnyLearner, stream: Stream, window: int) -> None:
        self.learner, self.stream, self.scores = learner, stream, Scores(window)

    def steps(self, start: int = 0, stop: int | None = None, learn: bool = True) -> Iterator[Step]:
        """A part of the stream; with learning switched off it is only predicted."""
        stop = len(self.stream) if stop is None else stop
        for at in range(start, stop, BATCH):
            end = min(at + BATCH, stop)
            images, labels = self.stream.images(at, end), self.stream.labels[at:end]
            begun = np.array([time.perf_counter(), time.process_time()])
            quotes = self.learner.quote(images)
            outcomes = judged(labels, quotes.predictions())
            self.scores.add(outcomes)
            if learn:
                self.learner.add(self.learner.settle(quotes, labels))
                self.learner.clear()
            yield Step(at // BATCH, outcomes, np.array([time.perf_counter(), time.process_time()]) - begun)

    def seconds(self, start: int = 0, stop: int | None = None, learn: bool = True) -> tuple[float, float]:
        """What such a part takes: on the wall, and of processor time."""
        wall, processor = np.sum([step.seconds for step in self.steps(start, stop, learn)], axis=0).tolist()
        return wall, processor


class DressWatch:
    """Held-out accuracy on the dresses, and on the digits beside them, at set places after the first dress.

    ``base`` is what the learner knew of them before the stream: dresses, digits.
    """

    def __init__(self, run: Run, held_out: HeldOut) -> None:
        self._run, self._held_out = run, held_out
        self._first = next((s.start // BATCH for s in run.stream.phases if DRESS in s.phase.classes), math.inf)
        self.dress: dict[str, float] = {}
        self.digits: dict[str, float] = {}
        self.base = self._seen()

    def look(self, number: int) -> None:
        """Micro-batch ``number`` was done."""
        if (after := number + 1 - self._first) in DRESS_AFTER:
            self.dress[str(after)], self.digits[str(after)] = seen = self._seen()
            log.info("%d micro-batches after the first dress: dresses %.4f, digits %.4f", after, *seen)

    def summary(self) -> dict[str, Any]:
        """All of it, and the digits' worst; nothing if there was no dress."""
        if not self.dress:
            return {}
        return {
            "base_dress": self.base[0],
            "base_digits": self.base[1],
            "held_out_dress_after": self.dress,
            "held_out_digits_after": self.digits,
            "least_digits": min(self.digits.values()),
        }

    def _seen(self) -> tuple[float, float]:
        seen = self._held_out.accuracy(self._run.learner, [*DIGITS, DRESS])
        return seen["classes"][DRESS], seen["digits"]


def ends(stream: Stream) -> list[tuple[int, list[str]]]:
    """The micro-batch in which each phase but the last ends, and its classes."""
    phases = [(span.stop, span.phase.classes) for span in stream.phases[:-1]]
    return [
        (-(-stop // BATCH) - 1, [name for entry in entries for name in scenario.GROUPS.get(entry, (entry,))])
        for stop, entries in phases
    ]


def measure(name: str, learner_name: str, seed: int, images: int | None, settings: Settings) -> dict[str, Any]:
    """Everything that this benchmark prints, as one object.

    ``relative_speed`` is that of learning to that of only predicting, in processor time: it hardly depends on what else
    the machine has to do. On an accelerator processor time says nothing, and it is None.
    ``held_out_forgetting`` is about classes of phases before the last.
    """
    settings = settings.model_copy(update={"seed": seed})
    stream = draw(name, settings, images)
    run, last, seconds = Run(make(learner_name, settings), stream, settings.window), Scores(1), np.zeros(2)
    held_out = HeldOut(settings, stream.scenario.labels)
    phases, then = ends(stream), dict[str, float]()
    watch = DressWatch(run, held_out) if stream.scenario.name in WITH_DRESSES else None
    for step in run.steps():
        seconds += step.seconds
        if step.number >= -(-len(stream) // BATCH) - LAST:
            last.add(step.outcomes)
        for names in (names for number, names in phases if number == step.number):
            seen = held_out.accuracy(run.learner, names)["classes"]
            then |= {name: seen[name] for name in names}
        if watch:
            watch.look(step.number)
    again = min(PREDICT_ONLY * BATCH, len(stream))
    wall, processor = Run(run.learner, stream, settings.window).seconds(stop=again, learn=False)
    known, device = held_out.accuracy(run.learner), device_of(learner_name, settings)
    return {
        "scenario": stream.scenario.name,
        "learner": learner_name,
        "seed": seed,
        "device": device,
        "images": len(stream),
        "seconds": float(seconds[0]),
        "images_per_second": len(stream) / float(seconds[0]),
        "predict_only_images_per_second": again / wall,
        "relative_speed": len(stream) / float(seconds[1]) * processor / again if device == CPU else None,
        "state_bytes": LEARNERS[learner_name].state_bytes(run.learner),
        "digest": digest(run.learner, settings),
        "prequential": accuracy(run.scores),
        f"last_{LAST}": accuracy(last),
        "held_out": known,
        "forgetting": forgetting(run.scores.classes()),
        "held_out_forgetting": {name: right - known["classes"][name] for name, right in then.items()},
        **(watch.summary() if watch else {}),
    }


def device_of(learner: str, settings: Settings) -> str:
    """Where it computes: tinygrad's device, or the CPU for BLAS."""
    if takes_blas(settings.backend) and not learner.startswith("backprop"):
        return CPU
    from pipeline.features.tinygrad import default_device

    return default_device()


def table(result: Mapping[str, Any]) -> Table:
    """The result for a person."""
    head = ("class", "prequential", f"last {LAST} micro-batches", "held out", "forgetting")
    kinds = [result[kind] for kind in ("prequential", f"last_{LAST}", "held_out", "forgetting")]
    cells = {name: [kind[name] for kind in kinds] for name in GROUPS}
    cells |= {name: [kind["classes"][name] for kind in kinds] for name in CLASSES}
    rows = [(name, *("–" if x is None else f"{x:.4f}" for x in row)) for name, row in cells.items()]
    return report.table(head, rows)


def dresses(result: Mapping[str, Any]) -> Iterator[str]:
    """How the dresses came up, and what the digits lost by it, for a person; nothing without dresses."""
    if "held_out_dress_after" not in result:
        return
    base = result["base_digits"]
    yield f"before the stream: dresses {result['base_dress']:.4f}, digits {base:.4f}"
    for after, ratio in result["held_out_dress_after"].items():
        digits = result["held_out_digits_after"][after]
        yield f"{after:>4} micro-batches after the first dress: dresses {ratio:.4f}, digits {digits:.4f}"
    if base:
        least = result["least_digits"]
        yield f"the digits' worst: {least:.4f}, {100 * (least - base):+.2f} points from before the stream"


def main() -> int:
    parser = cli.parser(
        "Run a scenario through a learner without a broker.", "filters", "backend", "base", "window", "data", "cache"
    )
    parser.add_argument("--scenario", default="mixed", metavar="NAME", help="a shipped scenario, or a path")
    parser.add_argument("--learner", dest="name", default="clearing", choices=list(LEARNERS))
    cli.add_number(parser, "--seed", 0, "moves stream and features", default=0)
    cli.add_number(parser, "--images", 1, "first N images; past the end the last phase goes on")
    arguments = parser.parse_args()
    r = measure(arguments.scenario, arguments.name, arguments.seed, arguments.images, cli.settings_of(arguments))
    speed = f"{r['images_per_second']:,.0f} a second ({r['predict_only_images_per_second']:,.0f} without learning)"
    last = f"{r['scenario']}, seed {r['seed']}: {r['images']:,} images, {speed}"
    bits = [f"digest {r['digest']}"] if r["digest"] else []
    cli.tell(arguments.json, r, table(r), *dresses(r), last, *bits)
    return 0


if __name__ == "__main__":
    cli.run(main)
