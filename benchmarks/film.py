"""Learning as a film: the images of each micro-batch, framed green where the prediction was right and red where it was
not, beside the rolling accuracy of old and new classes. From the predictions that a group recorded.

    python -m benchmarks.film --broker sqlite:///state/stream.db --start 9728 --stop 20480 --out film.gif

Old classes are those of the first phase of the stream, new ones came later; their images are at the bottom.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline import cli
from pipeline.broker import Broker, Partition, connect
from pipeline.errors import SettingsError, TopicError
from pipeline.monitoring.scores import Scores
from pipeline.records.images import decode, stack
from pipeline.records.topics import Topics
from pipeline.settings import Settings

BATCH = 256
ACROSS = 16
TILE, FRAME = 20, 2
"""Pixels of an image with its frame, and of the frame."""

HEIGHT = ACROSS * TILE
COLOURS = 48
RIGHT, WRONG, UNKNOWN = (40, 170, 80), (225, 50, 50), (130, 130, 130)

Served = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """A micro-batch: its predictions, and the rolling accuracy of every class after it.

    ``images`` are those of the stream up to and with it.
    """

    images: int
    served: Sequence[Served]
    rolling: dict[str, float]


@dataclass(frozen=True)
class Story:
    """All micro-batches of a stream, and the classes of its first phase."""

    moments: Sequence[Moment]
    old: frozenset[str]

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean rolling accuracy of the old, and of the new classes, after each micro-batch; nan without any."""
        return self._mean(True), self._mean(False)

    def _mean(self, old: bool) -> NDArray[np.float64]:
        groups = [[r for name, r in m.rolling.items() if (name in self.old) == old] for m in self.moments]
        return np.array([np.mean(group) if group else np.nan for group in groups])


def read(broker: Broker, topics: Topics, group: str, window: int, stop: int | None = None) -> Story:
    """The story of a group up to image ``stop``, from its predictions. Raises TopicError if it made none."""
    scores, moments, old, count = Scores(window), [], set(), 0
    first: str | None = None
    for some in _batches(islice(_predictions(broker, topics, group), stop)):
        known = [(s["label"], s["predicted"]) for s in some if s["label"] is not None]
        scores.add(known)
        first = first or some[0]["source"]
        old |= {s["label"] for s in some if s["source"] == first and s["label"] is not None}
        count += len(some)
        moments.append(Moment(count, some, {c.name: c.rolling for c in scores.classes()}))
    if not moments:
        raise TopicError(f"topic {topics.predictions} holds no prediction of group {group}")
    return Story(moments, frozenset(old))


def _predictions(broker: Broker, topics: Topics, group: str) -> Iterator[Served]:
    for partition, extent in broker.extents(topics.predictions).items():
        for message in broker.read(partition, extent.first, extent.end):
            served = orjson.loads(message.value)
            if served["group"] == group:
                yield served


def _batches(every: Iterator[Served]) -> Iterator[list[Served]]:
    some: list[Served] = []
    for served in every:
        some.append(served)
        if len(some) == BATCH:
            yield some
            some = []
    if some:
        yield some


def pixels(broker: Broker, topics: Topics, served: Sequence[Served]) -> NDArray[np.uint8]:
    """The images of predictions, ``uint8[n, 28, 28]``. Raises TopicError if the topic no longer holds one."""
    found = []
    for s in served:
        partition = Partition(topics.images, s["partition"])
        message = next(iter(broker.read(partition, s["offset"], s["offset"] + 1)), None)
        if message is None or message.offset != s["offset"]:
            raise TopicError(f"topic {topics.images} no longer holds image {s['id']}; film a later part, with --start")
        found.append(decode(message.value, message.headers))
    return stack(found)


def grid(images: NDArray[np.uint8], served: Sequence[Served], old: frozenset[str]) -> Image.Image:
    """The images in rows, new classes at the bottom, each in its frame."""
    page = Image.new("RGB", (ACROSS * TILE, HEIGHT), "white")
    order = sorted(range(len(served)), key=lambda i: served[i]["label"] not in old and served[i]["label"] is not None)
    for place, i in enumerate(order):
        y, x = (TILE * part for part in divmod(place, ACROSS))
        page.paste(_colour(served[i]), (x, y, x + TILE, y + TILE))
        inner = TILE - 2 * FRAME
        page.paste(Image.fromarray(images[i]).resize((inner, inner)), (x + FRAME, y + FRAME))
    return page


