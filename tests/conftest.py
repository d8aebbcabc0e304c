"""The real Kafka broker, for all tests that want one.

Where none can be run, those tests are left out, and the last line of the run says so; with CI=true they fail.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

import orjson
import pytest
from filelock import FileLock

from pipeline.settings import load
from tests.kafka.server import Address, KafkaUnavailableError, Server

_LEFT_OUT = "left out: "

_shared: list[Server] = []  # kept as long as this process lives: others may need it for longer than its tests do


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One broker for all processes of the run: the first that wants it starts it, the last that has it stops it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # the same for all of them
    address, lock = folder / "kafka.json", FileLock(folder / "kafka.lock")
    with (folder / "kafka.users").open("w") as users:
        with lock:
            if not address.exists():
                _shared.append(_started())
                address.write_bytes(orjson.dumps(_shared[0].address))
            flock(users, LOCK_SH)
        found = Address(**orjson.loads(address.read_bytes()))
        yield found
        with lock, suppress(BlockingIOError):
            flock(users, LOCK_EX | LOCK_NB)
            address.unlink()
            found.kill()


@pytest.fixture(scope="session")
def _mortal_kafka_server() -> Iterator[Server]:
    with closing(_started()) as server:
        yield server


@pytest.fixture
def own_kafka_server(_mortal_kafka_server: Server) -> Iterator[Server]:
    """A broker that a test may kill: no other one is using it."""
    yield _mortal_kafka_server
    if not _mortal_kafka_server.running:
        _mortal_kafka_server.start()


@pytest.fixture
def kafka_url(kafka_server: Address, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MARKETSTREAM_SESSION_TIMEOUT", "3")  # nobody waits long for processes that were killed
    return kafka_server.url


def _started() -> Server:
    try:
        return Server(load({}).cache)
    except KafkaUnavailableError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{_LEFT_OUT}a real Kafka broker: {error}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    left_out = Counter(r.partition(_LEFT_OUT)[2].rstrip("')") for r in reasons if _LEFT_OUT in r)
    for reason, count in left_out.items():
        terminalreporter.write_line(f"LEFT OUT: {count} tests that need {reason}", red=True)
