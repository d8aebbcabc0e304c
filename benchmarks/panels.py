"""Draws answered dashboards side by side, each panel where its file says."""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MultipleLocator
from PIL import Image

from deploy.grafana.parts import TEN
from deploy.grafana.queries import Line, Panel, Query, name

COLUMN, ROW, HEAD = 0.43, 0.29, 0.5
"""Inches: of Grafana's 24 columns, of its rows, and of the line with the dashboard's title."""

Answers = list[tuple[Query, list[Line]]]


@dataclass(frozen=True)
class Answered:
    """A dashboard, the answers to the queries of each panel, and when the phases of the stream began (seconds)."""

    title: str
    start: float
    end: float
    panels: list[tuple[Panel, Answers]]
    phases: list[tuple[float, str]]


def draw(boards: Sequence[Answered], path: Path) -> None:
    """Write the picture, a PNG."""
    rows = max(p.spec["gridPos"]["y"] + p.spec["gridPos"]["h"] for board in boards for p, _ in board.panels)
    figure = Figure(figsize=(24.6 * COLUMN * len(boards), rows * ROW + HEAD), facecolor="#f4f5f5")
    for i, board in enumerate(boards):
        left = (24.6 * i + 0.3) * COLUMN
        figure.text(*_share(figure, left, 0.62 * HEAD), board.title, fontsize=15, weight="bold", va="center")
        for panel, answers in board.panels:
            _draw_panel(figure, board, panel, answers, left)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=90)
    # 256 colours are enough, and a quarter of the bytes
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _share(figure: Figure, x: float, y: float) -> tuple[float, float]:
    """Inches from the upper left corner, as shares of the figure from the lower left."""
    width, height = figure.get_size_inches()
    return x / width, 1 - y / height


def _draw_panel(figure: Figure, board: Answered, panel: Panel, answers: Answers, left: float) -> None:
    place = panel.spec["gridPos"]
    x, y = left + place["x"] * COLUMN, HEAD + place["y"] * ROW
    width, height = place["w"] * COLUMN, place["h"] * ROW
    corner, size = _share(figure, x + 0.04, y + height - 0.04), figure.get_size_inches()
    box = ((width - 0.08) / size[0], (height - 0.08) / size[1])
    figure.add_artist(Rectangle(corner, *box, facecolor="white", edgecolor="#d5d7da", linewidth=0.8, zorder=-1))
    figure.text(*_share(figure, x + 0.12, y + 0.17), panel.title, fontsize=9, weight="bold", va="center")
    kind = panel.spec["type"]
    inset = _INSETS["matrix" if kind == "table" and answers[0][0].instant else kind]
    low = _share(figure, x + inset[0], y + height - inset[3])
    high = _share(figure, x + width - inset[2], y + inset[1])
    axes = figure.add_axes((*low, high[0] - low[0], high[1] - low[1]))
    _PAINTERS["matrix" if kind == "table" and answers[0][0].instant else kind](axes, board, panel, answers)


_INSETS = {  # inches on the left, above, on the right and below
    "timeseries": (0.62, 0.38, 0.15, 0.6),
    "stat": (0.1, 0.3, 0.1, 0.08),
    "table": (1.0, 0.6, 0.3, 0.12),
    "matrix": (0.95, 0.6, 0.15, 0.15),
    "state-timeline": (1.9, 0.34, 0.15, 0.4),
}


def _draw_lines(axes: Axes, board: Answered, panel: Panel, answers: Answers) -> None:
    _over_time(axes, board)
    drawn = [(name(line, query), query, line) for query, lines in answers for line in lines]
    for i, (label, query, line) in enumerate(sorted(drawn, key=lambda one: (one[1].ref, one[0]))):
        colour = _colour(panel, query, label, i)
        width = panel.spec["fieldConfig"]["defaults"]["custom"]["lineWidth"]
        axes.plot(_since(board, line), line.values, label=label, color=colour, linewidth=0.6 * width)
    top = panel.spec["fieldConfig"]["defaults"].get("max")
    axes.set_ylim(0, top if any(any(line.values) for _, _, line in drawn) else 1)
    axes.yaxis.set_major_formatter(lambda value, _: _written(value, _unit(panel)))
    axes.grid(alpha=0.25)
    _legend(axes, panel.spec["gridPos"]["w"] * COLUMN, [label for label, _, _ in drawn])


def _legend(axes: Axes, width: float, labels: Sequence[str]) -> None:
    """Below the axes, in as many columns as fit into ``width`` inches."""
    usual = sum(map(len, labels)) / len(labels)
    columns = min(len(labels), int(width / (0.36 + 0.06 * usual)))
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.1),
        ncols=columns,
        frameon=False,
        fontsize=6.5,
        handlelength=1.1,
        columnspacing=0.8,
        labelspacing=0.2,
    )


