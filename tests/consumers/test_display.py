"""What a person sees of a learner: in a terminal a live table that gives way to the summary, elsewhere lines."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pytest

from consumers.display import natural
from pipeline.broker import Record
from tests.consumers.harness import ROOT, Place, records

ROWS, COLUMNS = 24, 100
CLASSES = [f"{'Class' if number % 2 else 'class'} {number}" for number in range(25)]
"""More than a terminal has rows for."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def labelled(record: Record, label: str) -> Record:
    headers = tuple((name, label.encode() if name == "ce_label" else value) for name, value in record.headers)
    return record._replace(headers=headers)


def send_many_classes(place: Place) -> None:
    """Of each class four images. The last class comes first."""
    place.send(labelled(record, CLASSES[-1 - i % 25]) for i, record in enumerate(records(100)))


def remains(written: str) -> list[str]:
    """The lines that a terminal ends with, also those that have left the screen at its upper edge."""
    lines, row, column = [""], 0, 0
    for step in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if step == "\r":
            column = 0
        elif step == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif step == "\x1b[1A":
            row = max(row - 1, len(lines) - ROWS, 0)
        elif step == "\x1b[2K":
            lines[row] = ""
        elif step.startswith("\x1b"):
            assert step[-1] in "mhl", step  # colours; the cursor is hidden and shown
        else:
            lines[row] = lines[row][:column].ljust(column) + step + lines[row][column + len(step) :]
            column += len(step)
    return [line.rstrip() for line in lines]


def learn_in_a_terminal(place: Place, stdout: IO[str] | None = None) -> list[str]:
    """Stop a learner when its live table shows all classes. What the terminal then has; the summary may be a file."""
    flags = [flag for flag in place.flags() if flag != "--json"]
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (ROWS, COLUMNS))
    environment = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
    command = [sys.executable, "-m", "consumers.learn", *flags]
    written = b""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment | {"TERM": "xterm"}, stdin=end, stdout=stdout or end, stderr=end
    ) as process:
        os.close(end)
        try:
            while CLASSES[0].encode() not in written:
                written += os.read(terminal, 1 << 16)
            process.terminate()
            while True:
                written += os.read(terminal, 1 << 16)
        except OSError:  # nobody has the other end any more
            os.close(terminal)
    assert process.returncode == 0, written
    return remains(written.decode())


def classes_of(lines: list[str]) -> list[str]:
    """The first column of every table in these lines, with its head."""
    return [found[1] for line in lines if (found := re.match(r"[┃│] (.*?) +[┃│]", line))]


def test_at_the_end_a_terminal_shows_the_table_once_below_the_lines_of_the_log(place: Place) -> None:
    send_many_classes(place)
    lines = learn_in_a_terminal(place)
    assert classes_of(lines) == ["class", *CLASSES]
    first = next(number for number, line in enumerate(lines) if line.startswith("┏"))
    log, rest = lines[:first], lines[first + len(CLASSES) + 4 :]
    assert [line for line in log if "INFO metrics at http" in line]
    assert [line for line in log if "INFO snapshot" in line]
    assert [line.split()[0] for line in rest if line and not line[0].isdecimal()] == ["predicted", "digest"]


def test_where_the_summary_goes_to_a_file_the_live_table_stays(place: Place) -> None:
    send_many_classes(place)
    with (place.folder / "summary").open("w") as file:
        lines = learn_in_a_terminal(place, file)
    assert classes_of(lines) == ["class", *CLASSES]
    first = next(number for number, line in enumerate(lines) if line.startswith("┏"))
    assert re.match(r"\d+ images  rolling accuracy", lines[first - 1])
    assert classes_of((place.folder / "summary").read_text().splitlines()) == ["class", *CLASSES]


def test_elsewhere_a_line_is_logged_now_and_then_and_at_the_end(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.display.SECONDS_BETWEEN_LINES", 0.01)
    place.send(records(600))
    with caplog.at_level(logging.INFO, "consumers.display"):
        place.learn(capsys, "--images", 600)
    lines = [record.getMessage() for record in caplog.records if record.name == "consumers.display"]
    assert len(lines) > 1
    assert re.fullmatch(
        r"600 images  rolling accuracy [01]\.\d{3}  [\d,]+ images/s  generation \d+  lag \d+", lines[-1]
    )
    assert not lines[0].startswith("600")


@pytest.mark.parametrize(
    ("came", "shown"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["Trouser", "ankle boot", "Bag"], ["ankle boot", "Bag", "Trouser"]),
        (["b2c10", "b2c9", "b10", "b"], ["b", "b2c9", "b2c10", "b10"]),
        (["shirt", "7", "", "seven"], ["", "7", "seven", "shirt"]),
        (["A1", "a01", "a1", "a0"], ["a0", "A1", "a01", "a1"]),
        (["²", "٣", "2"], ["2", "٣", "²"]),
    ],
)
def test_classes_are_in_the_order_of_their_names(came: list[str], shown: list[str]) -> None:
    assert sorted(came, key=natural) == shown
