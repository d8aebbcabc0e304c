"""A Docker engine: the one that answers here, or one of our own for as long as the check takes."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MarketstreamError

START_SECONDS = 30.0
STOP_SECONDS = 30.0


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
    """An engine that answers. ``own``: it was started for this check, and has no images but those given to it."""

    variables: dict[str, str]
    own: bool

    def docker(self, *arguments: str | Path) -> str:
        return run("docker", *arguments, env=self.variables)


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """An engine for the length of the block; one of our own keeps everything in ``folder``.

    Raises EngineUnavailableError.
    """
    found = Engine({}, own=False)
    if shutil.which("docker") and _answers(found):
        yield found
        return
    install("docker.io", "dockerd")
    own = Engine({"DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_BUILDKIT": "0"}, own=True)
    process = _start(folder, own)
    try:
        _await(process, own, folder / "dockerd.log")
        yield own
    finally:
        _stop(process)
        _unmount(folder)


def _answers(candidate: Engine) -> bool:
    try:
        candidate.docker("version", "--format", "{{.Server.Version}}")
    except CommandError:
        return False
    return True


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


def _start(folder: Path, own: Engine) -> "subprocess.Popen[bytes]":
    # The host's firewall and routes stay as they are: published ports go through docker-proxy.
    flags = ["--iptables=false", "--ip-masq=false", "--ip-forward=false", "--bridge=none"]
    places = ["--data-root", folder / "images", "--exec-root", folder / "run", "--pidfile", folder / "dockerd.pid"]
    with (folder / "dockerd.log").open("wb") as log:
        return subprocess.Popen(
            ["dockerd", "-H", own.variables["DOCKER_HOST"], *map(str, places), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us, who then stop it in order
        )


def _await(process: "subprocess.Popen[bytes]", own: Engine, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(own):
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().splitlines() or ["no output"])[-1]
            raise EngineUnavailableError(f"dockerd does not come up here: {last}")
        time.sleep(0.2)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _unmount(folder: Path) -> None:
    """What dockerd leaves mounted: the name of a network namespace."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in mounted:
        if Path(place).is_relative_to(folder):
            run("umount", place)