def _over_time(axes: Axes, board: Answered) -> None:
    axes.set_xlim(0, board.end - board.start)
    axes.xaxis.set_major_locator(MultipleLocator(30 * math.ceil((board.end - board.start) / 200)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{int(value) // 60}:{int(value) % 60:02d}")
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    for begun, phase in board.phases:
        late = begun - board.start > 0.8 * (board.end - board.start)
        where: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "right" if late else "left"}
        axes.axvline(begun - board.start, color="#0072B2", linestyle=":", linewidth=0.9)
        axes.text(begun - board.start, 1.01, f" {phase} ", fontsize=5.5, color="#0072B2", **where)


def _since(board: Answered, line: Line) -> list[float]:
    return [time - board.start for time in line.times]


def _colour(panel: Panel, query: Query, label: str, number: int) -> str:
    for override in panel.spec["fieldConfig"]["overrides"]:
        wanted = {"byName": label, "byFrameRefID": query.ref}.get(override["matcher"]["id"])
        values = {p["id"]: p["value"] for p in override["properties"]}
        if override["matcher"]["options"] == wanted and "color" in values:
            colour: str = values["color"]["fixedColor"]
            return _shade(colour, number) if values["color"]["mode"] == "shades" else colour
    fixed: str | None = panel.spec["fieldConfig"]["defaults"].get("color", {}).get("fixedColor")
    return fixed or TEN[number % len(TEN)]


def _shade(colour: str, number: int) -> str:
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    parts = colorsys.hls_to_rgb(hue, min(0.8, lightness * (0.75 + 0.1 * (number % 8))), saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def _unit(panel: Panel) -> str:
    unit: str = panel.spec["fieldConfig"]["defaults"]["unit"]
    return unit


def _written(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or not value else f"{1000 * value:.3g} ms"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    short = f"{value / 1000:.4g}K" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{short} {unit.removeprefix('suffix:')}" if unit.startswith("suffix:") else short


def _draw_number(axes: Axes, board: Answered, panel: Panel, answers: Answers) -> None:
    axes.axis("off")
    for query, lines in answers:
        for line in lines[:1]:
            colour = _colour(panel, query, "", 0)
            shown = _written(line.values[-1], _unit(panel))
            axes.text(0.5, 0.66, shown, fontsize=17, color=colour, ha="center", va="center", transform=axes.transAxes)
            below = axes.inset_axes((0, 0, 1, 0.32))
            below.axis("off")
            below.fill_between(_since(board, line), line.values, color=colour, alpha=0.25, linewidth=0)
            below.plot(_since(board, line), line.values, color=colour, linewidth=1)


def _draw_table(axes: Axes, board: Answered, panel: Panel, answers: Answers) -> None:
    axes.axis("off")
    classes = sorted({line.labels["class"] for _, lines in answers for line in lines})
    height, width = 1 / len(classes), 1 / len(answers)
    looks = {o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]} for o in _overrides(panel)}
    for column, (query, lines) in enumerate(answers):
        look = looks[f"Trend #{query.ref}"]
        axes.text((column + 0.35) * width, 1.012, look["displayName"], fontsize=8, ha="center", color="#555")
        for line in lines:
            row = 1 - (classes.index(line.labels["class"]) + 1) * height
            cell = axes.inset_axes((column * width, row + 0.1 * height, 0.66 * width, 0.75 * height))
            cell.axis("off")
            cell.set_xlim(0, board.end - board.start)
            cell.plot(_since(board, line), line.values, color=look["color"]["fixedColor"], linewidth=1)
            shown = _written(line.values[-1], look["unit"])
            axes.text((column + 0.7) * width, row + height / 2, shown, fontsize=7.5, va="center")
    for i, each in enumerate(classes):
        axes.text(-0.02, 1 - (i + 0.5) * height, each, fontsize=8, ha="right", va="center")


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    return [o for o in panel.spec["fieldConfig"]["overrides"] if str(o["matcher"]["options"]).startswith("Trend")]


def _draw_matrix(axes: Axes, _board: Answered, _panel: Panel, answers: Answers) -> None:
    ((_, lines),) = answers
    rows, columns = (sorted({line.labels[label] for line in lines}) for label in ("label", "predicted"))
    shares = np.full((len(rows), len(columns)), math.nan)
    for line in lines:
        shares[rows.index(line.labels["label"]), columns.index(line.labels["predicted"])] = line.values[-1]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.0%}", fontsize=7, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns, fontsize=6)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)


def _draw_states(axes: Axes, board: Answered, panel: Panel, answers: Answers) -> None:
    _over_time(axes, board)
    states = panel.spec["fieldConfig"]["defaults"]["mappings"][0]["options"]
    ((query, lines),) = answers
    for i, line in enumerate(lines):
        for time, value in zip(_since(board, line), line.values, strict=True):
            axes.barh(i, 1.0, left=time, height=0.7, color=states[f"{value:.0f}"]["color"], linewidth=0)
    axes.set_yticks(range(len(lines)), [name(line, query) for line in lines], fontsize=7)


_PAINTERS: dict[str, Callable[[Axes, Answered, Panel, Answers], None]] = {
    "timeseries": _draw_lines,
    "stat": _draw_number,
    "table": _draw_table,
    "matrix": _draw_matrix,
    "state-timeline": _draw_states,
}
