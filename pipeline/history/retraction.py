"""The command ``retract`` of ``pipeline.history.commands``: says what it would do, and with ``--yes`` does it."""

import argparse
import sys
from contextlib import closing
from datetime import datetime

import orjson

from pipeline.broker import connect
from pipeline.errors import SettingsError
from pipeline.history.retract import Choice, LearntGroup
from pipeline.records.topics import Topics
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder

UNTOUCHED = (
    "the images in the topic, their predictions, the journal, and snapshots that were written before; nor "
    "images that come later"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--id", metavar="ID", help="images of this id")
    parser.add_argument("--label", metavar="LABEL", help="images with this label")
    parser.add_argument("--key", metavar="KEY", help="images under this key")
    parser.add_argument(
        "--from", dest="begin", metavar="TIME", help="images that came at this time (ISO 8601) or after"
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="images that came before this time")
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what would be taken back")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do what the command line says; the exit status."""
    choice = choice_of(arguments)
    topics = Topics(settings.topic_prefix)
    folder = Folder(settings.snapshots / f"{settings.topic_prefix}{settings.group}", settings.snapshots_kept)
    with closing(connect(settings.broker, settings)) as broker:
        group = LearntGroup(broker, topics, settings.group, folder)
        if arguments.yes:
            with closing(group.producer()) as producer:
                found = group.find(choice)
                done = group.take_back(producer, found) if found.messages else ""
        else:
            found, done = group.find(choice), ""
    result = {"id": done, "done": bool(done), "images": len(found.messages), "classes": dict(found.classes)}
    if arguments.json:
        result |= {"not_published_yet": found.later, "not_touched": UNTOUCHED}
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return 0
    print(f"{'taken back' if done else 'would be taken back'}: {len(found.messages):,} images")
    for label, images in found.classes.most_common():
        print(f"  {label}: {images:,}")
    if found.later:
        print(f"{found.later:,} more were learnt, but not published yet: run this again in a while")
    print(f"not touched: {UNTOUCHED}")
    if found.messages and not done:
        print("to do it, say --yes")
    return 0


def choice_of(arguments: argparse.Namespace) -> Choice:
    """Raises SettingsError if nothing is chosen, or a time cannot be read."""
    begin, end = (_milliseconds(f"--{name}", text) for name, text in (("from", arguments.begin), ("to", arguments.end)))
    key = None if arguments.key is None else arguments.key.encode()
    choice = Choice(arguments.id, arguments.label, key, begin, end)
    if choice == Choice():
        raise SettingsError("say which images: --id, --label, --key, or --from and --to")
    return choice


def _milliseconds(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(1000 * datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise SettingsError(f"{flag}: expected a time as 2026-01-31T12:00:00, but it is {text!r}") from None
