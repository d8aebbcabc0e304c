"""A real Prometheus on this machine: the one on PATH, or Debian's package, unpacked into the cache without root."""

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import process
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
    return process.kept(cache / "prometheus", _fetch)


def _fetch(folder: Path) -> Path:
    try:
        return debian("prometheus", "usr/bin", folder)
    except SourceError as error:
        raise PrometheusUnavailableError(
            f"prometheus and promtool are not on PATH, and Debian's package cannot be fetched ({error}): install "
            "the package prometheus, or put both programs of a release on PATH"
        ) from error


@contextmanager
def running(programs: Path, config: Path, port: int) -> Iterator[str]:
    """The address of a Prometheus at a port of this machine, with data of its own, which are removed at the end.

    Raises PrometheusUnavailableError if it does not come up.
    """
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=1):
            return True

    with tempfile.TemporaryDirectory(prefix="marketstream-prometheus-") as name:
        log = Path(name) / "log"
        flags = (f"--config.file={config}", f"--storage.tsdb.path={name}/data", "--log.level=warn")
        command = (programs / "prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}")
        with process.running(command, log) as server:
            if not process.until(ready, START_SECONDS, server):
                raise PrometheusUnavailableError(f"Prometheus did not come up: {log.read_text().strip()[-500:]}")
            yield url
