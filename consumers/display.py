"""What a person sees of a worker: a live table in a terminal, log lines elsewhere, a summary at the end."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
    """Shows how a worker fares, from a thread of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._begun = 0.0

    @property
    def seconds(self) -> float:
        """Since the worker began."""
        return time.monotonic() - self._begun

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show for the length of the block; time counts from here."""
        self._begun = time.monotonic()
        with self._table() if sys.stderr.isatty() else self._lines():
            yield

    @contextmanager
    def _table(self) -> Iterator[None]:
        """A live table. At the end it vanishes where a summary with the same table comes to the same terminal."""
        page: Callable[[], Group] = self._page
        with Live(get_renderable=lambda: page(), console=Console(stderr=True), refresh_per_second=4):
            yield
            if sys.stdout.isatty():
                page = Group  # an empty one; Live's own ``transient`` leaves the rows that the terminal has no room for

    @contextmanager
    def _lines(self) -> Iterator[None]:
        """A line now and then, and one at the end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._say, args=(ended,), name="display")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _say(self, ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            log.info("%s", self._status())
        log.info("%s", self._status())

    def _status(self) -> str:
        w = self._worker
        return (
            f"{w.scores.images:,} images  rolling accuracy {w.scores.rolling:.3f}  "
            f"{w.records / self.seconds:,.0f} images/s  generation {w.generation}  lag {sum(w.lag.values()):,}"
        )

    def _page(self) -> Group:
        return Group(Text(self._status()), class_table(self._worker.scores))  # a low terminal cuts the end off


def class_table(scores: Scores) -> Table:
    """A row for each class, by name: seen, rolling accuracy with a bar, accuracy over all, forgetting."""
    table = Table()
    table.add_column("class")
    for name in ("seen", "rolling", "", "overall", "forgetting"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for c in sorted(scores.classes(), key=lambda c: natural(c.name)):
        full = round(BAR * c.rolling)
        bar = Text("━" * full, "green") + Text("━" * (BAR - full), "grey37")
        forgetting = f"{c.forgetting:.3f}" if c.forgetting else "–"
        table.add_row(c.name, f"{c.images:,}", f"{c.rolling:.3f}", bar, f"{c.correct / c.images:.3f}", forgetting)
    return table


def natural(name: str) -> list[str | int]:
    """The key that sorts names as a person would: 2 before 10, and capitals among the small letters."""
    words_and_numbers = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(words_and_numbers)]


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
        "settled_images": worker.model_images,
        "digest": worker.state.digest,
    }
