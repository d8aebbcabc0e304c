"""Draw the rolling accuracy of every class over a stream, from the predictions that a group recorded.

python -m benchmarks.curves --broker sqlite:///runs/demo/stream.db --out accuracy.png
"""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
from matplotlib.axes import Axes

from benchmarks import report
from pipeline import cli
from pipeline.broker import Broker, connect
from pipeline.data.datasets import DIGITS
from pipeline.errors import TopicError
from pipeline.records.topics import Topics

POINTS = 2000
"""Points that a curve is drawn with, at most."""

COLOURS = mpl.color_sequences["petroff10"]  # told apart by the colour-blind too


Served = dict[str, Any]
"""A prediction, as it is on the topic."""


def predictions(broker: Broker, topics: Topics, group: str) -> Iterator[Served]:
    """All predictions of a group, in the order of the topic. Raises TopicError if it made none."""
    none = True
    for partition, extent in broker.extents(topics.predictions).items():
        for message in broker.read(partition, extent.first, extent.end):
            served = orjson.loads(message.value)
            if served["group"] == group:
                none = False
                yield served
    if none:
        raise TopicError(f"topic {topics.predictions} holds no prediction of group {group}")


@dataclass
class Curves:
    """Rolling accuracy of each class against images of the stream, and where the phases of the stream begin."""

    window: int
    step: int
    images: int = 0
    points: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    phases: list[tuple[int, str]] = field(default_factory=list)
    _outcomes: dict[str, "deque[bool]"] = field(default_factory=dict)

    def add(self, served: Served) -> None:
        """The next prediction of the stream."""
        phase = served["source"].rpartition("/")[2]
        if not self.phases or self.phases[-1][1] != phase:
            self.phases.append((self.images, phase))
        self.images += 1
        if (label := served["label"]) is None:
            return
        outcomes = self._outcomes.setdefault(label, deque(maxlen=self.window))
        outcomes.append(label == served["predicted"])
        xs, ys = self.points.setdefault(label, ([], []))
        if not xs or self.images - xs[-1] >= self.step:
            xs.append(self.images)
            ys.append(sum(outcomes) / len(outcomes))


def read(broker: Broker, topics: Topics, group: str, window: int) -> Curves:
    """The curves of a group, from its predictions. Raises TopicError if it made none."""
    total = sum(extent.end - extent.first for extent in broker.extents(topics.predictions).values())
    result = Curves(window, max(1, total // POINTS))
    for served in predictions(broker, topics, group):
        result.add(served)
    return result


def draw(curves: Curves, path: Path) -> None:
    """Two panels, digits above and everything else below, the phases marked.

    Raises SettingsError if the picture cannot be written there.
    """
    figure, (above, below) = report.panels(2, 1, (11, 7), shared=True)
    _draw_classes(above, curves, [name for name in DIGITS if name in curves.points])
    _draw_classes(below, curves, [name for name in curves.points if name not in DIGITS])
    for start, name in curves.phases:
        above.text(start, 1.06, f" {name}", fontsize=9, color="0.3")
    below.set_xlabel("images of the stream; each is predicted first, then learnt from")
    figure.supylabel(f"rolling accuracy (last {curves.window} images of a class)")
    report.save(figure, path, dpi=120)


def _draw_classes(axes: Axes, curves: Curves, names: list[str]) -> None:
    for i, name in enumerate(names):
        axes.plot(*curves.points[name], label=name, color=COLOURS[i % len(COLOURS)], linewidth=1.4)
    for (start, _), (end, _) in zip(curves.phases[1::2], [*curves.phases[2::2], (curves.images, "")], strict=False):
        axes.axvspan(start, end, color="0.5", alpha=0.08, linewidth=0)
    axes.set(xlim=(0, curves.images), ylim=(0, 1.03))
    if names:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def main() -> int:
    parser = cli.parser("Draw the rolling accuracy of every class.", "broker", "topic_prefix", "group", "window")
    parser.add_argument("--out", type=Path, default=Path("accuracy.png"), metavar="FILE", help="a PNG, SVG or PDF")
    arguments = parser.parse_args()
    settings = cli.settings_of(arguments)
    with closing(connect(settings.broker, settings)) as broker:
        curves = read(broker, Topics(settings.topic_prefix), settings.group, settings.window)
    draw(curves, arguments.out)
    result = {"file": str(arguments.out), "images": curves.images, "phases": curves.phases}
    cli.tell(arguments.json, result, str(arguments.out))
    return 0


if __name__ == "__main__":
    cli.run(main)
