"""The real Kafka broker, for all tests that want one, and which tests are slow.

Where no broker can be run, the tests that want one are left out, and the last line of the run says so; with CI=true
they fail.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from fcntl import LOCK_EX, LOCK_SH, flock
from pathlib import Path

import orjson
import pytest
from filelock import FileLock
from hypothesis import settings

from deploy.local.kafka import Address, KafkaUnavailableError, Server
from pipeline.settings import load
from tests.needs import LEFT_OUT, leave_out

_HERE = Path(__file__).parent
_SLOW = (
    "benchmarks/learners/test_backprop.py",
    "benchmarks/test_accuracy.py",
    "benchmarks/test_scale.py",
    "compose/",
    "consumers/test_marketplace.py",
    "consumers/test_recovery.py",
    "deploy/",
    "kafka/",
    "pipeline/history/",
    "pipeline/learners/marketplace/",
    "producers/",
    "prove/",
    "simulation/",
    "test_demo.py",
)
"""What `make test-fast` leaves out: what wants a server or a container, and what takes long."""

settings.register_profile("untimed", deadline=None)  # how long an example takes is for benchmarks
settings.load_profile("untimed")

_at_the_end = ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(_HERE).as_posix().startswith(_SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """One broker for all processes of the run: who comes first starts it, and stops it when all are done with it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # the same for all of them
    address = folder / "kafka.json"
    with (folder / "kafka.users").open("w") as users:
        with FileLock(folder / "kafka.lock"):
            if not address.exists():
                server = _at_the_end.enter_context(closing(_started()))
                _at_the_end.callback(_await_others, folder)
                address.write_bytes(orjson.dumps(server.address))
            flock(users, LOCK_SH)
        yield Address(**orjson.loads(address.read_bytes()))


def _await_others(folder: Path) -> None:
    """Whoever comes meanwhile starts another one."""
    with FileLock(folder / "kafka.lock"), (folder / "kafka.users").open() as users:
        (folder / "kafka.json").unlink()
        flock(users, LOCK_EX)


def pytest_unconfigure() -> None:
    """Not in a fixture: there it would count as a test's time."""
    _at_the_end.close()


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
        leave_out("a real Kafka broker", error)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    left_out = Counter(r.partition(LEFT_OUT)[2].rstrip("')") for r in reasons if LEFT_OUT in r)
    for reason, count in left_out.items():
        terminalreporter.write_line(f"LEFT OUT: {count} tests that need {reason}", red=True)
