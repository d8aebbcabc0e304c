"""A scenario through a learner, without a broker: how well it predicts while learning, and what it knows at the end.

python -m benchmarks.accuracy --scenario mixed --learner clearing --seed 0
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

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


@dataclass
class Outcomes:
    """Images of each class, and those that were right."""

    images: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)

    def add(self, labels: Sequence[str | None], predictions: Sequence[str | None]) -> None:
        for label, predicted in zip(labels, predictions, strict=True):
            if label is not None:
                self.images[label] = self.images.get(label, 0) + 1
                self.right[label] = self.right.get(label, 0) + (label == predicted)

    def summary(self) -> dict[str, Any]:
        """Accuracy of the groups, over their images, and of every class; None where there was no image."""
        groups = {name: self._accuracy(members) for name, members in GROUPS.items()}
        return {**groups, "classes": {name: self._accuracy([name]) for name in CLASSES}}

    def _accuracy(self, names: Sequence[str]) -> float | None:
        images = sum(self.images.get(name, 0) for name in names)
        return sum(self.right.get(name, 0) for name in names) / images if images else None


def forgetting(classes: Sequence[ClassScore]) -> dict[str, Any]:
    """Forgetting at the end of the stream: of every class, and the mean over the classes of each group."""
    by_name = {c.name: c.forgetting for c in classes}
    groups = {
        name: float(np.mean(known)) if (known := [by_name[m] for m in members if m in by_name]) else None
        for name, members in GROUPS.items()
    }
    return {**groups, "classes": {name: by_name.get(name) for name in CLASSES}}


class HeldOut:
    """The test images, and how much of them a learner gets right."""

    def __init__(self, settings: Settings, renamed: Mapping[str, str] | None = None) -> None:
        splits = [datasets.load(name, "test", settings) for name in ("mnist", "fashion-mnist")]
        self.images = np.concatenate([split.images for split in splits])
        self.labels = [split.classes[i] for split in splits for i in split.labels]
        self._renamed = renamed or {}

    def outcomes(self, learner: AnyLearner, names: Sequence[str] = CLASSES) -> Outcomes:
        """What the learner makes of the test images of some classes; right is what the scenario has them called."""
        chosen = [i for i, label in enumerate(self.labels) if label in names]
        result = Outcomes()
        for start in range(0, len(chosen), BATCH):
            some = chosen[start : start + BATCH]
            labels = [self.labels[i] for i in some]
            predicted = learner.quote(self.images[some]).predictions()
            right = [p == self._renamed.get(name, name) for p, name in zip(predicted, labels, strict=True)]
            result.add(labels, [name if good else None for name, good in zip(labels, right, strict=True)])
        return result


class Run:
    """One pass of a learner over a stream: predict, then learn, a micro-batch at a time."""

    def __init__(self, learner: AnyLearner, stream: Stream, window: int) -> None:
        self.learner, self.stream = learner, stream
        self.prequential, self.last, self.scores = Outcomes(), Outcomes(), Scores(window)
        self.seconds = self.processor_seconds = 0.0

    def through(self, after: Callable[[int], None]) -> None:
        """All of the stream; ``after`` is called with the number of each micro-batch done, outside the timing."""
        total = -(-len(self.stream) // BATCH)
        for number in range(total):
            images, labels = self._batch(number)
            begun, worked = time.perf_counter(), time.process_time()
            predictions = self._learn(images, labels)
            self.seconds += time.perf_counter() - begun
            self.processor_seconds += time.process_time() - worked
            self.prequential.add(labels, predictions)
            if number >= total - LAST:
                self.last.add(labels, predictions)
            after(number)

    def _batch(self, number: int) -> tuple[NDArray[np.uint8], tuple[str | None, ...]]:
        span = slice(number * BATCH, (number + 1) * BATCH)
        return self.stream.images(span.start, span.stop), self.stream.labels[span]

    def _learn(self, images: NDArray[np.uint8], labels: Sequence[str | None]) -> list[str | None]:
        quotes = self.learner.quote(images)
        predictions: list[str | None] = quotes.predictions()
        self.scores.add((label, p) for label, p in zip(labels, predictions, strict=True) if label is not None)
        self.learner.add(self.learner.settle(quotes, labels))
        self.learner.clear()
        return predictions

    def predict_only(self) -> tuple[float, float]:
        """Images a second with learning switched off, and images a second of processor time."""
        count = min(PREDICT_ONLY, -(-len(self.stream) // BATCH))
        seconds, processor_seconds, images = 0.0, 0.0, 0
        for number in range(count):
            pixels, labels = self._batch(number)
            begun, worked = time.perf_counter(), time.process_time()
            predictions = self.learner.quote(pixels).predictions()
            scores = [(label, p) for label, p in zip(labels, predictions, strict=True) if label is not None]
            Scores(1).add(scores)
            seconds += time.perf_counter() - begun
            processor_seconds += time.process_time() - worked
            images += len(pixels)
        return images / seconds, images / processor_seconds


class DressWatch:
    """Held-out accuracy on the dresses, and on the digits beside them, at set places after the first dress.

    ``base`` is what the learner knew of them before the stream: dresses, digits.
    """

    def __init__(self, run: Run, held_out: HeldOut) -> None:
        self._run, self._held_out = run, held_out
        first = next((s.start for s in run.stream.phases if DRESS in s.phase.classes), None)
        self._first = None if first is None else first // BATCH
        self.dress: dict[str, float] = {}
        self.digits: dict[str, float] = {}
        self.base = self._seen()

    def look(self, number: int) -> None:
        """Micro-batch ``number`` was done."""
        if self._first is not None and (after := number + 1 - self._first) in DRESS_AFTER:
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
        seen = self._held_out.outcomes(self._run.learner, [*DIGITS, DRESS]).summary()
        return seen["classes"][DRESS], seen["digits"]


class PhaseWatch:
    """Held-out accuracy on the classes of each phase when it ends, to tell at the end what was forgotten since."""

    def __init__(self, run: Run, held_out: HeldOut) -> None:
        self._run, self._held_out = run, held_out
        self._phases = list(run.stream.phases)
        self._known: dict[str, float] = {}

    def look(self, number: int) -> None:
        """Micro-batch ``number`` was done."""
        while len(self._phases) > 1 and (number + 1) * BATCH >= self._phases[0].stop:
            entries = self._phases.pop(0).phase.classes
            names = [name for entry in entries for name in scenario.GROUPS.get(entry, (entry,))]
            seen = self._held_out.outcomes(self._run.learner, names).summary()["classes"]
            self._known |= {name: seen[name] for name in names}

    def forgotten(self, held_out: Mapping[str, Any]) -> dict[str, float]:
        """Of every class of a phase that ended: accuracy then, less the accuracy at the end of the stream."""
        return {name: known - held_out["classes"][name] for name, known in self._known.items()}


def measure(name: str, learner_name: str, seed: int, images: int | None, settings: Settings) -> dict[str, Any]:
    """Everything that this benchmark prints, as one object.

    ``relative_speed`` is that of learning to that of only predicting, in processor time: it hardly depends on what else
    the machine has to do. On an accelerator processor time says nothing, and it is None.
    ``held_out_forgetting`` is about classes of phases before the last.
    """
    settings = settings.model_copy(update={"seed": seed})
    drawn = scenario.load(name, seed=seed, images=images)
    stream = make_stream(drawn, load_splits(drawn, settings))
    run = Run(make(learner_name, settings), stream, settings.window)
    held_out = HeldOut(settings, drawn.labels)
    phases = PhaseWatch(run, held_out)
    watch = DressWatch(run, held_out) if drawn.name in WITH_DRESSES else None

    def after(number: int) -> None:
        phases.look(number)
        if watch:
            watch.look(number)

    run.through(after)
    only, only_processor = run.predict_only()
    known = held_out.outcomes(run.learner).summary()
    device = device_of(learner_name, settings)
    return {
        "scenario": drawn.name,
        "learner": learner_name,
        "seed": seed,
        "device": device,
        "images": len(stream),
        "seconds": run.seconds,
        "images_per_second": len(stream) / run.seconds,
        "predict_only_images_per_second": only,
        "relative_speed": len(stream) / run.processor_seconds / only_processor if device == CPU else None,
        "state_bytes": LEARNERS[learner_name].state_bytes(run.learner),
        "digest": digest(run.learner, settings),
        "prequential": run.prequential.summary(),
        f"last_{LAST}": run.last.summary(),
        "held_out": known,
        "forgetting": forgetting(run.scores.classes()),
        "held_out_forgetting": phases.forgotten(known),
        **(watch.summary() if watch else {}),
    }


def device_of(learner: str, settings: Settings) -> str:
    """Where it computes: tinygrad's device, or the CPU for BLAS."""
    if takes_blas(settings.backend) and not learner.startswith("backprop"):
        return CPU
    from pipeline.features.tinygrad import default_device

    return default_device()


