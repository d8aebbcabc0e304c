"""The shipped Compose file as a project of its own, at free ports."""

import json
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from deploy.check.engine import Engine, run

ROOT = Path(__file__).parent.parent.parent
FILES = (ROOT / "docker-compose.yml", ROOT / "deploy/check/override.yml")
COMPOSE = Path(sys.executable).parent / "docker-compose"
PORTS = ("KAFKA_PORT", "LEARNER_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


@dataclass(frozen=True)
class Stack:
    """What the check does with the stack.

    Parameters
    ----------
    services
        Those to bring up; with none, all.
    variables
        What stands in the environment of ``docker compose``.
    """

    engine: Engine
    services: tuple[str, ...]
    variables: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """Run ``docker compose``. Raises CommandError."""
        files = [word for file in FILES for word in ("--file", str(file))]
        project = ("--env-file", "/dev/null", "--project-name", "marketstream-check")
        return run(COMPOSE, *project, *files, *arguments, env=self.engine.variables | self.variables)

    def up(self) -> None:
        """Bring it up; returns when all are healthy."""
        self.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "300", *self.services)

    def down(self, *arguments: str) -> None:
        self.compose("down", "--timeout", "30", *arguments)

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
        """The value of one of the learner's metrics that has no labels, read from its page."""
        with urlopen(f"http://127.0.0.1:{self.port('LEARNER_PORT')}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def prometheus(self, path: str) -> dict[str, Any]:
        """Part of Prometheus's API."""
        with urlopen(f"{self.prometheus_url}/api/v1/{path}", timeout=10) as answer:
            return dict(json.load(answer)["data"])

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.port('PROMETHEUS_PORT')}"


def free_ports() -> dict[str, str]:
    """A free port for each published one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: str(each.getsockname()[1]) for name, each in zip(PORTS, sockets, strict=True)}
