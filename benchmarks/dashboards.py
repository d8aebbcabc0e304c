"""A picture of the dashboards' data: a stream is replayed, learnt and watched, and every panel's query answered.

    python -m benchmarks.dashboards --out dashboards.png

It is no screenshot: the queries, places, titles, units and colours are those of the dashboards' files, the answers
those of a real Prometheus that watches a real producer and learner; the drawing is Matplotlib's.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from benchmarks import report
from benchmarks.curves import COLOURS
from deploy.local.prometheus import install
from deploy.local.queries import FOLDER, Line, Panel, Query, ask, marks, name, panels, read
from deploy.local.stack import await_value, running
from pipeline import cli
from pipeline.data import scenario

PACE = ("--rate", "500", "--max-lag", "20000")
"""As in docker-compose.yml."""

COLUMN, ROW, HEAD = 39, 26, 40
"""Pixels: of Grafana's 24 columns, of its rows, and of the line with a dashboard's title."""

DPI = 90

UNITS = {"percentunit": (100, "%"), "s": (1000, " ms"), "bytes": (2**-20, " MiB"), "short": (1, "")}
"""Of the dashboards' files: times what, and what is written behind it."""

Answers = list[tuple[Query, Line]]


@dataclass(frozen=True)
class Answered:
    """A dashboard with the answers to each panel's queries; all times are in minutes from the beginning."""

    title: str
    minutes: float
    panels: list[tuple[Panel, Answers]]
    phases: list[Line]


def answered(url: str, path: Path, start: float, end: float) -> Answered:
    """A dashboard with the answers to its queries, of the time from ``start`` to ``end``. Raises QueryError."""
    board = read(path)

    def answers(query: Query) -> list[Line]:
        found = ask(url, query, start, end, 1)
        return [replace(line, times=tuple((at - start) / 60 for at in line.times)) for line in found]

    drawn = [(panel, [(query, line) for query in panel.queries for line in answers(query)]) for panel in panels(board)]
    return Answered(board["title"], (end - start) / 60, drawn, answers(marks(board)[0]))


def draw(boards: Sequence[Answered], path: Path) -> None:
    """Write the picture, a PNG: the dashboards beside each other, each panel where its file says."""
    rows = max(p.spec["gridPos"]["y"] + p.spec["gridPos"]["h"] for board in boards for p, _ in board.panels)
    page = Image.new("RGB", (24 * COLUMN * len(boards), HEAD + rows * ROW), "#f4f5f5")
    for i, board in enumerate(boards):
        left = 24 * COLUMN * i
        ImageDraw.Draw(page).text((left + 8, 8), board.title, "black", ImageFont.load_default(20))
        for panel, answers in board.panels:
            place = panel.spec["gridPos"]
            size = (place["w"] * COLUMN - 6) / DPI, (place["h"] * ROW - 6) / DPI
            drawn = report.image(_drawn(Figure(size, layout="constrained"), board, panel, answers), DPI)
            page.paste(drawn, (left + place["x"] * COLUMN + 3, HEAD + place["y"] * ROW + 3))
    # 256 colours are enough, and a quarter of the bytes
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _drawn(figure: Figure, board: Answered, panel: Panel, answers: Answers) -> Figure:
    figure.suptitle(panel.title, fontsize=9, weight="bold", x=0.02, ha="left")
    kind = panel.spec["type"]
    if kind == "table" and panel.queries[0].instant:
        _draw_matrix(figure.subplots(), [line for _, line in answers])
    elif kind in ("stat", "table"):
        _draw_trends(figure, panel, answers)
    else:
        axes = figure.subplots()
        axes.set(xlim=(0, board.minutes))
        axes.tick_params(labelsize=7, length=2)
        axes.xaxis.set_major_formatter("{x:g} min")
        for line in board.phases:
            axes.axvline(line.times[0], color="#0072B2", linestyle=":", linewidth=0.9)
            axes.text(line.times[0], 1.01, line.labels["phase"], fontsize=5, transform=axes.get_xaxis_transform())
        (_draw_states if kind == "state-timeline" else _draw_lines)(axes, panel, answers)
        legend = panel.spec["options"]["legend"]
        beside = legend["placement"] == "right"
        if legend["showLegend"]:
            where: Any = "outside right center" if beside else "outside lower center"
            longest = max(len(name(line, query)) for query, line in answers)
            columns = 1 if beside else max(1, int(figure.get_figwidth() / (0.5 + 0.05 * longest)))
            figure.legend(loc=where, ncols=columns, frameon=False, fontsize=6)
    return figure


