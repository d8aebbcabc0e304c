"""What a person sees of a worker: a live table in a terminal, log lines elsewhere, a summary at the end."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consumers.worker import Worker
from pipeline.monitoring.scores import Scores

log = logging.getLogger(__name__)

BAR = 20
SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Shows how a worker fares; ``update`` is called after every micro-batch."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._begun = self._said = 0.0

    @property
    def images_per_second(self) -> float:
        """Records taken a second since the worker began."""
        return self._worker.records / max(self.seconds, 1e-9)

    @property
    def seconds(self) -> float:
        """Since the worker began."""
        return time.monotonic() - self._begun

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show for the length of the block; time counts from here."""
        self._begun = self._said = time.monotonic()
        if not sys.stderr.isatty():
            yield
            self._line()
            return
        console = Console(stderr=True)
        with Live(get_renderable=self._page, console=console, refresh_per_second=4):
            yield

    def update(self) -> None:
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        log.info("%s", self._status())

    def _status(self) -> str:
        w = self._worker
        return (
            f"{w.scores.images:,} images  rolling accuracy {w.scores.rolling:.3f}  "
            f"{self.images_per_second:,.0f} images/s  generation {w.generation}  lag {sum(w.lag.values()):,}"
        )

    def _page(self) -> Group:
        return Group(class_table(self._worker.scores), Text(self._status()))


def class_table(scores: Scores) -> Table:
    """A row for each class: seen, rolling accuracy with a bar, accuracy over all, forgetting."""
    table = Table()
    table.add_column("class")
    for name in ("seen", "rolling", "", "overall", "forgetting"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for c in scores.classes():
        full = round(BAR * c.rolling)
        bar = Text("━" * full, "green") + Text("━" * (BAR - full), "grey37")
        forgetting = f"{c.forgetting:.3f}" if c.forgetting else "–"
        table.add_row(c.name, f"{c.images:,}", f"{c.rolling:.3f}", bar, f"{c.correct / c.images:.3f}", forgetting)
    return table


def summary(worker: Worker, group: str, seconds: float) -> dict[str, Any]:
    """The run as one JSON object."""
    scores = worker.scores
    return {
        "group": group,
        "records": worker.records,
        "dead_letters": worker.dead_letters,
        "seconds": round(seconds, 3),
        "images_per_second": round(worker.records / seconds, 1),
        "labelled_images": scores.images,
        "accuracy": scores.correct / scores.images if scores.images else None,
        "classes": {
            c.name: {"images": c.images, "correct": c.correct, "rolling": c.rolling, "forgetting": c.forgetting}
            for c in scores.classes()
        },
        "generation": worker.generation,
        "settled_images": worker.settled_images,
        "digest": worker.state.digest,
    }
