"""A real Prometheus on this machine: the one on PATH, or Debian's package, unpacked into the cache without root."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from filelock import FileLock

from pipeline.data.fetch import SourceError
from pipeline.data.packages import debian
from pipeline.errors import MarketstreamError

START_SECONDS = 30.0
_PROGRAMS = ("prometheus", "promtool")


class PrometheusUnavailableError(MarketstreamError):
    """No Prometheus can be run here: it is not installed and cannot be fetched, or it does not come up."""


def install(cache: Path) -> Path:
    """The directory of the programs prometheus and promtool. Raises PrometheusUnavailableError."""
    found = [shutil.which(program) for program in _PROGRAMS]
    if found[0] and found[1] and Path(found[0]).parent == Path(found[1]).parent:
        return Path(found[0]).parent
    target = cache / "prometheus"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _fetch(cache, target)
    return target


def _fetch(cache: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as name:
        try:
            debian("prometheus", "usr/bin")(Path(name)).rename(target)
        except SourceError as error:
            raise PrometheusUnavailableError(
                f"prometheus and promtool are not on PATH, and Debian's package cannot be fetched ({error}): install "
                "the package prometheus, or put both programs of a release on PATH"
            ) from error


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Prometheus:
    """A started Prometheus at a port of this machine, with data of its own, which are removed at the end.

    Raises PrometheusUnavailableError if it does not come up.
    """

    def __init__(self, programs: Path, config: Path, port: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="marketstream-prometheus-"))
        self.url = f"http://127.0.0.1:{port}"
        self._log = self._folder / "log"
        flags = (f"--config.file={config}", f"--storage.tsdb.path={self._folder / 'data'}", "--log.level=warn")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [programs / "prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us, who then stop it
            )
        self._await()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)

    def _await(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        said = self._log.read_text().strip()[-500:]
        shutil.rmtree(self._folder)
        raise PrometheusUnavailableError(f"Prometheus did not come up: {said}")
