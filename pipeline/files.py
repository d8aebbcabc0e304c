"""Files that are written whole or not at all, however a program or the machine ends."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync, rename. For one writer at a time: what a killed one left is overwritten.

    Raises OSError.
    """
    temporary = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
