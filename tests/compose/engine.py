"""A Docker engine: the one that answers here, or one of our own for as long as the check takes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local import process
from pipeline.errors import MarketstreamError

START_SECONDS = 30.0


class EngineUnavailableError(MarketstreamError):
    """No Docker engine answers, and none can be started."""


class CommandError(MarketstreamError):
    """A command failed; says which one, and how its output ended."""


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command to its end and return its standard output. Raises CommandError."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=os.environ | (env or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{' '.join(words)}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """An engine. ``own``: it was started for this check, and has no images but those given to it."""

    variables: dict[str, str]
    own: bool

    def docker(self, *arguments: str | Path) -> str:
        """Run ``docker``. Raises CommandError."""
        return run("docker", *arguments, env=self.variables)

    def answers(self) -> bool:
        try:
            self.docker("version", "--format", "{{.Server.Version}}")
        except CommandError:
            return False
        return True


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """An engine for the length of the block; one of our own keeps everything in ``folder``.

    Raises EngineUnavailableError.
    """
    found = Engine({}, own=False)
    if shutil.which("docker") and found.answers():
        yield found
        return
    install("docker.io", "dockerd")
    own = Engine({"DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_BUILDKIT": "0"}, own=True)
    # The host's firewall and routes stay as they are: published ports go through docker-proxy.
    flags = ("--iptables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none")
    places = ("--data-root", folder / "images", "--exec-root", folder / "run", "--pidfile", folder / "dockerd.pid")
    log = folder / "dockerd.log"
    try:
        with process.running(("dockerd", "-H", own.variables["DOCKER_HOST"], *places, *flags), log) as daemon:
            if not process.until(own.answers, START_SECONDS, daemon):
                raise EngineUnavailableError(f"dockerd does not come up here: {process.last_line(log.read_text())}")
            yield own
    finally:
        _unmount(folder)


def install(package: str, program: str) -> None:
    """Have a program of Debian's that an engine of our own needs. Raises EngineUnavailableError."""
    if os.geteuid() != 0:
        raise EngineUnavailableError("no Docker engine answers, and only root can start one; start Docker")
    if shutil.which(program):
        return
    if not shutil.which("apt-get"):
        raise EngineUnavailableError(f"no Docker engine answers, and this machine has no {program}; start Docker")
    try:
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-qq", "--no-install-recommends", package)
    except CommandError as error:
        raise EngineUnavailableError(f"no Docker engine answers, and {package} cannot be installed: {error}") from None


def _unmount(folder: Path) -> None:
    """What dockerd leaves mounted: the name of a network namespace."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in mounted:
        if Path(place).is_relative_to(folder):
            run("umount", place)
