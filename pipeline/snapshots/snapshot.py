"""Snapshots: a model on disk, with the clock that says how far it reaches. Written whole or not at all."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import SnapshotError
from pipeline.files import write_whole
from pipeline.learners.clearing.sums import Sums, packed_size
from pipeline.learners.identity import ClearingIdentity, MarketplaceIdentity, identity_of
from pipeline.learners.marketplace.base import Base
from pipeline.records.images import is_refused
from pipeline.settings import Settings

VERSION = 1
NAME = re.compile(r"snapshot-(\d{10})\.safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model and where it comes from.

    Parameters
    ----------
    model, identity, generation
        Sums of ``clearing``, or what a learner ``marketplace`` has become. With its identity, the model is all that is
        needed to go on learning.
    topic_id
        Of the topic that it was learnt from.
    clock
        Next offset of each partition: every labelled image before it is in the model.
    predictions
        End of the topic predictions at that moment; ``scores`` reach as far as the predictions before it.
    base
        Digest of the earlier model that learning began with; empty if it began with nothing.
    sums_position, retracted
        How far the group's topic ``sums`` was read, and the ids of all retractions that were subtracted.
    begins
        The offset in each partition before which the model holds no image, though its clock is later.
    admitted
        The classes of the group, in the order of their admission; the model may hold no image of some.
    journal_position
        Of ``marketplace``: no micro-batch after the clock lies before this offset of the journal.
    """

    model: Sums | Base
    identity: ClearingIdentity | MarketplaceIdentity
    generation: int = 0
    topic_id: str = ""
    clock: Mapping[int, int] = field(default_factory=dict)
    predictions: int = 0
    scores: Mapping[str, Any] | None = None
    base: str = ""
    sums_position: int = 0
    retracted: frozenset[str] = frozenset()
    begins: Mapping[int, int] = field(default_factory=dict)
    admitted: tuple[str, ...] = ()
    journal_position: int = 0

    @property
    def sums(self) -> Sums:
        """The model of ``clearing``. Raises SnapshotError for another learner's."""
        if isinstance(self.model, Base):
            raise SnapshotError(
                "this snapshot is of the learner marketplace, which keeps no sums: nothing can be added to it, "
                "subtracted or learnt anew from the topic; only clearing can do that"
            )
        return self.model

    def refuses(self, label: str) -> bool:
        """Whether images with this label were never learnt, there being as many classes as there may be."""
        return is_refused(label, self.admitted)

    @property
    def images(self) -> int:
        """How many were learnt from."""
        return sum(self.model.counts.values())

    @property
    def digest(self) -> str:
        """The digest of the model."""
        return self.model.digest if isinstance(self.model, Base) else self.model.digest(self.identity.digest)


_KEPT = [f.name for f in fields(Snapshot) if f.name not in ("model", "identity")]
"""What a file says of a snapshot under the same name."""


def write(snapshot: Snapshot, path: Path) -> None:
    """Write to a temporary name beside ``path``, sync, rename. Raises SnapshotError."""
    tensors, contents = _contents(snapshot.model)
    kept = {name: getattr(snapshot, name) for name in _KEPT}
    about = orjson.dumps(
        {
            "version": VERSION,
            "digest": snapshot.digest,
            "identity": asdict(snapshot.identity),
            **contents,
            **kept,
            "retracted": sorted(snapshot.retracted),
        },
        option=orjson.OPT_NON_STR_KEYS,  # the partitions of a clock
    ).decode()
    try:
        write_whole(path, save(tensors, {"about": about, "seal": _seal(about)}))
    except OSError as error:
        raise SnapshotError(f"{path}: cannot write the snapshot: {error.strerror}") from error


def read(path: Path) -> Snapshot:
    """Read and verify. Raises SnapshotError if it is missing, damaged or of another version."""
    try:
        if not path.is_file():
            raise SnapshotError(f"{path}: no such snapshot")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata["seal"] != _seal(metadata["about"]):
            raise SnapshotError(f"{path}: damaged: its description does not match its seal")
        about = orjson.loads(metadata["about"])
        if about["version"] != VERSION:
            raise SnapshotError(f"{path}: version {about['version']}, this program reads {VERSION}")
        snapshot = _snapshot(about, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise SnapshotError(f"{path}: damaged, or no snapshot at all: {error}") from error
    if snapshot.digest != about["digest"]:
        raise SnapshotError(f"{path}: damaged: its digest is {snapshot.digest}, not {about['digest']}")
    return snapshot


def _contents(model: Sums | Base) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model as tensors, and the rest of it."""
    if isinstance(model, Base):
        return model.tensors, model.about
    classes = list(model.counts)
    T = np.array([model.T[c] for c in classes], np.int64).reshape(-1, model.width)
    counts = np.array([model.counts[c] for c in classes], np.int64)
    return {"A": model.A, "T": T, "counts": counts}, {"classes": classes}


def _sums(classes: Sequence[str], A: Any, T: Any, counts: Any) -> Sums:
    sums = Sums(A, dict(zip(classes, T, strict=True)), dict(zip(classes, map(int, counts), strict=True)))
    if any(tensor.dtype != np.int64 for tensor in (A, T, counts)):
        raise ValueError("not all numbers in it are signed 64-bit integers")
    if packed_size(sums.width) != len(A) or T.shape != (len(classes), sums.width):
        raise ValueError(f"shapes {A.shape} and {T.shape} do not belong together")
    return sums


def _snapshot(about: Mapping[str, Any], tensors: Mapping[str, Any]) -> Snapshot:
    identity = identity_of(about["identity"])
    of_paths = isinstance(identity, MarketplaceIdentity)
    model = Base.from_file(about, tensors) if of_paths else _sums(about["classes"], **tensors)
    kept = {name: about[name] for name in _KEPT if name in about}  # older files have not the last ones
    kept["retracted"] = frozenset(kept.get("retracted", ()))
    kept["admitted"] = tuple(kept.get("admitted", about["classes"]))
    clocks = {name: {int(p): offset for p, offset in kept.get(name, {}).items()} for name in ("clock", "begins")}
    return Snapshot(model, identity, **kept | clocks)


def _seal(about: str) -> str:
    return hashlib.sha256(about.encode()).hexdigest()


class Folder:
    """The snapshots of one group of learners; the newest ``kept`` of them stay."""

    def __init__(self, path: Path, kept: int) -> None:
        self.path = path
        self._kept = kept

    @classmethod
    def of(cls, settings: Settings) -> "Folder":
        """Where the group of the settings keeps its snapshots."""
        return cls(settings.snapshots / f"{settings.topic_prefix}{settings.group}", settings.snapshots_kept)

    def files(self) -> list[Path]:
        """All snapshots here, newest first."""
        found = self.path.iterdir() if self.path.is_dir() else []
        return sorted((p for p in found if NAME.fullmatch(p.name)), reverse=True)

    def save(self, snapshot: Snapshot) -> Path:
        """Write it under a number that was not used before; delete those that are too old."""
        files = self.files()
        newest = NAME.fullmatch(files[0].name) if files else None
        path = self.path / f"snapshot-{int(newest[1]) + 1 if newest else 0:010}.safetensors"
        write(snapshot, path)
        for old in self.files()[self._kept :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Snapshot | None:
        """The newest snapshot that is sound. Raises SnapshotError if there are some and all are damaged."""
        problem: SnapshotError | None = None
        for path in self.files():
            try:
                return read(path)
            except SnapshotError as error:
                log.warning("passed over a snapshot: %s", error)
                problem = error
        if problem:
            raise problem
        return None