def parse() -> argparse.Namespace:
    parser = cli.parser(
        "Run a scenario through a learner without a broker.", "filters", "backend", "base", "window", "data", "cache"
    )
    parser.add_argument("--scenario", default="mixed", metavar="NAME", help="a shipped scenario, or a path")
    parser.add_argument("--learner", dest="name", default="clearing", choices=list(LEARNERS))
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="moves stream and features (default: 0)")
    parser.add_argument("--images", type=int, metavar="N", help="first N images; past the end the last phase goes on")
    return parser.parse_args()


def table(result: Mapping[str, Any]) -> Table:
    """The result for a person."""
    kinds = {"prequential": "prequential", f"last_{LAST}": f"last {LAST} micro-batches", "held_out": "held out"}
    page = Table("class", *kinds.values(), "forgetting")
    for name in [*GROUPS, *CLASSES]:
        cells = [
            result[kind][name] if name in GROUPS else result[kind]["classes"][name] for kind in [*kinds, "forgetting"]
        ]
        page.add_row(name, *("–" if cell is None else f"{cell:.4f}" for cell in cells), end_section=name == "overall")
    return page


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
    arguments = parse()
    result = measure(arguments.scenario, arguments.name, arguments.seed, arguments.images, cli.settings_of(arguments))
    if arguments.json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return 0
    console = Console()
    console.print(table(result))
    for line in dresses(result):
        console.print(line, highlight=False)
    console.print(
        f"{result['scenario']}, seed {result['seed']}: {result['images']:,} images, "
        f"{result['images_per_second']:,.0f} a second "
        f"({result['predict_only_images_per_second']:,.0f} without learning)",
        highlight=False,
    )
    if result["digest"]:
        console.print(f"digest {result['digest']}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
