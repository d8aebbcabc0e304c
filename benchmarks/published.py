"""The experiment of the articles: dresses that are to be called 3, by the articles' terms and by vendors on outputs.

    python -m benchmarks.published --base state/base.safetensors

The articles' terms go through ``published``, the same 240 digits and 16 dresses again and again, and both through
``published-stream``, each image once. Writes a JSON file for each into ``--folder``, and leaves out what is there
already. From these it makes published.png in ``--out``: test dresses and test digits against steps.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.accuracy import BATCH, dresses, measure
from benchmarks.report import Result
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


def results(folder: Path, steps: int, settings: Settings) -> list[Result]:
    """Every result; what the folder has not is measured, and kept there."""

    def result(scenario: str, learner: str) -> Result:
        images = min(steps * BATCH, load(scenario).images)
        return measure(scenario, learner, settings.seed, images, settings)

    folder.mkdir(parents=True, exist_ok=True)
    return [report.kept(folder / f"{'_'.join(run)}_{settings.seed}.json", partial(result, *run)) for run in RUNS]


def draw(every: Sequence[Result], path: Path) -> None:
    """Test dresses and test digits against steps, a scenario beside the other."""
    figure, (left, right) = report.panels(1, 2, (11, 4.5), shared=True)
    for axes, scenario in ((left, "published"), (right, "published-stream")):
        for r in (r for r in every if r["scenario"] == scenario):
            colour = "C0" if r["learner"] == "marketplace-published" else "C3"
            for what, name, style in (("dress", "dresses", "-"), ("digits", "digits", ":")):
                after = {0: r[f"base_{what}"], **{int(n): known for n, known in r[f"held_out_{what}_after"].items()}}
                label = f"{r['learner']}, {name}"
                axes.plot(list(after), list(after.values()), style, color=colour, marker=".", label=label)
        axes.set(xscale="symlog", ylim=(-0.03, 1.03), title=scenario, xlabel=f"steps of {BATCH} images")
    right.legend(loc="center right", frameon=False, fontsize=8)
    report.save(figure, path)


def main() -> int:
    parser = cli.parser("Run the experiment of the articles.", "base", "backend", "data", "cache", "seed")
    cli.add_number(parser, "--steps", 1, "at most so many", default=3250)
    parser.add_argument("--folder", type=Path, default=Path("runs/published"), metavar="DIR", help="where results are")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where the picture is written")
    arguments = parser.parse_args()
    settings = cli.settings_of(arguments)
    if settings.base is None:
        raise SettingsError("--base: the experiment begins with a base model; marketstream pretrain makes one")
    every = results(arguments.folder, arguments.steps, settings)
    draw(every, arguments.out / "published.png")
    shown = [
        "\n  ".join([f"{r['scenario']}, {r['learner']}: {r['images_per_second']:,.0f} images a second", *dresses(r)])
        for r in every
    ]
    cli.tell(arguments.json, every, *shown)
    return 0


if __name__ == "__main__":
    cli.run(main)
