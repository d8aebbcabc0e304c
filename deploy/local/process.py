"""What servers on this machine need: free ports, a place in the cache, a process that is awaited and stopped."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

STOP_SECONDS = 20.0

T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 at which nobody listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def kept(target: Path, fetch: Callable[[Path], Path], whole: Callable[[Path], bool] = Path.exists) -> Path:
    """``target``, a file or directory in the cache; one process at a time fetches it, if it is not whole.

    ``fetch`` is given an empty directory, and returns what then takes the place of ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not whole(target):
            with tempfile.TemporaryDirectory(dir=target.parent) as name:
                made = fetch(Path(name))
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
    return target


def start(command: Sequence[object], log: Path, folder: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a program in a folder, or here; ``log`` gets what it says."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for us, who then stop it in order
        )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to end; after ``STOP_SECONDS``, end it."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(command: Sequence[object], log: Path, folder: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A program, started and stopped."""
    process = start(command, log, folder)
    try:
        yield process
    finally:
        stop(process)


def until(look: Callable[[], T | None], seconds: float, process: "subprocess.Popen[bytes] | None" = None) -> T | None:
    """What ``look`` finds, as soon as it finds something; None if ``seconds`` go by first, or the process ends.

    An OSError says that it is not up yet.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with suppress(OSError):
            if found := look():
                return found
        time.sleep(0.1)
    return None


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
