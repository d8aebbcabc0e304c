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
from contextlib import closing, suppress
from pathlib import Path

from benchmarks import curves
from pipeline import cli
from pipeline.broker import connect
from pipeline.data import datasets, scenario
from pipeline.errors import MarketstreamError, SettingsError
from pipeline.records.topics import Topics
from pipeline.settings import Settings, load

MOST_AHEAD = 20_000
"""Images that the producer may be ahead of the learner on a slow machine."""

MARK = ".marketstream-demo"
"""Names a folder that the demo made, and so may empty."""


class DemoError(MarketstreamError):
    """One of the two processes failed."""


def place(folder: Path, broker: str | None) -> Settings:
    """Where a demo's files and topics are. On a broker that others use too, its names are its own."""
    name = time.strftime("demo-%Y%m%d-%H%M%S") if broker else "learn"
    where = {"broker": broker or f"sqlite:///{folder / 'stream.db'}", "snapshots": folder / "snapshots"}
    return load({**where, "topic_prefix": f"{name}." if broker else "", "group": name})


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
    parser = cli.parser("The whole stream on one machine, from nothing.")
    parser.add_argument("--scenario", default="demo", metavar="NAME", help="a shipped scenario, or a path")
    cli.add_number(parser, "--images", 1, "only the first N images")
    parser.add_argument("--broker", metavar="URL", help="another broker than the embedded one: kafka://HOST:PORT")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), metavar="DIR", help="where files go")
    return parser.parse_args(command_line)


def stream(settings: Settings, name: str, images: int, log: Path, as_json: bool) -> None:
    """Run producer and learner to the end of the stream."""
    common = ("--broker", settings.broker, "--topic-prefix", settings.topic_prefix, "--group", settings.group)
    with log.open("wb") as file:
        ahead = ("--max-lag", str(MOST_AHEAD), "--images", str(images), "--producer-metrics-port", "0")
        send = start("producers.replay", name, *common, *ahead, stdout=file, stderr=file)
    flags = ("--snapshots", str(settings.snapshots), "--metrics-port", "0", *(["--json"] if as_json else []))
    learn = start("consumers.learn", *common, "--images", str(images), *flags)
    try:
        while learn.poll() is None and not send.poll():
            with suppress(subprocess.TimeoutExpired):
                learn.wait(0.5)
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
    folder = arguments.folder
    settings = place(folder, arguments.broker)
    fresh(folder)
    for name in ("mnist", "fashion-mnist"):
        datasets.load(name, drawn.part, settings)  # here, so that the bar of a download is seen
    say = sys.stderr if arguments.json else sys.stdout
    print(f"{drawn.name}: {drawn.about}", file=say, flush=True)
    stream(settings, arguments.scenario, drawn.images, folder / "producer.log", arguments.json)
    picture, prefix = folder / "accuracy.png", settings.topic_prefix
    with closing(connect(settings.broker, settings)) as broker:
        curves.draw(curves.read(broker, Topics(prefix), settings.group, settings.window), picture)
    newest = max(settings.snapshots.rglob("*.safetensors"))
    print(f"\nrolling accuracy of every class: {picture}", file=say)
    print(f"stream: {settings.broker}, topic {prefix}images; newest snapshot: {newest}", file=say)
    return 0


if __name__ == "__main__":
    cli.run(main)
