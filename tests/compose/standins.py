"""Stand-ins under the images' tags, for an engine that can pull nothing.

The real Kafka (its jars, as the tests have them), the real Prometheus and the real Python (Debian's), laid out as in
the official images. Grafana cannot be had this way.
"""

import hashlib
import os
import shutil
from pathlib import Path

from deploy.local import kafka, process
from tests.compose.engine import Engine, EngineUnavailableError, install, run

CONTEXTS = Path(__file__).parent / "images"
RELEASE = "trixie"
"""The Debian that the official Python image is made of too, with the same Python."""

PACKAGES = "ca-certificates,openjdk-21-jre-headless,prometheus,python3,python3-pip,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def build(engine: Engine, cache: Path, folder: Path, tags: dict[str, str]) -> None:
    """Make the stand-ins, and give them these tags. ``tags``: from kafka, prometheus and python to the image's name.

    Raises EngineUnavailableError where this machine cannot make a Debian, KafkaUnavailableError, CommandError.
    """
    engine.docker("import", _debian(cache, folder), "marketstream-check-debian")
    for name, tag in tags.items():
        context = folder / name
        shutil.copytree(CONTEXTS / name, context)
        if name == "kafka":
            shutil.copytree(kafka.install(cache), context / "libs", copy_function=os.link)
        if name == "python":
            shutil.copy(os.environ.get("SSL_CERT_FILE", CERTIFICATES), context / CERTIFICATES.name)
        engine.docker("build", "--quiet", "--network", "host", "--tag", tag, context)


def _debian(cache: Path, folder: Path) -> Path:
    """A Debian with what all stand-ins need, made once and kept in the cache."""
    sources = _sources()
    mark = hashlib.sha256((PACKAGES + sources).encode()).hexdigest()[:12]

    def make(work: Path) -> Path:
        install("mmdebstrap", "mmdebstrap")
        listed, made = work / "debian.sources", work / "debian.tar"
        listed.write_text(sources)
        command = ("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", RELEASE, made, listed)
        run(*command, env={"TMPDIR": str(folder)})
        return made

    return process.kept(cache / f"debian-{RELEASE}-{mark}.tar", make)


def _sources() -> str:
    """Where this machine gets its packages from, for the release that is wanted."""
    release = Path("/etc/os-release").read_text()
    codename = next((line[17:] for line in release.splitlines() if line.startswith("VERSION_CODENAME=")), "")
    found = Path("/etc/apt/sources.list.d/debian.sources")
    if "ID=debian" not in release.splitlines() or not found.exists():
        raise EngineUnavailableError(f"stand-ins for the images are made on Debian only, from {found}; start Docker")
    return found.read_text().replace(codename, RELEASE)
