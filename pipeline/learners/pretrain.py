r"""Train a base model for ``marketplace`` on the digits, forward only, in the training form.

    marketstream pretrain

The default terms suit two cores: leaders alone in the first two specs, vendors on outputs in the last. The articles'
own terms take hours on a small machine:

    marketstream pretrain --vendors 16 16 16 --last parameters --lr 0.3 --probe 0.01 \
        --lr-decay 1e-5 --batch 512

It writes the base, and beside it the course of training: accuracy on the test digits against steps, as JSON and as a
plot. Stopped and started again, it goes on from the base that it wrote last.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline import cli
from pipeline.data import datasets
from pipeline.data.datasets import DIGITS, Split
from pipeline.errors import SettingsError
from pipeline.learners.marketplace import draws, make
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.model import Model
from pipeline.learners.marketplace.network import Floats, Network, Shape
from pipeline.learners.marketplace.terms import STREAM, Terms
from pipeline.learners.marketplace.tree import Tree
from pipeline.learners.targets import cross_entropy

TOGETHER = 1000
"""Images that go through the specs in one call."""

TRAIN, TEST = 0, 1
"""Places in a pair of splits."""

log = logging.getLogger(__name__)


@dataclass
class Course:
    """How training went. ``points`` holds (steps, images, seconds, accuracy on the test digits) of each look."""

    terms: dict[str, Any]
    batch: int
    points: list[tuple[int, int, float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, terms: Terms, batch: int) -> "Course":
        """The course that the file holds, or a new one. Raises SettingsError if the file's has other terms."""
        begun = orjson.loads(orjson.dumps(asdict(terms)))
        if not path.exists():
            return cls(begun, batch)
        course = cls(**orjson.loads(path.read_bytes()))
        if (course.terms, course.batch) != (begun, batch):
            raise SettingsError(f"{path}: that training kept to other terms; give them again, or another --out")
        return course