def _colour(served: Served) -> tuple[int, int, int]:
    if served["label"] is None:
        return UNKNOWN
    return RIGHT if served["label"] == served["predicted"] else WRONG


def curves(story: Story, now: int, start: int, stop: int) -> Image.Image:
    """Rolling accuracy up to moment ``now``, on an axis from moment ``start`` up to ``stop``."""
    figure = Figure(figsize=(4.6, HEIGHT / 100), dpi=100, layout="constrained")
    axes = figure.subplots()
    places = [m.images for m in story.moments[start : now + 1]]
    for name, mean, colour in zip(("old classes", "new classes"), story.means(), ("C0", "C3"), strict=True):
        axes.plot(places, mean[start : now + 1], color=colour, linewidth=2, label=name)
    axes.set_xlim(story.moments[start].images, story.moments[stop - 1].images)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlabel("images of the stream")
    axes.set_ylabel("rolling accuracy")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", frameon=False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return Image.open(drawn).convert("RGB")


def frame(story: Story, images: NDArray[np.uint8], now: int, start: int, stop: int) -> Image.Image:
    """The grid, and the curves beside it."""
    left = grid(images, story.moments[now].served, story.old)
    right = curves(story, now, start, stop)
    page = Image.new("RGB", (left.width + right.width + 8, HEIGHT), "white")
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 8, 0))
    draw = ImageDraw.Draw(page)
    draw.text((page.width - 14, HEIGHT - 60), _source(story.moments[now]), fill=(90, 90, 90), anchor="rb")
    return page


def _source(moment: Moment) -> str:
    return str(moment.served[-1]["source"]).rpartition("/")[2]


def shoot(broker: Broker, topics: Topics, story: Story, chosen: Sequence[int]) -> list[Image.Image]:
    """One frame for each chosen moment."""
    span = chosen[0], chosen[-1] + 1
    return [frame(story, pixels(broker, topics, story.moments[now].served), now, *span) for now in chosen]


def write(frames: Sequence[Image.Image], path: Path, rate: float) -> None:
    """A GIF that is shown again and again. Raises SettingsError if it cannot be written there."""
    palette = frames[-1].quantize(COLOURS, dither=Image.Dither.NONE)
    first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    durations = [round(1000 / rate)] * len(rest) + [2000]
    try:
        first.save(path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    except OSError as error:
        raise SettingsError(f"{path}: the film cannot be written: {error}") from error


def chosen(story: Story, start: int, frames: int) -> list[int]:
    """At most so many moments, evenly spread from ``start`` on. Raises SettingsError if none is left."""
    inside = [i for i, m in enumerate(story.moments) if m.images > start]
    if not inside:
        raise SettingsError(f"--start {start}: the part that is looked at ends with image {story.moments[-1].images}")
    return sorted({inside[round(i)] for i in np.linspace(0, len(inside) - 1, min(frames, len(inside)))})


def film(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Make the film that the command line asks for; what it shows."""
    topics = Topics(settings.topic_prefix)
    with closing(connect(settings.broker, settings)) as broker:
        story = read(broker, topics, settings.group, settings.window, arguments.stop)
        moments = chosen(story, arguments.start, arguments.frames)
        write(shoot(broker, topics, story, moments), arguments.out, arguments.rate)
    size = arguments.out.stat().st_size
    return {"file": str(arguments.out), "frames": len(moments), "bytes": size, "old": sorted(story.old)}


def main() -> int:
    parser = cli.parser("Draw learning as a film.", "broker", "topic_prefix", "group", "window")
    parser.add_argument("--out", type=Path, default=Path("film.gif"), metavar="FILE", help="a GIF")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="images of the stream that are left out")
    parser.add_argument("--stop", type=int, metavar="N", help="image of the stream to end with (default: the last)")
    parser.add_argument("--frames", type=int, default=40, metavar="N", help="at most so many (default: 40)")
    parser.add_argument("--rate", type=float, default=4, metavar="X", help="frames a second (default: 4)")
    arguments = parser.parse_args()
    result = film(arguments, cli.settings_of(arguments))
    text = f"{result['file']}: {result['frames']} frames, {result['bytes']:,} bytes"
    sys.stdout.write(orjson.dumps(result).decode() + "\n" if arguments.json else text + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