def _field(panel: Panel, query: Query, line: Line) -> dict[str, Any]:
    """Properties of a line: the defaults of the panel's file, and what it says of this one."""
    mine = {("byName", name(line, query)), ("byFrameRefID", query.ref), ("byName", f"Trend #{query.ref}")}
    field = {"color": {"mode": "palette"}, **panel.spec["fieldConfig"]["defaults"]}
    for override in panel.spec["fieldConfig"]["overrides"]:
        if (override["matcher"]["id"], override["matcher"]["options"]) in mine:
            field |= {each["id"]: each["value"] for each in override["properties"]}
    return field


def _written(value: float, unit: str) -> str:
    times, sign = UNITS.get(unit, (1, unit.removeprefix("suffix:")))
    return f"{times * value:,.0f}{sign}" if times * value >= 1000 else f"{times * value:.3g}{sign}"


def _draw_lines(axes: Axes, panel: Panel, answers: Answers) -> None:
    for i, (query, line) in enumerate(answers):
        field = _field(panel, query, line)
        colour = field["color"].get("fixedColor", COLOURS[i % len(COLOURS)])
        alpha = 1 - 0.08 * (i % 10) if field["color"]["mode"] == "shades" else 1
        axes.plot(line.times, line.values, label=name(line, query), color=colour, alpha=alpha, linewidth=1.2)
    defaults = panel.spec["fieldConfig"]["defaults"]
    axes.set_ylim(0, defaults.get("max") or 1.05 * max(max(line.values) for _, line in answers) or 1)
    axes.yaxis.set_major_formatter(lambda value, _: _written(value, defaults["unit"]))
    axes.grid(alpha=0.25)


def _draw_states(axes: Axes, panel: Panel, answers: Answers) -> None:
    states = panel.spec["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for i, (_, line) in enumerate(answers):
        colours = [states[f"{value:.0f}"]["color"] for value in line.values]
        axes.barh([i] * len(colours), 1 / 60, left=line.times, height=0.7, color=colours)
    axes.set_yticks(range(len(answers)), [name(line, query) for query, line in answers])


def _draw_trends(figure: Figure, panel: Panel, answers: Answers) -> None:
    """A row for each class, if there are any, and a column for each query: the last value, and how it came there."""
    classes = sorted({line.labels.get("class", "") for _, line in answers})
    cells = figure.subplots(len(classes), len(panel.queries), squeeze=False)
    for query, line in answers:
        row, column = classes.index(line.labels.get("class", "")), panel.queries.index(query)
        axes, field = cells[row, column], _field(panel, query, line)
        colour, last = field["color"]["fixedColor"], _written(line.values[-1], field["unit"])
        axes.set_axis_off()
        axes.fill_between(line.times, line.values, color=colour, alpha=0.2, linewidth=0)
        axes.plot(line.times, line.values, color=colour, linewidth=1)
        axes.text(1.05, 0.5, last, fontsize=8 if classes[row] else 12, va="center", transform=axes.transAxes)
        axes.text(-0.05, 0.5, "" if column else classes[row], fontsize=8, ha="right", transform=axes.transAxes)
        axes.set_title("" if row else field.get("displayName", ""), fontsize=8)


def _draw_matrix(axes: Axes, lines: Sequence[Line]) -> None:
    rows, columns = (sorted({line.labels[label] for line in lines}) for label in ("label", "predicted"))
    shares = np.full((len(rows), len(columns)), np.nan)
    for line in lines:
        shares[rows.index(line.labels["label"]), columns.index(line.labels["predicted"])] = line.values[-1]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.0%}", fontsize=7, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns, fontsize=6)
    axes.set_yticks(range(len(rows)), rows)


def main() -> int:
    """Replay a scenario through producer, learner and Prometheus, and draw what the dashboards would show."""
    parser = cli.parser("Draw the dashboards' data, from a stream that is replayed for it.", "cache")
    parser.add_argument("--scenario", default="demo", metavar="NAME", help="a shipped scenario, or a file")
    parser.add_argument("--out", type=Path, default=Path("dashboards.png"), metavar="FILE", help="a PNG")
    arguments = parser.parse_args()
    images = scenario.load(arguments.scenario).images
    programs = install(cli.settings_of(arguments).cache)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), programs, "2s", [arguments.scenario, *PACE]) as stack,
    ):
        stack.producer.wait()
        await_value(stack.url, "sum(marketplace_images_total)", images)
        end = time.time()
        boards = [answered(stack.url, FOLDER / f"{each}.json", stack.began, end) for each in ("learning", "pipeline")]
    draw(boards, arguments.out)
    result = {"file": str(arguments.out), "images": images, "panels": sum(len(board.panels) for board in boards)}
    cli.tell(arguments.json, result, f"{arguments.out}: {result['panels']} panels")
    return 0


if __name__ == "__main__":
    cli.run(main)