def order(images: int, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Which images come at the places ``start`` to ``stop`` of training: ``int64[stop - start]``.

    Every pass over the images has a random order of its own.
    """
    places = np.arange(start, stop)
    result = np.empty(len(places), np.int64)
    for turn in range(start // images, -(-stop // images)):
        shuffled = np.argsort(draws.raw(images, seed, draws.Purpose.IMAGES, 0, 0, turn), kind="stable")
        here = places // images == turn
        result[here] = shuffled[places[here] % images]
    return result


class Training:
    """Trains a base, and keeps it on disk.

    ``out`` is the file of the base; the course is beside it.
    """

    def __init__(self, out: Path, computes: Network, terms: Terms, batch: int, splits: tuple[Split, Split]) -> None:
        self._out, self._batch = out, batch
        self._splits = splits
        self._tree = Tree(computes, terms, cross_entropy)
        self.course = Course.of(out.with_suffix(".json"), terms, batch)
        base = Base.read(out) if self.course.points else Base.untrained(computes.shape, terms.seed)
        self.model = Model(base, terms)
        self._still: list[Floats] = []

    def until(self, steps: int, look: int) -> None:
        """Train until ``steps`` steps are made in all. Every ``look`` steps, measure accuracy and write the base."""
        begun = time.monotonic()
        if self._tree.first == 2 and not self._still:
            self._still = [self._made(split) for split in self._splits]
        while self.model.generation < steps:
            self._step()
            if self.model.generation % look == 0 or self.model.generation == steps:
                self._look(time.monotonic() - begun)
                begun = time.monotonic()

    def _made(self, split: Split) -> Floats:
        """The products of all images. The specs that make them never move, so this is done once."""
        parts = np.array_split(split.images, -(-len(split.images) // TOGETHER))
        return np.concatenate([self._tree.still(self.model, part) for part in parts])

    def _offered(self, which: int, some: NDArray[np.int64]) -> Floats:
        if not self._still:
            return self._tree.still(self.model, self._splits[which].images[some])
        return self._still[which][some]

    def _step(self) -> None:
        start, train = self.model.generation * self._batch, self._splits[TRAIN]
        some = order(len(train.images), self.model.terms.seed, start, start + self._batch)
        labels = [DIGITS[label] for label in train.labels[some]]
        self.model.apply(self._tree.settle(self.model, self._offered(TRAIN, some), labels))

    def accuracy(self) -> float:
        """Share of the test images that the leaders get right."""
        test, right = self._splits[TEST], 0
        names, truth = np.array(self.model.classes), np.array(DIGITS)[test.labels]
        for some in np.array_split(np.arange(len(truth)), -(-len(truth) // TOGETHER)):
            logits = self._tree.logits(self.model, self._offered(TEST, some))
            right += int((names[logits.argmax(axis=1)] == truth[some]).sum())
        return right / len(truth)

    def _look(self, seconds: float) -> None:
        base, points = self.model.base(), self.course.points
        spent = seconds + (points[-1][2] if points else 0.0)
        right = self.accuracy()
        points.append((base.generation, base.generation * self._batch, round(spent, 1), right))
        base.write(self._out)
        self._out.with_suffix(".json").write_bytes(orjson.dumps(asdict(self.course)))
        log.info("step %d: %.4f of the test digits right, after %.0f s", base.generation, right, spent)


def plot(course: Course, path: Path) -> None:
    """Accuracy on the test digits against steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps, _, _, right = zip(*course.points, strict=True)
    axes.plot(steps, right, marker="o", markersize=3)
    axes.axhline(0.96, color="0.5", linestyle="--", linewidth=1, label="published: 0.96")
    axes.legend(loc="lower right", frameon=False)
    axes.set_xlabel(f"steps of {course.batch} images")
    axes.set_ylabel("test digits right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser(
        "Train a base model for marketplace on the digits, forward only.", "backend", "data", "cache", "seed"
    )
    parser.add_argument("--out", type=Path, default=Path("state/base.safetensors"), metavar="FILE", help="the base")
    parser.add_argument("--steps", type=int, default=2800, metavar="N", help="steps in all (default: 2800)")
    parser.add_argument("--look", type=int, default=100, metavar="N", help="steps from one look to the next")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="images of a step (default: 256)")
    parser.add_argument("--vendors", type=int, nargs=3, default=STREAM.vendors, metavar="N", help="of each spec")
    parser.add_argument("--last", choices=["outputs", "parameters"], default="outputs", help="vendors of the last spec")
    parser.add_argument("--upstream-sampling", type=int, default=0, metavar="N", help="paths that a vendor is offered")
    for name, value in (("lr", 0.3), ("probe", 0.01), ("outputs_lr", 0.3), ("lr_decay", 1e-3)):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=float, default=value, metavar="X", help=f"(default: {value})")
    return parser.parse_args(arguments)


def main(command_line: Sequence[str] | None = None) -> int:
    """Train as the command line says."""
    arguments = parse(command_line)
    settings = cli.settings_of(arguments)
    names = ("last", "lr", "probe", "outputs_lr", "lr_decay", "upstream_sampling")
    chosen = {name: getattr(arguments, name) for name in names}
    try:
        terms = Terms(vendors=tuple(arguments.vendors), seed=settings.seed, **chosen)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    splits = datasets.load("mnist", "train", settings), datasets.load("mnist", "test", settings)
    training = Training(arguments.out, make(Shape(), settings.backend), terms, arguments.batch, splits)
    training.until(arguments.steps, arguments.look)
    if find_spec("matplotlib"):  # of the extra "plot"
        plot(training.course, arguments.out.with_suffix(".png"))
    steps, images, seconds, right = training.course.points[-1]
    result = {"base": str(arguments.out), "steps": steps, "images": images, "seconds": seconds, "accuracy": right}
    text = f"{arguments.out}: {right:.4f} of the test digits right after {steps:,} steps, {seconds:,.0f} s"
    sys.stdout.write(orjson.dumps(result).decode() + "\n" if arguments.json else text + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
