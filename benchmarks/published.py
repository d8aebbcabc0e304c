"""The experiment of the articles: dresses that are to be called 3, by the articles' terms and by vendors on outputs.

    python -m benchmarks.published --base state/base.safetensors

The articles' terms go through ``published``, the same 240 digits and 16 dresses again and again, and both through
``published-stream``, each image once. Writes a JSON file for each into ``--folder``, and leaves out what is there
already. From these it makes published.png in ``--out``: test dresses and test digits against steps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from matplotlib.figure import Figure

from benchmarks.accuracy import BATCH, dresses, measure
from pipeline import cli
from pipeline.data.scenario import load
from pipeline.errors import SettingsError
from pipeline.settings import Settings

RUNS = (
    ("published-stream", "marketplace-published"),
    ("published-stream", "marketplace"),
    ("published", "marketplace-published"),
)
"""Scenarios and learners, the long one last."""

Result = dict[str, Any]


def results(folder: Path, steps: int, settings: Settings) -> list[Result]:
    """Every result; what the folder has not is measured, and kept there."""
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for scenario, learner in RUNS:
        path = folder / f"{scenario}_{learner}_{settings.seed}.json"
        if not path.exists():
            most = sum(phase.images for phase in load(scenario).phases)
            path.write_bytes(
                orjson.dumps(measure(scenario, learner, settings.seed, min(steps * BATCH, most), settings))
            )
        every.append(orjson.loads(path.read_bytes()))
    return every


def draw(every: Sequence[Result], path: Path) -> None:
    """Test dresses and test digits against steps, a scenario beside the other."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, scenario in zip(figure.subplots(1, 2, sharey=True), ("published", "published-stream"), strict=True):
        for r in (r for r in every if r["scenario"] == scenario):
            colour = "C0" if r["learner"] == "marketplace-published" else "C3"
            for what, style in (("dress", "-"), ("digits", ":")):
                after = {"0": r[f"base_{what}"], **r[f"held_out_{what}_after"]}
                steps = [int(n) for n in after]
                name = f"{r['learner']}, {'dresses' if what == 'dress' else what}"
                axes.plot(steps, list(after.values()), style, color=colour, marker=".", label=name)
        axes.set_xscale("symlog")
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(scenario)
        axes.set_xlabel(f"steps of {BATCH} images")
        axes.grid(alpha=0.3)
    axes.legend(loc="center right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = cli.parser("Run the experiment of the articles.", "base", "backend", "data", "cache", "seed")
    parser.add_argument("--steps", type=int, default=3250, metavar="N", help="at most so many (default: 3250)")
    parser.add_argument("--folder", type=Path, default=Path("runs/published"), metavar="DIR", help="where results are")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where the picture is written")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    settings = cli.settings_of(arguments)
    if settings.base is None:
        raise SettingsError(
            "--base: the experiment begins with a base model; python -m pipeline.learners.pretrain makes one"
        )
    every = results(arguments.folder, arguments.steps, settings)
    draw(every, arguments.out / "published.png")
    if arguments.json:
        sys.stdout.write(orjson.dumps(every).decode() + "\n")
        return 0
    for r in every:
        lines = "\n".join(f"  {line}" for line in dresses(r))
        sys.stdout.write(f"{r['scenario']}, {r['learner']}: {r['images_per_second']:,.0f} images a second\n{lines}\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
