"""The one command: it finds its commands, says what there is, and what was meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import marketstream

ROOT = Path(__file__).parents[1]


def program(*arguments: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "marketstream"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == check, done.stderr
    return done


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(arguments: tuple[str, ...]) -> None:
    told = program(*arguments).stdout
    assert "usage: marketstream COMMAND" in told
    for name in ("demo", "learn", "replay", "predict", "history", "pretrain", "datasets", "topics"):
        assert f"\n  {name} " in told


def test_help_imports_no_library() -> None:
    code = (
        "import sys, marketstream; marketstream.main(['--help']); "
        "heavy = {'numpy', 'pydantic', 'kafka', 'rich', 'pipeline'} & set(sys.modules); sys.exit(bool(heavy))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(marketstream.COMMANDS))
def test_every_command_has_help_under_its_own_name(name: str) -> None:
    assert f"usage: marketstream {name} " in program(name, "--help").stdout


def test_a_command_that_is_not_there_is_an_error_that_says_what_was_meant() -> None:
    assert program("lern", check=2).stderr == "error: no command 'lern': did you mean learn?\n"
    assert "there are demo, replay, learn" in program("xyzzy", check=2).stderr


def test_a_command_does_what_it_does_and_its_errors_are_a_line(tmp_path: Path) -> None:
    broker = ("--broker", f"sqlite:///{tmp_path}/stream.db", "--json")
    topics = json.loads(program("topics", *broker).stdout)["topics"]
    assert topics == {"images": 1, "predictions": 1, "updates": 1, "dead-letters": 1}
    done = program("predict", "--snapshots", str(tmp_path), "none.png", check=1)
    assert done.stderr == (
        f"error: no snapshot in {tmp_path}/learn: check --snapshots, --topic-prefix and --group, or name a --snapshot\n"
    )


def test_the_version_is_that_of_the_package() -> None:
    assert program("--version").stdout.strip().count(".") == 2
