"""Learning as a film: the images of each micro-batch, framed green where the prediction was right and red where it was
not, beside the rolling accuracy of old and new classes. From the predictions that a group recorded.

    python -m benchmarks.film --broker sqlite:///state/stream.db --start 9728 --stop 20480 --out film.gif

Old classes are those of the first phase of the stream, new ones came later; their images are at the bottom.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import report
from benchmarks.accuracy import BATCH, judged
from benchmarks.curves import Served, predictions
from pipeline import cli
from pipeline.broker import Broker, Partition, connect
from pipeline.errors import SettingsError, TopicError
from pipeline.monitoring.scores import Scores
from pipeline.records.images import decode, stack
from pipeline.records.topics import Topics

ACROSS = 16
TILE, FRAME = 20, 2
"""Pixels of an image with its frame, and of the frame."""

HEIGHT = ACROSS * TILE
COLOURS = 48
RIGHT, WRONG, UNKNOWN = (40, 170, 80), (225, 50, 50), (130, 130, 130)


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

    def means(self, old: bool) -> NDArray[np.float64]:
        """Mean rolling accuracy of the old or of the new classes after each micro-batch; nan without any."""
        groups = [[r for name, r in m.rolling.items() if (name in self.old) == old] for m in self.moments]
        return np.array([np.mean(group) if group else np.nan for group in groups])


def read(broker: Broker, topics: Topics, group: str, window: int, stop: int | None = None) -> Story:
    """The story of a group up to image ``stop``, from its predictions. Raises TopicError if it made none."""
    every = list(islice(predictions(broker, topics, group), stop))
    first = [s["label"] for s in every if s["source"] == every[0]["source"]]
    scores, moments = Scores(window), []
    for start in range(0, len(every), BATCH):
        some = every[start : start + BATCH]
        scores.add(judged([s["label"] for s in some], [s["predicted"] for s in some]))
        moments.append(Moment(start + len(some), some, {c.name: c.rolling for c in scores.classes()}))
    return Story(moments, frozenset(first) - {None})


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
        judgement = RIGHT if served[i]["label"] == served[i]["predicted"] else WRONG
        page.paste(UNKNOWN if served[i]["label"] is None else judgement, (x, y, x + TILE, y + TILE))
        inner = TILE - 2 * FRAME
        page.paste(Image.fromarray(images[i]).resize((inner, inner)), (x + FRAME, y + FRAME))
    return page


def curves(story: Story, now: int, start: int, stop: int) -> Image.Image:
    """Rolling accuracy up to moment ``now``, on an axis from moment ``start`` up to ``stop``."""
    figure, (axes,) = report.panels(1, 1, (4.6, HEIGHT / 100))
    places = [m.images for m in story.moments]
    for old, name, colour in ((True, "old classes", "C0"), (False, "new classes", "C3")):
        mean = story.means(old)[start : now + 1]
        axes.plot(places[start : now + 1], mean, color=colour, linewidth=2, label=name)
    axes.set(xlim=(places[start], places[stop - 1]), ylim=(-0.02, 1.03))
    axes.set(xlabel="images of the stream", ylabel="rolling accuracy")
    axes.legend(loc="center right", frameon=False)
    return report.image(figure, dpi=100)


def frame(story: Story, images: NDArray[np.uint8], now: int, start: int, stop: int) -> Image.Image:
    """The grid, and the curves beside it."""
    served = story.moments[now].served
    left, right = grid(images, served, story.old), curves(story, now, start, stop)
    page = Image.new("RGB", (left.width + right.width + 8, HEIGHT), "white")
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 8, 0))
    phase = served[-1]["source"].rpartition("/")[2]
    ImageDraw.Draw(page).text((page.width - 14, HEIGHT - 60), phase, fill=(90, 90, 90), anchor="rb")
    return page


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


def main() -> int:
    parser = cli.parser("Draw learning as a film.", "broker", "topic_prefix", "group", "window")
    parser.add_argument("--out", type=Path, default=Path("film.gif"), metavar="FILE", help="a GIF")
    cli.add_number(parser, "--start", 0, "images of the stream that are left out", default=0)
    cli.add_number(parser, "--stop", 1, "image of the stream to end with (default: the last)")
    cli.add_number(parser, "--frames", 1, "at most so many", default=40)
    cli.add_number(parser, "--rate", 0.01, "frames a second", default=4)
    arguments = parser.parse_args()
    settings = cli.settings_of(arguments)
    topics = Topics(settings.topic_prefix)
    with closing(connect(settings.broker, settings)) as broker:
        story = read(broker, topics, settings.group, settings.window, arguments.stop)
        places = chosen(story, arguments.start, arguments.frames)
        images = (pixels(broker, topics, story.moments[now].served) for now in places)
        span = places[0], places[-1] + 1
        frames = [frame(story, some, now, *span) for now, some in zip(places, images, strict=True)]
    write(frames, arguments.out, arguments.rate)
    size = arguments.out.stat().st_size
    result = {"file": str(arguments.out), "frames": len(frames), "bytes": size, "old": sorted(story.old)}
    cli.tell(arguments.json, result, f"{arguments.out}: {len(frames)} frames, {size:,} bytes")
    return 0


if __name__ == "__main__":
    cli.run(main)
