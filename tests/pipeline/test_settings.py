"""Settings: flags over environment over defaults; what is wrong is named. And what all programs share."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from pipeline import cli
from pipeline.errors import SettingsError
from pipeline.settings import PREFIX, Settings, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def parsed(*command_line: str) -> Settings:
    return cli.settings_of(cli.parser("Test.", *Settings.model_fields).parse_args(command_line))


def test_defaults_stand_where_nothing_is_said() -> None:
    assert (parsed().batch_size, parsed().partitions, parsed().backend) == (256, None, "auto")


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKETSTREAM_BATCH_SIZE", "32")
    monkeypatch.setenv("MARKETSTREAM_WINDOW", "7")
    both = parsed("--batch-size", "64")
    assert (both.batch_size, both.window, both.seed) == (64, 7, 0)


def other_than_default(name: str) -> str:
    """Some valid value, as it is written on a command line."""
    field, default = Settings.model_fields[name], getattr(Settings(), name)
    if get_origin(field.annotation) is Literal:
        return next(str(choice) for choice in get_args(field.annotation) if choice != default)
    if isinstance(default, int | float):
        return str(default + 1)
    return "5" if default is None else f"{default}5"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_a_flag_and_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = other_than_default(name)
    by_flag = parsed(f"--{name.replace('_', '-')}", value)
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)
    by_variable = parsed()
    monkeypatch.delenv(f"{PREFIX}{name.upper()}")
    assert by_variable == by_flag
    assert [n for n in Settings.model_fields if getattr(by_flag, n) != getattr(parsed(), n)] == [name]


def test_an_empty_variable_is_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", "")
    everything_empty = load({})
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}")
    assert everything_empty == load({})


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert load({}).cache == Path("/caches/marketstream")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert load({}).cache == Path("/home/someone/.cache/marketstream")


BAD = [
    ("batch_size", "many"),
    ("batch_size", "0"),
    ("batch_size", "4097"),
    ("batch_wait", "0"),
    ("batch_wait", "nan"),
    ("partitions", "0"),
    ("seed", "-1"),
    ("seed", str(2**64)),
    ("filters", "1.5"),
    ("backend", "cuda"),
    ("group", "a group"),
    ("topic_prefix", "a/b"),
    ("metrics_port", "65536"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_flag_and_variable(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag, variable = f"--{name.replace('_', '-')}", f"{PREFIX}{name.upper()}"
    expected = re.escape(f"{flag} (or {variable}): ") + f".*{re.escape(repr(value))}$"
    with pytest.raises(SettingsError, match=expected):
        parsed(f"{flag}={value}")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=expected):
        parsed()


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="no-such"):
        load({"no_such": 1})


def test_settings_are_frozen() -> None:
    settings = load({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1  # type: ignore[misc]


def test_help_tells_what_each_flag_does_its_default_and_the_variables() -> None:
    text = " ".join(cli.parser("What it does.", *Settings.model_fields).format_help().split())
    assert "What it does." in text
    assert "MARKETSTREAM_NAME" in text
    assert "--batch-size X most images in a micro-batch (default: 256)" in text
    assert "--data X directory that holds the IDX files of the data sets --" in text
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} X {field.description}" in text
    assert "None" not in text
    assert "(default: )" not in text


def fails(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("status", [0, 3])
def test_what_a_program_returns_is_its_exit_status(status: int) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: status)
    assert end.value.code == status


def test_an_expected_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(fails(SettingsError("what, where, and what to do")))
    assert end.value.code == 1
    assert capsys.readouterr() == ("", "error: what, where, and what to do\n")


def test_ctrl_c_is_quiet_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(fails(KeyboardInterrupt()))
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_any_other_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(fails(ZeroDivisionError()))


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    program = "from pipeline import cli; cli.run(lambda: print('line\\n' * 100_000) or 0)"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_the_handler_of_before_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with cli.stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(10)
    assert signal.getsignal(number) is before


def test_a_program_that_cannot_stop_in_order_ends_all_the_same() -> None:
    program = """if True:
        import threading
        from pipeline import cli
        with cli.stop_on_signals(0.1):
            print("ready", flush=True)
            threading.Event().wait()
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert b"nothing is lost" in process.stderr.read()
