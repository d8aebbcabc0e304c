"""The Docker engine and the stack, which the tests of this folder share: they run in their order, in one process."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaUnavailableError
from pipeline.data.datasets import CATALOGUE
from pipeline.data.fetch import Search
from pipeline.settings import Settings, load
from tests.compose import standins
from tests.compose.engine import CommandError, Engine, EngineUnavailableError, engine
from tests.compose.stack import Stack, images_of, ports_of
from tests.needs import leave_out

WHAT = "a Docker engine and what stands in for images"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where all that the check needs lies; the images of an engine of its own too, so it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="marketstream-compose-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def docker(folder: Path) -> Iterator[Engine]:
    """The engine that answers, or one of our own."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else an engine of our own would outlive us
    with ExitStack() as exits:
        try:
            found = exits.enter_context(engine(folder))
        except EngineUnavailableError as error:
            leave_out(WHAT, error)
        yield found


@pytest.fixture(scope="session")
def stack(docker: Engine, folder: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The shipped file, with the images that it pulls or stand-ins for them; neither built nor up yet."""
    settings = load({})
    services, images = images_of(docker)
    if docker.own:
        try:
            standins.build(docker, settings.cache, folder, images)
        except (EngineUnavailableError, KafkaUnavailableError) as error:
            leave_out(WHAT, error)
    variables = ports_of() | {
        "CHECK_DATASETS": str(_datasets(settings, folder)),
        "CHECK_KAFKA": images["kafka"],
        "CHECK_PROMETHEUS": images["prometheus"],
        "CHECK_NETWORK": "host" if docker.own else "default",
    }
    result = Stack(docker, services, variables)
    yield result
    if request.session.testsfailed:
        with suppress(CommandError):
            print(result.compose("logs", "--tail", "15", "--no-color"), file=sys.stderr)
    result.forget()


def _datasets(settings: Settings, folder: Path) -> Path:
    """The data sets as a volume that anyone may read."""
    target, search = folder / "datasets", Search(settings, CATALOGUE)
    for file in CATALOGUE.files:
        place = target / file.dataset / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(search.find(file).content)
    folder.chmod(0o755)
    return target
