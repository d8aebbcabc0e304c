import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose.engine import CommandError, run
from tests.compose.stack import EXAMPLE, ROOT, until


@pytest.mark.parametrize(
    ("ci", "status", "said"),
    [("true", 1, "EngineUnavailableError: no Docker"), ("", 0, "LEFT OUT: 12 tests that need a Docker engine")],
)
def test_where_no_engine_can_run_the_check_says_so_and_fails_in_ci(
    tmp_path: Path, ci: str, status: int, said: str
) -> None:
    environment = {"PATH": str(tmp_path), "CI": ci}  # nothing can be found there: no docker, no dockerd, no apt-get
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "compose", "tests/compose"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "no Docker engine answers" in done.stdout + done.stderr


def test_what_never_comes_is_an_error_that_names_it() -> None:
    with pytest.raises(AssertionError, match="a miracle: not within"):
        until("a miracle", lambda: None, 0.01)


def test_what_is_not_up_yet_is_waited_for() -> None:
    answers = iter([OSError(), None, "here"])

    def look() -> str | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert until("an answer", look) == "here"


def test_a_command_that_fails_shows_how_its_output_ended() -> None:
    with pytest.raises(CommandError, match=r"exit status 3\nit broke"):
        run(sys.executable, "-c", "import sys; print('it broke'); sys.exit(3)")


def test_the_documentation_has_one_example_and_it_is_python() -> None:
    [example] = EXAMPLE.findall((ROOT / "docs/deploy.md").read_text())
    compile(example, "docs/deploy.md", "exec")
    assert "localhost:9092" in example
