"""Every learner on the same streams: how well it learns, what it forgets, and what it costs.

    python -m benchmarks.compare [--learners clearing ncm] [--seeds 3]

Writes a JSON file for each learner, scenario and seed into ``--folder``, and leaves out what is there already: a run
that was stopped goes on. From all files there it makes comparison.md, comparison.json and comparison.png in ``--out``.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import report
from benchmarks.accuracy import CPU, measure
from benchmarks.learners.table import LEARNERS
from benchmarks.report import Result
from pipeline import cli
from pipeline.errors import SettingsError
from pipeline.settings import Settings

SCENARIOS = ("mixed", "dress", "split")
COMPARED = ("filters", "backend", "window")
"""Settings that all results of a folder share."""

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_suffix(".md")


class Results:
    """The results of a folder: made there, kept there."""

    def __init__(self, folder: Path, settings: Settings, images: int | None) -> None:
        self._folder, self._images = folder, images
        self._settings = settings.model_copy(update={"base": None})  # every learner begins from nothing
        folder.mkdir(parents=True, exist_ok=True)
        terms = {"images": images, **settings.model_dump(include=set(COMPARED))}
        if report.kept(folder / "terms.json", lambda: terms) != terms:
            raise SettingsError(
                f"{folder / 'terms.json'}: those results were made with other settings; give another --folder"
            )

    def missing(self, learners: Iterable[str], seeds: Iterable[int]) -> list[tuple[str, str, int]]:
        """Learner, scenario and seed of what was not measured yet, in the order in which to measure it."""
        wanted = [(learner, scenario, seed) for seed in seeds for learner in learners for scenario in SCENARIOS]
        return [place for place in wanted if not self._path(*place).exists()]

    def measure(self, learner: str, scenario: str, seed: int) -> Result:
        """Run it, and keep the result."""
        path = self._path(learner, scenario, seed)
        return report.kept(path, lambda: measure(scenario, learner, seed, self._images, self._settings))

    def all(self) -> list[Result]:
        """Every result of the folder."""
        found = [orjson.loads(path.read_bytes()) for path in sorted(self._folder.glob("*_*_*.json"))]
        return sorted(found, key=lambda r: (list(LEARNERS).index(r["learner"]), r["scenario"], r["seed"]))

    def _path(self, learner: str, scenario: str, seed: int) -> Path:
        return self._folder / f"{learner}_{scenario}_{seed}.json"


STREAMING = {f"streaming, {group}": ("prequential", group) for group in ("digits", "fashion")}
HELD_OUT = {f"held out, {group}": ("held_out", group) for group in ("digits", "fashion")}
DRESSES = {f"dresses after {n}": ("held_out_dress_after", n) for n in ("5", "10", "25", "100")}
FORGOTTEN = {"forgotten": ("held_out_forgetting",)}
COLUMNS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "mixed": {**STREAMING, **HELD_OUT},
    "dress": {**DRESSES, "digits at the end": ("held_out", "digits"), **FORGOTTEN},
    "split": {**STREAMING, **HELD_OUT, **FORGOTTEN},
}
"""What is compared in each scenario, and where it is in a result. More is better, but of what was forgotten."""


def of(results: Sequence[Result], learner: str, scenario: str) -> list[Result]:
    """The results of a learner on a scenario, one for each seed."""
    return [r for r in results if (r["learner"], r["scenario"]) == (learner, scenario)]


def values(results: Sequence[Result], path: Sequence[str]) -> list[float]:
    """The numbers at a path, from those results that have one; the mean where classes have one each."""
    found: list[Any] = list(results)
    for key in path:
        found = [value.get(key) for value in found if value]
    return [float(np.mean(list(v.values()) if isinstance(v, dict) else v)) for v in found if v not in (None, {})]


def summary(results: Sequence[Result]) -> list[Result]:
    """A row for each learner and scenario: its seeds, and mean, lowest and highest of every column."""
    rows = []
    for scenario, columns in COLUMNS.items():
        for learner in LEARNERS:
            if mine := of(results, learner, scenario):
                row: Result = {"scenario": scenario, "learner": learner, "seeds": [r["seed"] for r in mine]}
                for title, path in columns.items():
                    some = values(mine, path)
                    row[title] = [float(np.mean(some)), min(some), max(some)] if some else None
                rows.append(row)
    return rows


def best(rows: Sequence[Result], scenario: str, title: str) -> Result | None:
    """The row with the best mean of a column of a scenario."""
    known = [row for row in rows if row["scenario"] == scenario and row[title]]
    return (min if title in FORGOTTEN else max)(known, key=lambda row: row[title][0], default=None)


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
        leading = [(title, best(rows, scenario, title)) for title in columns]
        shown = [
            (f"`{row['learner']}`", str(row["seeds"])[1:-1], *(text(row[title], row is b) for title, b in leading))
            for row in rows
            if row["scenario"] == scenario
        ]
        if shown:
            yield f"## `{scenario}`\n\n" + report.markdown(["learner", "seeds", *columns], shown)


def defeats(rows: Sequence[Result], learner: str = "clearing") -> Iterable[str]:
    """Every column in which another learner does better than this one."""
    for row in [row for row in rows if row["learner"] == learner]:
        for title in COLUMNS[row["scenario"]]:
            first = best(rows, row["scenario"], title)
            if first and row[title] and first[title][0] != row[title][0]:
                here, there = row[title][0], first[title][0]
                yield f"- `{row['scenario']}`, {title}: `{first['learner']}` {there:.4f}, `{learner}` {here:.4f}"


def costs(results: Sequence[Result]) -> str:
    """What each learner costs, in Markdown."""
    rows = []
    for learner, entry in LEARNERS.items():
        if mine := of(results, learner, "mixed"):
            speeds = [r["relative_speed"] for r in mine if r["device"] == CPU]
            speed = f"{np.mean(speeds):.2f}" if speeds else "–"
            size = f"{np.mean([r['state_bytes'] for r in mine]) / 1e6:.2f} MB"
            passes = str(entry.forward), str(entry.backward)
            rows.append((f"`{learner}`", entry.about, entry.features, *passes, speed, size))
    return report.markdown(("learner", "", "products from", "forward", "backward", "speed", "state"), rows)


def elsewhere(results: Sequence[Result]) -> str:
    """Which results are of an accelerator."""
    places = sorted({(r["device"], r["learner"], r["seed"]) for r in results if r["device"] != CPU})
    told = ", ".join(f"`{learner}` with seed {seed} on {device}" for device, learner, seed in places)
    return f"\nComputed on an accelerator, and left out of the speeds: {told}.\n" if told else ""


def markdown(results: Sequence[Result]) -> str:
    """The whole page."""
    rows = summary(results)
    return PAGE.read_text(encoding="utf-8").format(
        tables="\n\n".join(tables(rows)),
        costs=costs(results),
        elsewhere=elsewhere(results),
        defeats="\n".join(defeats(rows)) or "Nowhere.",
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Held-out accuracy of all learners: every seed a dot; and the dresses as they come up."""
    figure, (mixed, split, dress) = report.panels(1, 3, (13, 4.8))
    names = [name for name in LEARNERS if any(r["learner"] == name for r in results)]
    for axes, scenario in ((mixed, "mixed"), (split, "split")):
        mine = [r for r in results if r["scenario"] == scenario]
        for group, marker, colour in (("digits", "o", "C0"), ("fashion", "s", "C1")):
            rights, places = [r["held_out"][group] for r in mine], [names.index(r["learner"]) for r in mine]
            axes.scatter(rights, places, marker=marker, color=colour, alpha=0.8, label=group)
        axes.set_yticks(range(len(names)), names if axes is mixed else [])
        axes.set(xlim=(-0.03, 1.03), ylim=(len(names), -1), title=f"{scenario}: held-out accuracy at the end")
    for number, learner in enumerate(LEARNERS):
        for which, r in enumerate(of(results, learner, "dress")):
            after = {int(n): right or 0.0 for n, right in r.get("held_out_dress_after", {}).items()}
            label = None if which else learner
            dress.plot(list(after), list(after.values()), color=f"C{number}", marker=".", label=label)
    dress.set(xscale="symlog", ylim=(-0.03, 1.03), title="dress: test dresses known")
    dress.set_xlabel("micro-batches since the first dress")
    for axes in (mixed, split, dress):
        axes.legend(frameon=False, fontsize=8)
    report.save(figure, path)


def write(results: Sequence[Result], out: Path) -> None:
    """The page, the numbers and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(markdown(results), encoding="utf-8")
    (out / "comparison.json").write_bytes(orjson.dumps(summary(results), option=orjson.OPT_INDENT_2) + b"\n")
    draw(results, out / "comparison.png")


def main() -> int:
    parser = cli.parser("Run every learner through the same streams.", *COMPARED, "data", "cache")
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS), metavar="NAME")
    cli.add_number(parser, "--seeds", 0, "seeds 0 to N-1", default=3)
    cli.add_number(parser, "--images", 1, "first N images of each stream (default: all)")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/compare"), metavar="DIR", help="where results are kept"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where the page is written")
    arguments = parser.parse_args()
    results = Results(arguments.folder, cli.settings_of(arguments), arguments.images)
    for place in results.missing(arguments.learners, range(arguments.seeds)):
        held = results.measure(*place)["held_out"]
        log.info("%s, %s, seed %d: held out %.4f / %.4f", *place, held["digits"], held["fashion"])
    found = results.all()
    write(found, arguments.out)
    cli.tell(arguments.json, summary(found), str(arguments.out / "comparison.md"))
    return 0


if __name__ == "__main__":
    cli.run(main)
