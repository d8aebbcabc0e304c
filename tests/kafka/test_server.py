"""The broker for the tests itself: what happens where it cannot be had."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.local import kafka as server
from deploy.local.kafka import VERSION, Address, KafkaUnavailableError, Server, install
from pipeline.settings import load

ROOT = Path(__file__).parents[2]


def run_without_java(empty: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "pytest", "tests/kafka/test_kafka.py", "-k", "generation_gone_by"]
    environment |= {"PATH": str(empty), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_java_the_tests_are_left_out_and_the_run_says_so(tmp_path: Path) -> None:
    done = run_without_java(tmp_path)
    assert done.returncode == 0
    assert re.search(r"LEFT OUT: 1 tests that need a real Kafka broker: .*install a JDK", done.stdout)


def test_without_java_the_tests_fail_where_ci_says_that_they_must_run(tmp_path: Path) -> None:
    done = run_without_java(tmp_path, CI="true")
    assert done.returncode == 1
    assert "install a JDK" in done.stdout


def test_what_is_cached_is_used_and_what_is_damaged_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(folder: Path) -> Path:
        fetched.append(folder)
        (folder / "libs").mkdir()
        (folder / "libs" / "a.jar").write_bytes(b"whole")
        (folder / "libs" / "list").write_text("a.jar 5\n")
        return folder / "libs"

    monkeypatch.setattr(server, "_fetch", fetch)
    libs = install(tmp_path / "cache")
    assert install(tmp_path / "cache") == libs
    assert len(fetched) == 1
    (libs / "a.jar").write_bytes(b"cut")
    install(tmp_path / "cache")
    assert (libs / "a.jar").read_bytes() == b"whole"
    assert len(fetched) == 2


def test_without_maven_nothing_is_left_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"Maven is not on this machine.*install"):
        install(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"kafka-{VERSION}.lock"]


def test_a_broker_that_does_not_come_up_says_where_its_log_is(
    kafka_server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"did not come up.*see .*broker\.log") as caught:
        Server(load({}).cache, kafka_server.port)
    log = Path(str(caught.value).rpartition("see ")[2])
    assert "Address already in use" in log.read_text()
