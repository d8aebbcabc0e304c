"""Every learner on the same streams: how well it learns, what it forgets, and what it costs.

    python -m benchmarks.compare [--learners clearing ncm] [--seeds 3]

Writes a JSON file for each learner, scenario and seed into ``--folder``, and leaves out what is there already: a run
that was stopped goes on. From all files there it makes comparison.md, comparison.json and comparison.png in ``--out``.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.accuracy import CPU, measure
from benchmarks.learners.table import LEARNERS
from pipeline import cli
from pipeline.errors import SettingsError
from pipeline.settings import Settings

SCENARIOS = ("mixed", "dress", "split")
DRESS_SHOWN = ("5", "10", "25", "100")
COMPARED = ("filters", "backend", "window")
"""Settings that all results of a folder share."""

Result = dict[str, Any]


class Results:
    """The results of a folder: made there, kept there."""

    def __init__(self, folder: Path, settings: Settings, images: int | None) -> None:
        self._folder, self._images = folder, images
        self._settings = settings.model_copy(update={"base": None})  # every learner begins from nothing
        folder.mkdir(parents=True, exist_ok=True)
        terms = orjson.dumps({"images": images, **settings.model_dump(include=set(COMPARED))})
        kept = folder / "terms.json"
        if kept.exists() and kept.read_bytes() != terms:
            raise SettingsError(f"{kept}: those results were made with other settings; give another --folder")
        kept.write_bytes(terms)

    def missing(self, learners: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, str, int]]:
        """Learner, scenario and seed of what was not measured yet, in the order in which to measure it."""
        wanted = [(learner, scenario, seed) for seed in seeds for learner in learners for scenario in SCENARIOS]
        return [place for place in wanted if not self._path(*place).exists()]

    def measure(self, learner: str, scenario: str, seed: int) -> Result:
        """Run it, and keep the result."""
        result = measure(scenario, learner, seed, self._images, self._settings)
        path = self._path(learner, scenario, seed)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(orjson.dumps(result))
        temporary.replace(path)
        return result

    def all(self) -> list[Result]:
        """Every result of the folder."""
        found = [orjson.loads(path.read_bytes()) for path in sorted(self._folder.glob("*_*_*.json"))]
        return sorted(found, key=lambda r: (list(LEARNERS).index(r["learner"]), r["scenario"], r["seed"]))

    def _path(self, learner: str, scenario: str, seed: int) -> Path:
        return self._folder / f"{learner}_{scenario}_{seed}.json"


@dataclass(frozen=True)
class Column:
    """What is compared: where it is in a result, and whether more is better."""

    title: str
    path: tuple[str, ...]
    more: bool = True

    def of(self, result: Result) -> float | None:
        """Its number in one result; None where that has none."""
        value: Any = result
        for key in self.path:
            value = value.get(key) if value is not None else None
        if isinstance(value, dict):
            return float(np.mean(list(value.values()))) if value else None
        return None if value is None else float(value)


PREQUENTIAL = [Column(f"streaming, {group}", ("prequential", group)) for group in ("digits", "fashion")]
HELD_OUT = [Column(f"held out, {group}", ("held_out", group)) for group in ("digits", "fashion")]
FORGOTTEN = Column("forgotten", ("held_out_forgetting",), more=False)
COLUMNS: dict[str, list[Column]] = {
    "mixed": [*PREQUENTIAL, *HELD_OUT],
    "dress": [
        *(Column(f"dresses after {after}", ("held_out_dress_after", after)) for after in DRESS_SHOWN),
        Column("digits at the end", ("held_out", "digits")),
        FORGOTTEN,
    ],
    "split": [*PREQUENTIAL, *HELD_OUT, FORGOTTEN],
}


def of(results: Sequence[Result], learner: str, scenario: str) -> list[Result]:
    """The results of a learner on a scenario, one for each seed."""
    return [r for r in results if (r["learner"], r["scenario"]) == (learner, scenario)]


def summary(results: Sequence[Result]) -> list[Result]:
    """A row for each learner and scenario: its seeds, and mean, lowest and highest of every column."""
    rows = []
    for scenario, columns in COLUMNS.items():
        for learner in LEARNERS:
            if mine := of(results, learner, scenario):
                row: Result = {"scenario": scenario, "learner": learner, "seeds": [r["seed"] for r in mine]}
                for column in columns:
                    values = [value for r in mine if (value := column.of(r)) is not None]
                    row[column.title] = [float(np.mean(values)), min(values), max(values)] if values else None
                rows.append(row)
    return rows


def best(rows: Sequence[Result], column: Column) -> Result | None:
    """The row with the best mean of a column."""
    known = [row for row in rows if row[column.title]]
    return (max if column.more else min)(known, key=lambda row: row[column.title][0]) if known else None


def text(cell: Sequence[float] | None, bold: bool) -> str:
    """Mean, and the range over the seeds where there are several."""
    if cell is None:
        return "–"
    mean, low, high = (f"{value:.3f}".replace("0.", ".", 1) for value in cell)
    shown = f"**{mean}**" if bold else mean
    return shown if low == high else f"{shown} ({low} to {high})"


def tables(rows: Sequence[Result]) -> Iterable[str]:
    """A Markdown table for each scenario; the best of a column is bold."""
    for scenario, columns in COLUMNS.items():
        mine = [row for row in rows if row["scenario"] == scenario]
        if not mine:
            continue
        leading = {column.title: best(mine, column) for column in columns}
        yield f"## `{scenario}`\n"
        yield "| learner | seeds | " + " | ".join(column.title for column in columns) + " |"
        yield "| --- " * (len(columns) + 2) + "|"
        for row in mine:
            cells = [text(row[c.title], row is leading[c.title]) for c in columns]
            yield f"| `{row['learner']}` | {', '.join(map(str, row['seeds']))} | " + " | ".join(cells) + " |"
        yield ""


def defeats(rows: Sequence[Result], learner: str = "clearing") -> Iterable[str]:
    """Every column in which another learner does better than this one."""
    for row in rows:
        if row["learner"] != learner:
            continue
        mine = [other for other in rows if other["scenario"] == row["scenario"]]
        for column in COLUMNS[row["scenario"]]:
            first = best(mine, column)
            if first and row[column.title] and first[column.title][0] != row[column.title][0]:
                here, there = row[column.title][0], first[column.title][0]
                yield f"- `{row['scenario']}`, {column.title}: `{first['learner']}` {there:.4f}, `{learner}` {here:.4f}"


def costs(results: Sequence[Result]) -> Iterable[str]:
    """What each learner costs, in Markdown."""
    yield "## Costs\n"
    yield "| learner | | products from | forward | backward | speed | state |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for learner, entry in LEARNERS.items():
        if mine := of(results, learner, "mixed"):
            speeds = [r["relative_speed"] for r in mine if r.get("device", CPU) == CPU]
            speed = f"{np.mean(speeds):.2f}" if speeds else "–"
            size = np.mean([r["state_bytes"] for r in mine]) / 1e6
            passes = f"{entry.forward} | {entry.backward}"
            yield f"| `{learner}` | {entry.about} | {entry.features} | {passes} | {speed} | {size:.2f} MB |"
    yield ""
    yield from elsewhere(results)


def elsewhere(results: Sequence[Result]) -> Iterable[str]:
    """Which results are of an accelerator."""
    places = sorted({(r["device"], r["learner"], r["seed"]) for r in results if r.get("device", CPU) != CPU})
    if places:
        told = ", ".join(f"`{learner}` with seed {seed} on {device}" for device, learner, seed in places)
        yield f"Computed on an accelerator, and left out of the speeds: {told}.\n"


ABOUT = """\
# All learners on the same streams

