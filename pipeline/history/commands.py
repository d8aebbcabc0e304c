"""What a group of learners learnt, and when: its journal and its snapshots.

    marketstream history list
    marketstream history show 17
    marketstream history show s3
    marketstream history difference s2 s3 -o difference.safetensors
    marketstream history verify s3
    marketstream history retract --label Dress

A micro-batch is named by its number; a snapshot by its number after an ``s``, or by its file.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from pipeline import cli
from pipeline.broker import Broker, connect
from pipeline.errors import SettingsError, SnapshotError
from pipeline.history import listing, verify
from pipeline.history.difference import check_retractions, difference
from pipeline.history.listing import Row, name_of
from pipeline.history.retract import Choice, Found, LearntGroup
from pipeline.records.journal import Journal, places, taken_back
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import NAME, Folder, Snapshot

PLACE = ("broker", "topic_prefix", "group", "snapshots")

UNTOUCHED = (
    "the images in the topic, their predictions, the journal, and snapshots that were written before; nor "
    "images that come later"
)

Command = Callable[[argparse.Namespace, Settings], int]


def main(command_line: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    arguments = _parser().parse_args(command_line)
    command: Command = arguments.command
    return command(arguments, cli.settings_of(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What a group of learners learnt, and when.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(command: Command, name: str, about: str, *aliases: str) -> argparse.ArgumentParser:
        result = cli.parser(about, *PLACE, make=partial(commands.add_parser, name, aliases=aliases, help=about))
        result.set_defaults(command=command)
        return result

    form = "as the list names it (s3), or a file"
    some = add(_list, "list", "List micro-batches and snapshots, oldest first.")
    cli.add_number(some, "--last", 1, "only the newest N", default=20)
    one = add(_show, "show", "Show all that is known of one micro-batch or snapshot.")
    one.add_argument("which", metavar="WHICH", help=f"a micro-batch's number; or a snapshot, {form}")
    two = add(
        _difference, "difference", "Write the model of what was learnt from one snapshot to a later one.", "stretch"
    )
    two.add_argument("older", metavar="OLDER", help=f"a snapshot, {form}")
    two.add_argument("newer", metavar="NEWER", help="a later one of the same group")
    two.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the snapshot to write")
    check = add(_verify, "verify", "Learn a snapshot's images anew from the topic, and compare the digests.")
    check.add_argument("snapshot", nargs="?", metavar="SNAPSHOT", help=f"{form} (default: the newest)")
    check.add_argument("--from", dest="older", metavar="OLDER", help="begin with this older snapshot")
    _add_choice(add(_retract, "retract", "Take images back, as if they had never been learnt."))
    return parser


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    with closing(connect(settings.broker, settings)) as broker:
        result = listing.newest(_journal(broker, settings), Folder.of(settings), arguments.last)
    cli.tell(arguments.json, result, *_list_of(settings.group, result))
    return 0


def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    if re.fullmatch(r"[0-9]{1,18}", arguments.which):
        with closing(connect(settings.broker, settings)) as broker:
            about = listing.about_micro_batch(_journal(broker, settings).micro_batch(int(arguments.which)))
    else:
        path, snapshot = _snapshot(arguments.which, settings)
        about = listing.about_snapshot(snapshot, path)
    cli.tell(arguments.json, about, *_facts(about))
    return 0


def _difference(arguments: argparse.Namespace, settings: Settings) -> int:
    out: Path = arguments.out
    if out.exists():
        raise SettingsError(f"--out: {out} exists already: choose another name")
    if NAME.fullmatch(out.name):
        raise SettingsError(f"--out: {out.name} is what a learner calls its own snapshots: choose another name")
    (_, older), (_, newer) = (_snapshot(which, settings) for which in (arguments.older, arguments.newer))
    result = difference(older, newer)
    if newer.retracted > older.retracted:
        with closing(connect(settings.broker, settings)) as broker:
            check_retractions(older, newer, taken_back(broker, Topics(settings.topic_prefix).updates))
    snapshots.write(result, out)
    about = listing.about_snapshot(result, out)
    about = {key: about[key] for key in ("file", "digest", "settled_images", "classes")}
    cli.tell(arguments.json, about, *_facts(about))
    return 0


def _verify(arguments: argparse.Namespace, settings: Settings) -> int:
    path, snapshot = _snapshot(arguments.snapshot or _newest(settings), settings)
    older = _snapshot(arguments.older, settings)[1] if arguments.older else None
    begin = verify.beginning(snapshot, older, settings.snapshots)
    topic = Topics(settings.topic_prefix).images
    with closing(connect(settings.broker, settings)) as broker:
        spans = verify.spans(broker, topic, begin, snapshot)
        records = sum(span.end - span.first for span in spans.values())
        with cli.bar(f"verifying {name_of(path)}", records) as bar:
            taken = taken_back(broker, Topics(settings.topic_prefix).updates)
            gone = places(taken[id] for id in snapshot.retracted - begin.retracted if id in taken)
            found = verify.settle_spans(broker, begin, spans, snapshot.refuses, lambda n: bar(advance=n), gone).digest
    same = found == snapshot.digest
    result = {"same": same, "file": str(path), "digest": snapshot.digest, "topic_digest": found}
    what = "same" if same else "differs"
    after = f" after {arguments.older}" if older else ""
    text = f"{what}: {path} has {snapshot.digest}, topic {topic}{after} makes {found}"
    cli.tell(arguments.json, result | {"from": arguments.older, "records": records}, text)
    return 0 if same else 1


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--id", metavar="ID", help="images of this id")
    parser.add_argument("--label", metavar="LABEL", help="images with this label")
    parser.add_argument("--key", metavar="KEY", help="images under this key")
    for flag, dest, about in (
        ("--from", "begin", "images that came at this time (ISO 8601) or after"),
        ("--to", "end", "images that came before this time"),
    ):
        parser.add_argument(flag, dest=dest, type=partial(_milliseconds, flag), metavar="TIME", help=about)
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what would be taken back")


def _retract(arguments: argparse.Namespace, settings: Settings) -> int:
    """Say what would be taken back, and with ``--yes`` do it."""
    choice = _choice(arguments)
    with closing(connect(settings.broker, settings)) as broker:
        group = LearntGroup(broker, Topics(settings.topic_prefix), settings.group, Folder.of(settings))
        if arguments.yes:
            with closing(group.producer()) as producer:
                found = group.find(choice)
                done = group.take_back(producer, found) if found.messages else ""
        else:
            found, done = group.find(choice), ""
    result = {"id": done, "done": bool(done), "images": len(found.messages), "classes": dict(found.classes)}
    result |= {"not_published_yet": found.later, "not_touched": UNTOUCHED}
    cli.tell(arguments.json, result, *_retracted(found, bool(done)))
    return 0


def _retracted(found: Found, done: bool) -> Iterator[str]:
    yield f"{'taken back' if done else 'would be taken back'}: {len(found.messages):,} images"
    for label, images in found.classes.most_common():
        yield f"  {label}: {images:,}"
    if found.later:
        yield f"{found.later:,} more were learnt, but not published yet: run this again in a while"
    yield f"not touched: {UNTOUCHED}"
    if found.messages and not done:
        yield "to do it, say --yes"


def _choice(arguments: argparse.Namespace) -> Choice:
    """Raises SettingsError if nothing is chosen, or a time cannot be read."""
    key = None if arguments.key is None else arguments.key.encode()
    choice = Choice(arguments.id, arguments.label, key, arguments.begin, arguments.end)
    if choice == Choice():
        raise SettingsError("say which images: --id, --label, --key, or --from and --to")
    return choice


def _milliseconds(flag: str, text: str) -> int:
    try:
        return int(1000 * datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise SettingsError(f"{flag}: expected a time as 2026-01-31T12:00:00, but it is {text!r}") from None


def _journal(broker: Broker, settings: Settings) -> Journal:
    return Journal(broker, Topics(settings.topic_prefix).updates, settings.group)


def _snapshot(which: str, settings: Settings) -> tuple[Path, Snapshot]:
    """A snapshot that a user named, and its file. Raises SnapshotError."""
    path = Path(which)
    if re.fullmatch(r"s[0-9]{1,10}", which):
        path = Folder.of(settings).path / f"snapshot-{int(which[1:]):010}.safetensors"
        if not path.exists():
            there = ", ".join(map(name_of, reversed(Folder.of(settings).files())))
            raise SnapshotError(f"no snapshot {which} in {path.parent}: there are {there or 'none'}")
    return path, snapshots.read(path)


def _newest(settings: Settings) -> str:
    folder = Folder.of(settings)
    for path in folder.files():
        return str(path)
    raise SnapshotError(f"no snapshot in {folder.path}: check --snapshots, --topic-prefix and --group, or name a file")


def _list_of(group: str, result: Row) -> Iterator[str | Table]:
    rows, batches, files = result["rows"], result["micro_batches"], result["snapshots"]
    if rows:
        yield _table(rows)
    shown = f"the newest {len(rows):,} of " if len(rows) < batches + files else ""
    yield f"group {group}: {shown}{batches:,} micro-batches and {files:,} snapshots"


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # fits into 80 columns
    for name in ("time", "what", "generation", "settled", "images", "accuracy", "digest"):
        table.add_column(name, justify="left" if name in ("time", "what", "digest") else "right", no_wrap=True)
    for row in rows:
        keys = ("generation", "settled_images", "images", "accuracy")
        digest = "damaged" if "problem" in row else row.get("digest", "")[:8]
        what = row["name"] if row["kind"] == "micro-batch" else f"snapshot {row['name']}"
        cells = (_text(key, row[key]) if key in row else "" for key in keys)
        table.add_row(_text("time", row["time"]), what, *cells, digest)
    return table


def _facts(about: Row) -> Iterator[str | Table]:
    """A line for each fact, then a table of the classes."""
    facts = {key.replace("_", " "): _text(key, value) for key, value in about.items() if key != "classes"}
    width = max(map(len, facts))
    yield from (f"{key:<{width}}  {text}" for key, text in facts.items())
    keys = list(dict.fromkeys(key for row in about["classes"].values() for key in row))
    table = Table("class", *(Column(key.replace("_", " "), justify="right") for key in keys), box=SIMPLE_HEAD)
    for name, row in about["classes"].items():
        table.add_row(name, *(_text(key, row.get(key)) for key in keys))
    if keys:
        yield table


def _text(key: str, value: Any) -> str:
    if key == "time":
        return datetime.fromtimestamp(value).isoformat(" ", "seconds")
    if key == "base":
        return value or "nothing"
    if key == "number":  # a name, as it is to be typed
        return str(value)
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3f}"
        case Mapping():
            return ", ".join(f"{name}: {part}" for name, part in value.items())
    return str(value)


if __name__ == "__main__":
    cli.run(main)
