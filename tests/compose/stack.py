"""The shipped Compose file as a project of its own, at free ports."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import yaml

from deploy.local import process
from tests.compose.engine import Engine, run

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "docker-compose.yml"
OVERRIDE = Path(__file__).parent / "override.yml"
COMPOSE = Path(sys.executable).parent / "docker-compose"
PORTS = ("KAFKA_PORT", "LEARNER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
PROJECT = "marketstream-check"

EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
"""In docs/deploy.md."""

PATIENCE = 180.0
"""Seconds to wait for what should come soon, on a machine that has other things to do too."""

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], seconds: float = PATIENCE) -> T:
    """What ``look`` finds, as soon as it finds something; fails if it never does. An OSError: it is not up yet."""
    found = process.until(look, seconds)
    assert found, f"{what}: not within {seconds:g} s"
    return found


@dataclass(frozen=True)
class Stack:
    """What the check does with the stack.

    Parameters
    ----------
    services
        Those to bring up.
    variables
        What stands in the environment of ``docker compose``.
    """

    engine: Engine
    services: tuple[str, ...]
    variables: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """Run ``docker compose``. Raises CommandError."""
        files = ("--file", str(SHIPPED), "--file", str(OVERRIDE))
        project = ("--env-file", "/dev/null", "--project-name", PROJECT)
        return run(COMPOSE, *project, *files, *arguments, env=self.engine.variables | self.variables)

    def up(self) -> None:
        """Bring it up; returns when all are healthy."""
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "300", *self.services)

    def down(self, *arguments: str) -> None:
        self.compose("down", "--timeout", "30", *arguments)

    def forget(self) -> None:
        """End it, and remove what it keeps."""
        self.down("--volumes", "--remove-orphans")

    def states(self) -> dict[str, str]:
        """Of every service, its state and health, such as ``running healthy`` or ``exited 0``."""
        rows = [json.loads(line) for line in self.compose("ps", "--all", "--format", "json").splitlines()]
        return {
            row["Service"]: f"{row['State']} {row['ExitCode'] if row['State'] == 'exited' else row['Health']}"
            for row in rows
        }

    def port(self, name: str) -> int:
        return int(self.variables[name])

    def metric(self, name: str) -> float:
        """The value of one of the learner's metrics, read from its page; 0 if it is not there yet."""
        with urlopen(f"http://127.0.0.1:{self.port('LEARNER_PORT')}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return float(next((line.split()[1] for line in lines if line.startswith(f"{name} ")), 0))

    def prometheus(self, path: str) -> dict[str, Any]:
        """Part of Prometheus's API."""
        with urlopen(f"{self.prometheus_url}/api/v1/{path}", timeout=10) as answer:
            return dict(json.load(answer)["data"])

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.port('PROMETHEUS_PORT')}"


def ports_of() -> dict[str, str]:
    """A free port for each published one."""
    return {name: str(port) for name, port in zip(PORTS, process.free_ports(len(PORTS)), strict=True)}


def images_of(engine: Engine) -> tuple[tuple[str, ...], dict[str, str]]:
    """The services to bring up, and the images that have to be pulled, by service or by what they are.

    On an engine of our own, Grafana is left out, and images have no digests: they are made here.
    """
    shipped = yaml.safe_load(SHIPPED.read_text())["services"]
    services = {
        name: service
        for name, service in shipped.items()
        if "profiles" not in service and not (engine.own and name == "grafana")
    }
    images = {name: service["image"] for name, service in services.items() if "build" not in service}
    dockerfile = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    images["python"] = next(line.removeprefix("ARG BASE=") for line in dockerfile if line.startswith("ARG BASE="))
    return tuple(services), {name: image.partition("@")[0] if engine.own else image for name, image in images.items()}
