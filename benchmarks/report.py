"""How benchmarks tell what they found: as tables, as pictures; and how they keep it."""

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from pipeline.errors import SettingsError
from pipeline.files import write_whole

Result = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal."""
    page = Table(*head)
    for cells in rows:
        page.add_row(*cells)
    return page


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a page."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def panels(rows: int, columns: int, size: tuple[float, float], shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A picture of ``size`` inches, and its axes, row by row; they may share their scales."""
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flat)
    for each in axes:
        each.grid(alpha=0.3)
    return figure, axes


def image(figure: Figure, dpi: int) -> Image.Image:
    """A picture as pixels."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    return Image.open(drawn).convert("RGB")


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a picture. Raises SettingsError if it cannot be written there."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: the picture cannot be written: {error}") from error


def kept(path: Path, measure: Callable[[], Result]) -> Result:
    """What is kept in a file; if it is not there, it is measured, and kept there as a whole or not at all."""
    if not path.exists():
        write_whole(path, orjson.dumps(measure()))
    result: Result = orjson.loads(path.read_bytes())
    return result
