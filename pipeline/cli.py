"""What all command-line programs share: flags made from the settings, errors in one line, exit codes."""

import argparse
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TextIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import MarketstreamError, SettingsError
from pipeline.settings import PREFIX, Settings, load

log = logging.getLogger(__name__)

PATIENCE = 8.0
"""Seconds in which a program that was told to stop does so in order. Those who stop containers wait for ten."""


def parser(
    description: str, *settings: str, make: Callable[..., argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """An argument parser, or a command of one that ``make`` adds, with ``--json`` and a flag for each named setting."""
    result = make(description=description, epilog=f"Every setting is also an environment variable, {PREFIX}NAME.")
    for name in settings:
        field = Settings.model_fields[name]
        default = "" if field.default in (None, "") or field.default_factory else f" (default: {field.default})"
        result.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X", help=f"{field.description}{default}")
    result.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    return result


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that parsed arguments, environment and defaults make. Raises SettingsError."""
    return load({k: v for k, v in vars(arguments).items() if k in Settings.model_fields})


def add_number(parser: argparse.ArgumentParser, flag: str, least: float, about: str, **options: Any) -> None:
    """Add a flag for a number of at least ``least``, an int or a float as that is. Parsing it raises SettingsError."""
    kind = type(least)

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number < math.inf:
            what = "whole number" if kind is int else "number"
            raise SettingsError(f"{flag}: expected a {what} of at least {least:g}, but it is {text!r}")
        return number

    default = f" (default: {options['default']:,})" if "default" in options else ""
    parser.add_argument(flag, type=read, metavar="N", help=about + default, **options)


def tell(as_json: bool, result: object, *parts: str | Table) -> None:
    """Print the result as one JSON object, or these parts for a person: names of classes as they are."""
    if as_json:
        print(orjson.dumps(result, option=orjson.OPT_NON_STR_KEYS).decode())
        return
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    for part in parts:
        console.print(part)


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on standard error, if that is a terminal, and what moves it: ``advance=``, ``completed=``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as shown:
        yield partial(shown.update, shown.add_task(title, total=total))


@contextmanager
def stop_on_signals(patience: float | None = None) -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set.

    If the block does not end within ``patience`` seconds after that, the process does, as if it had been killed: a
    broker may be out of reach, and whoever sent the signal will not wait for it.
    """
    stop, ended = threading.Event(), threading.Event()

    def end() -> None:
        stop.set()
        if not ended.wait(patience):
            log.error(
                "the broker has not answered for %g s since the signal: ending at once; nothing is lost", patience
            )
            os._exit(1)

    def handle(_number: int, _frame: FrameType | None) -> None:
        # Not set() itself: the thread that is interrupted may hold the event's lock.
        threading.Thread(target=end, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log(logging.StreamHandler[TextIO]):
    """Writes to what is stderr now. A live table takes that place, and lets lines of the log pass above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def run(main: Callable[[], int]) -> None:
    """Run a program: its result is the exit status; 1 and one line on an expected error, 130 on Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=[_Log()])
    try:
        status = main()
        sys.stdout.flush()
    except MarketstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has gone: not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
