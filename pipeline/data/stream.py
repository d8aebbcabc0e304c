"""A stream: which image comes at which position. Made from a scenario, without a broker.

scenario = load("mixed")
stream = make_stream(scenario, load_splits(scenario, settings))
stream.images(0, 256), stream.labels[:256], stream.record(0)
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.data import datasets
from pipeline.data.datasets import CLASSES, DIGITS, FASHION, Name, Split
from pipeline.data.scenario import GROUPS, Phase, Scenario
from pipeline.records.images import ImageRecord
from pipeline.settings import Settings

_CLASSES_OF: dict[Name, tuple[str, ...]] = {"mnist": DIGITS, "fashion-mnist": FASHION}


@dataclass(frozen=True, slots=True)
class Span:
    """A phase and its positions in the stream: from ``start`` up to, not including, ``stop``."""

    phase: Phase
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream of n images.

    Attributes
    ----------
    splits
        The data sets in use, in the order in which ``numbers`` counts their images.
    numbers
        int64 [n], the image at each position, counted through all splits.
    labels
        n names of classes; None where the record is to have no label.
    phases
        Where each phase begins and ends.
    """

    scenario: Scenario
    run: str
    splits: tuple[Split, ...]
    numbers: NDArray[np.int64]
    labels: tuple[str | None, ...]
    phases: tuple[Span, ...]
    _firsts: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Pixels of the positions from ``start`` up to ``stop``: uint8 [stop - start, 28, 28]."""
        numbers = self.numbers[start:stop]
        pixels = np.empty((len(numbers), 28, 28), np.uint8)
        for first, split in zip(self._firsts, self.splits, strict=True):
            here = (numbers >= first) & (numbers < first + len(split.images))
            pixels[here] = split.images[numbers[here] - first]
        return pixels

    def span(self, position: int) -> Span:
        """The phase that a position is in."""
        return self.phases[bisect_right(self.phases, position, key=lambda span: span.start) - 1]

    def record(self, position: int) -> ImageRecord:
        """The image record at a position. It has no time, so that its bytes are always the same."""
        number = int(self.numbers[position])
        place = bisect_right(self._firsts, number) - 1
        split, index = self.splits[place], number - self._firsts[place]
        return ImageRecord(
            id=f"{self.run}/{position:08d}",
            source=f"/{self.scenario.name}/{self.span(position).phase.name}",
            pixels=split.images[index].tobytes(),
            label=self.labels[position],
            subject=f"{split.name}/{split.part}/{index}",
        )


def load_splits(scenario: Scenario, settings: Settings) -> dict[Name, Split]:
    """The data sets that a scenario draws from. Raises DatasetError."""
    wanted = {name for phase in scenario.phases for entry in phase.classes for name in _names(entry)}
    return {
        name: datasets.load(name, scenario.part, settings)
        for name, classes in _CLASSES_OF.items()
        if wanted.intersection(classes)
    }


def make_stream(scenario: Scenario, splits: Mapping[Name, Split], run: str | None = None) -> Stream:
    """Draw every image of the stream. ``run`` begins the ids of its records (default: name-seed).

    Raises ScenarioError, which names file and line, where a class has fewer images than are asked for.
    """
    used = tuple(splits[name] for name in _CLASSES_OF if name in splits)
    firsts = np.cumsum([0, *(len(split.images) for split in used)])
    classes = np.concatenate([split.labels + np.uint8(CLASSES.index(split.classes[0])) for split in used])
    numbers = np.fromiter(_drawn(scenario, classes), np.int64)
    names = np.array(CLASSES, dtype=object)[classes[numbers]]
    for name, label in scenario.labels.items():
        names[names == name] = label
    names[~np.concatenate([_labelled(scenario.seed, phase) for phase in scenario.phases])] = None
    ends = np.cumsum([phase.images for phase in scenario.phases]).tolist()
    spans = zip(scenario.phases, [0, *ends[:-1]], ends, strict=True)
    return Stream(
        scenario,
        run or f"{scenario.name}-{scenario.seed}",
        used,
        numbers,
        tuple(names.tolist()),
        tuple(Span(*span) for span in spans),
        tuple(firsts[:-1].tolist()),
    )


def _drawn(scenario: Scenario, classes: NDArray[np.uint8]) -> Iterator[int]:
    """The images of all phases, each one only when no other is left that came less often."""
    times = [0] * len(classes)
    pools: dict[tuple[str, int | None], tuple[int, Iterator[int]]] = {}
    for place, phase in enumerate(scenario.phases):
        mine = [(entry, phase.first.get(entry)) for entry in sorted(phase.classes)]
        for entry, first in mine:
            if (entry, first) not in pools:
                names = _names(entry)
                members = np.isin(classes, [CLASSES.index(name) for name in names]).nonzero()[0][:first]
                purpose = f"{scenario.seed}/pool/{' '.join(names)}"
                pools[entry, first] = len(members), _pool(purpose, members, times, scenario.repeat)
        for position, number in enumerate(_entries(scenario.seed, phase).tolist()):
            size, pool = pools[mine[number]]
            if (image := next(pool, None)) is None:
                raise scenario.error(
                    ("phases", place, "classes", mine[number][0]),
                    f"its {size:,} images are used up after {position:,} of the {phase.images:,} images of this phase; "
                    "ask for fewer or write repeat: true",
                )
            yield image


def _pool(purpose: str, members: NDArray[np.int64], times: list[int], repeat: bool) -> Iterator[int]:
    """The images of some classes, in a shuffled order; from the second round on in another one.

    ``times`` counts how often each one was drawn, from this pool or another.
    """
    for turn in count() if repeat and len(members) else range(1):
        order = np.argsort(_raw(f"{purpose}/{turn}", len(members)), kind="stable")
        for image in members[order].tolist():
            if times[image] <= turn:
                times[image] += 1
                yield image


def _names(entry: str) -> tuple[str, ...]:
    return GROUPS.get(entry, (entry,))


def _entries(seed: int, phase: Phase) -> NDArray[np.int64]:
    """Which of its sorted entries each image of a phase is for: blocks of the exact shares, shuffled."""
    shares = [phase.classes[entry] for entry in sorted(phase.classes)]
    block = np.repeat(np.arange(len(shares)), shares)
    blocks = -(-phase.images // len(block))
    raw = _raw(f"{seed}/blocks/{phase.name}", blocks * len(block)).reshape(blocks, len(block))
    return block[np.argsort(raw, axis=1, kind="stable")].ravel()[: phase.images]


def _labelled(seed: int, phase: Phase) -> NDArray[np.bool_]:
    """Which images of a phase have their label on the record."""
    raw = _raw(f"{seed}/labelled/{phase.name}", phase.images) >> np.uint64(11)
    return raw < phase.labelled * 2.0**53


def _raw(purpose: str, count: int) -> NDArray[np.uint64]:
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(count)
