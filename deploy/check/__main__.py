"""Bring the shipped docker-compose.yml up and assert that it does what it should, a line for each assertion.

    python -m deploy.check

Takes the Docker engine that answers, or starts one of its own; on that one, which cannot pull, stand-ins take the
places of the images, and Grafana is left out. See docs/deploy.md for what this cannot prove.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import yaml

from deploy.check import standins, steps
from deploy.check.engine import CommandError, Engine, EngineUnavailableError, engine
from deploy.check.stack import ROOT, Stack, free_ports
from deploy.local.kafka import KafkaUnavailableError
from pipeline import cli
from pipeline.data.datasets import CATALOGUE
from pipeline.data.fetch import Search
from pipeline.settings import Settings


def main() -> int:
    """Run the check; where no engine can run, say so."""
    signal.signal(signal.SIGTERM, _terminated)
    settings = cli.settings_of(cli.parser("Check docker-compose.yml.", "data", "cache").parse_args())
    try:
        with tempfile.TemporaryDirectory(prefix="marketstream-check-") as name, engine(Path(name)) as found:
            check(found, settings, Path(name))
    except (EngineUnavailableError, KafkaUnavailableError) as error:
        if os.environ.get("CI") == "true":
            raise
        print(f"LEFT OUT: docker-compose.yml was not brought up: {error}")
    return 0


def check(found: Engine, settings: Settings, folder: Path) -> None:
    """All steps, one after the other."""
    say("engine: " + ("one of our own, with stand-ins for the images" if found.own else "the one that answers"))
    services, images = _images()
    if found.own:
        services.remove("grafana")
        del images["grafana"]
        images = {name: image.partition("@")[0] for name, image in images.items()}  # what is built here has no digest
        standins.build(found, settings.cache, folder, images)
        say("stand-ins are built; Grafana is left out")
    variables = free_ports() | {
        "CHECK_DATASETS": str(_datasets(settings, folder)),
        "CHECK_KAFKA": images["kafka"],
        "CHECK_PROMETHEUS": images["prometheus"],
        "CHECK_NETWORK": "host" if found.own else "default",
    }
    stack = Stack(found, tuple(services), variables)
    try:
        _check(stack, settings)
    except BaseException:
        with suppress(CommandError):
            print(stack.compose("logs", "--tail", "15", "--no-color"), file=sys.stderr)
        raise
    finally:
        stack.down("--volumes", "--remove-orphans")
        say("down --volumes: nothing is left")


def _check(stack: Stack, settings: Settings) -> None:
    stack.compose("build", "--quiet")
    say("deploy/Dockerfile is built")
    stack.up()
    since = time.time()
    say(steps.healthy(stack))
    for step in _steps(stack, settings, since):
        say(step())


def _steps(stack: Stack, settings: Settings, since: float) -> list[Callable[[], str]]:
    begins = (steps.targets_up, steps.data_flows, steps.resumes, steps.healthy, steps.targets_up)
    goes_on = (steps.alert_fires_and_clears, steps.data_flows, steps.dead_letter, steps.rules_work)
    return [
        *(partial(step, stack) for step in (*begins, *goes_on)),
        partial(steps.panels_have_data, stack, since),
        partial(steps.same_digest, stack, settings.cache),
        partial(steps.own_images, stack),
    ]


def _images() -> tuple[list[str], dict[str, str]]:
    """The services that are always there, and the images that have to be pulled, by service or by what they are."""
    shipped = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = {name: service for name, service in shipped["services"].items() if "profiles" not in service}
    images = {name: service["image"] for name, service in services.items() if "build" not in service}
    dockerfile = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    python = next(line.removeprefix("ARG BASE=") for line in dockerfile if line.startswith("ARG BASE="))
    return list(services), images | {"python": python}


def _datasets(settings: Settings, folder: Path) -> Path:
    """The data sets as a volume that anyone may read."""
    target, search = folder / "datasets", Search(settings, CATALOGUE)
    for file in CATALOGUE.files:
        place = target / file.dataset / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(search.find(file).content)
    folder.chmod(0o755)
    return target


def say(line: str) -> None:
    print(f"{time.monotonic() - BEGUN:5.0f} s  {line}", flush=True)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)  # by way of all that has to be ended


BEGUN = time.monotonic()

if __name__ == "__main__":
    cli.run(main)