Written by `python -m benchmarks.compare` (`make compare`). Each image comes once; micro-batches of 256; predict, then
learn; every learner begins from nothing. Means over the seeds named in each row, which move stream and network, with
the range where there are several. Bold: the best of a column.

- *streaming*: each image predicted before it is learnt from. *held out*: all 20,000 test images, at the end. *dresses
  after n*: test dresses, n micro-batches after the first dress.
- *forgotten*: test accuracy on the classes of a phase when it ended, less that at the end of the stream; mean over
  classes. Below zero they became better. A learner that never knew a class has nothing to forget.
- *forward*, *backward*: passes for an image that is predicted and learnt from. *speed*: images a second, relative to
  only predicting with the same network (that is `frozen` on the same features), by processor time in the same process.
  *state*: what must be kept to go on learning, weights included.
"""


def markdown(results: Sequence[Result]) -> str:
    """The whole page."""
    rows = summary(results)
    worse = list(defeats(rows)) or ["Nowhere."]
    parts = [ABOUT, *tables(rows), *costs(results), "## Where `clearing` is not the best\n", *worse]
    return "\n".join([*parts, "", "![Held-out accuracy of all learners](comparison.png)", ""])


def draw(results: Sequence[Result], path: Path) -> None:
    """Held-out accuracy of all learners: every seed a dot; and the dresses as they come up."""
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    mixed, split, dress = figure.subplots(1, 3)
    _dots(mixed, results, "mixed")
    _dots(split, results, "split")
    split.set_yticklabels([])
    _dresses(dress, results)
    figure.savefig(path, dpi=110)


def _dots(axes: Axes, results: Sequence[Result], scenario: str) -> None:
    names = [name for name in LEARNERS if any(r["learner"] == name for r in results)]
    for group, marker, colour in (("digits", "o", "C0"), ("fashion", "s", "C1")):
        points = [(r["held_out"][group], names.index(r["learner"])) for r in results if r["scenario"] == scenario]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, alpha=0.8, label=group)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.03, 1.03)
    axes.invert_yaxis()
    axes.set_title(f"{scenario}: held-out accuracy at the end")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", frameon=False)


def _dresses(axes: Axes, results: Sequence[Result]) -> None:
    for number, learner in enumerate(LEARNERS):
        for which, r in enumerate(of(results, learner, "dress")):
            after = r["held_out_dress_after"]
            label = learner if not which else None
            axes.plot(
                [int(n) for n in after], [v or 0.0 for v in after.values()], color=f"C{number}", marker=".", label=label
            )
    axes.set_xscale("symlog")
    axes.set_ylim(-0.03, 1.03)
    axes.set_title("dress: test dresses known")
    axes.set_xlabel("micro-batches since the first dress")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", frameon=False, fontsize=8)


def write(results: Sequence[Result], out: Path) -> None:
    """The page, the numbers and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(markdown(results), encoding="utf-8")
    (out / "comparison.json").write_bytes(orjson.dumps(summary(results), option=orjson.OPT_INDENT_2) + b"\n")
    draw(results, out / "comparison.png")


def parse() -> argparse.Namespace:
    parser = cli.parser("Run every learner through the same streams.", *COMPARED, "data", "cache")
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    parser.add_argument("--images", type=int, metavar="N", help="first N images of each stream (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/compare"), metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where the page is written")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    results = Results(arguments.folder, cli.settings_of(arguments), arguments.images)
    console = Console(stderr=True)
    for place in results.missing(arguments.learners, range(arguments.seeds)):
        result = results.measure(*place)
        held = result["held_out"]
        console.print(*place, f"held out {held['digits']:.4f} / {held['fashion']:.4f}", highlight=False)
    found = results.all()
    write(found, arguments.out)
    lines = orjson.dumps(summary(found)).decode() if arguments.json else f"{arguments.out / 'comparison.md'}"
    sys.stdout.write(lines + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
