"""Downloads over HTTP: bounded in length and in waiting, with a progress bar where there is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from queue import Empty, Queue
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pipeline.errors import DatasetError

_CHUNK = 1 << 16
_STALL_SECONDS = 30.0


class SourceError(DatasetError):
    """One source does not have the right bytes; its text says why. The next source may."""


class HostError(SourceError):
    """A host that cannot be reached, or that broke off: not worth asking for another file."""


def download(url: str, limit: int, title: str, patience: float) -> bytes:
    """At most ``limit`` bytes of what a URL serves, if it begins to answer within ``patience`` seconds.

    Raises SourceError if the host has no such thing, HostError for any other failure.
    """
    try:
        with _open(url, patience) as response:
            return _receive(response, limit, title)
    except HTTPError as error:
        raise SourceError(str(error)) from None
    except (OSError, HTTPException) as error:
        raise HostError(str(error.reason if isinstance(error, URLError) else error)) from None


def _open(url: str, patience: float) -> HTTPResponse:
    # in a thread, because urllib's time limit counts for each address of a host anew, and not for name lookup
    answers: Queue[HTTPResponse | Exception] = Queue()

    def ask() -> None:
        try:
            answers.put(urlopen(Request(url, headers={"User-Agent": "marketstream"}), timeout=_STALL_SECONDS))
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()  # here, since perhaps nobody waits any more
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=patience)
    except Empty:
        raise TimeoutError(f"no answer within {patience:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _receive(response: HTTPResponse, limit: int, title: str) -> bytes:
    result = bytearray()
    with progress_bar(title, response.length) as advance:
        while len(result) < limit and (chunk := response.read(min(_CHUNK, limit - len(result)))):
            result += chunk
            advance(len(chunk))
    return bytes(result)


@contextmanager
def progress_bar(title: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; what it yields adds bytes. Size None: it only moves."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = columns if size is not None else columns[:2]
    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=size)
        yield lambda count: progress.advance(task, count)
