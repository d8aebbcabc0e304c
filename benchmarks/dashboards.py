"""A picture of the dashboards' data: a stream is replayed, learnt and watched, and every panel's query answered.

    python -m benchmarks.dashboards --out dashboards.png

It is no screenshot: the queries, places, units and colours are those of the dashboards' files, the answers those of a
real Prometheus that watches a real producer and learner; the drawing is Matplotlib's.
"""

import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.panels import Answered, draw
from deploy.grafana.queries import FOLDER, ask, marks, panels, read
from deploy.local.prometheus import install
from deploy.local.stack import await_value, running
from pipeline import cli
from pipeline.data import scenario

PACE = ("--rate", "500", "--max-lag", "20000")
"""As in docker-compose.yml."""


def answered(url: str, path: Path, start: float, end: float) -> Answered:
    """A dashboard with the answers to its queries, of the time from ``start`` to ``end``. Raises QueryError."""
    board = read(path)
    phases = ask(url, marks(board)[0], start, end, 1)
    answers = [(panel, [(one, ask(url, one, start, end, 1)) for one in panel.queries]) for panel in panels(board)]
    spans = sorted((line.times[0], line.labels["phase"]) for line in phases)
    return Answered(board["title"], start, end, answers, spans)


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
        boards = [answered(stack.url, FOLDER / f"{name}.json", stack.began, end) for name in ("learning", "pipeline")]
    draw(boards, arguments.out)
    empty = [f"{b.title}: {p.title}" for b in boards for p, found in b.panels if not all(lines for _, lines in found)]
    result = {"file": str(arguments.out), "images": images, "panels": sum(len(b.panels) for b in boards)}
    sys.stdout.write(orjson.dumps({**result, "empty": empty}).decode() + "\n")
    return 1 if empty else 0


if __name__ == "__main__":
    cli.run(main)
