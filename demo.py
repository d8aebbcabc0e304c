"""The whole stream on one machine: a producer and a learner as two processes, a durable topic between them.

    python -m demo

Writes everything to one folder, which it empties first: the stream, the snapshots, the log of the producer and
``accuracy.png``, the rolling accuracy of every class.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import curves
from pipeline import cli
from pipeline.broker import connect
from pipeline.data import datasets, scenario
from pipeline.errors import MarketstreamError, SettingsError
from pipeline.records.topics import Topics
from pipeline.settings import load

MOST_AHEAD = 20_000
"""Images that the producer may be ahead of the learner on a slow machine."""

MARK = ".marketstream-demo"
"""Names a folder that the demo made, and so may empty."""


class DemoError(MarketstreamError):
    """One of the two processes failed."""


@dataclass(frozen=True)
class Place:
    """Where a demo's files and topics are. On a broker that others use too, its names are its own."""

    folder: Path
    broker: str
    prefix: str
    group: str

    @classmethod
    def of(cls, folder: Path, broker: str | None) -> "Place":
        """On the given broker; on an embedded one in the folder if there is none."""
        if broker is None:
            return cls(folder, f"sqlite:///{folder / 'stream.db'}", "", "learn")
        name = time.strftime("demo-%Y%m%d-%H%M%S")
        return cls(folder, broker, f"{name}.", name)


def fresh(folder: Path) -> None:
    """Make the folder, or empty the one of an earlier demo. Raises SettingsError for any other folder."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise SettingsError(f"{folder} was not made by a demo, and will not be emptied: choose another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def start(module: str, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", module, *arguments], **options)  # type: ignore[call-overload,no-any-return]


def finish(process: "subprocess.Popen[bytes]") -> None:
    """End a process that may still run, as Ctrl-C would."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait()


def parse(command_line: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The whole stream on one machine, from nothing.")
    parser.add_argument("--scenario", default="demo", metavar="NAME", help="a shipped scenario, or a path")
    parser.add_argument("--images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--broker", metavar="URL", help="another broker than the embedded one: kafka://HOST:PORT")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), metavar="DIR", help="where files go")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(command_line)


def stream(place: Place, name: str, images: int, as_json: bool) -> None:
    """Run producer and learner to the end of the stream."""
    common = ("--broker", place.broker, "--topic-prefix", place.prefix, "--group", place.group)
    log = place.folder / "producer.log"
    with log.open("wb") as file:
        ahead = ("--max-lag", str(MOST_AHEAD), "--images", str(images), "--producer-metrics-port", "0")
        send = start("producers.replay", name, *common, *ahead, stdout=file, stderr=file)
    flags = ("--snapshots", str(place.folder / "snapshots"), "--metrics-port", "0", *(["--json"] if as_json else []))
    learn = start("consumers.learn", *common, "--images", str(images), *flags)
    try:
        while learn.poll() is None and not send.poll():
            try:
                learn.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
    finally:
        finish(learn)
        finish(send)
    for process, what in ((send, f"the producer failed, see {log}"), (learn, "the learner failed, see above")):
        if process.returncode:
            raise DemoError(f"{what} (exit status {process.returncode})")


def main(command_line: Sequence[str] | None = None) -> int:
    """Run the demo as the command line says."""
    arguments = parse(command_line)
    drawn = scenario.load(arguments.scenario, images=arguments.images)
    place = Place.of(arguments.folder, arguments.broker)
    settings = load({"broker": place.broker})
    fresh(place.folder)
    for name in ("mnist", "fashion-mnist"):
        datasets.load(name, drawn.part, settings)  # here, so that the bar of a download is seen
    say = sys.stderr if arguments.json else sys.stdout
    print(f"{drawn.name}: {drawn.about}", file=say, flush=True)
    stream(place, arguments.scenario, drawn.images, arguments.json)
    picture = place.folder / "accuracy.png"
    with closing(connect(place.broker, settings)) as broker:
        curves.draw(curves.read(broker, Topics(place.prefix), place.group, settings.window), picture)
    newest = max((place.folder / "snapshots").rglob("*.safetensors"))
    print(f"\nrolling accuracy of every class: {picture}", file=say)
    print(f"stream: {place.broker}, topic {place.prefix}images; newest snapshot: {newest}", file=say)
    return 0


if __name__ == "__main__":
    cli.run(main)
