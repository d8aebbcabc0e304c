"""Classify image files with what was learnt.

    marketstream predict IMAGE...

Prints the file, the predicted class and the runner-up with their scores (of ``clearing`` 0 to 1 mostly: the ridge
regression of "is this the class"; of ``marketplace`` logits).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Column, Table

from pipeline import cli
from pipeline.errors import RecordError, SnapshotError
from pipeline.features import Filters, make
from pipeline.features.filters import SIDE
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.identity import ClearingIdentity, Identity, MarketplaceIdentity
from pipeline.learners.marketplace import make as make_network
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.learner import leaders
from pipeline.learners.protocol import AnyLearner
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import Folder, Snapshot


def learner_of(snapshot: Snapshot) -> Clearing:
    """The learner ``clearing`` that wrote a snapshot, ready to serve.

    Raises SnapshotError if another learner wrote it, or this program's features differ.
    """
    sums, identity = snapshot.sums, snapshot.identity
    assert isinstance(identity, ClearingIdentity)
    filters = Filters(int(identity.seed), int(identity.filters))
    _check(identity, ClearingIdentity.of(filters, identity.loss))
    learner = Clearing(make(filters), sums)
    learner.clear()
    return learner


def serving(snapshot: Snapshot) -> AnyLearner:
    """A learner that serves what a snapshot holds. Raises SnapshotError if this program's version differs."""
    if not isinstance(snapshot.model, Base):
        return learner_of(snapshot)
    identity = snapshot.identity
    assert isinstance(identity, MarketplaceIdentity)
    _check(identity, MarketplaceIdentity(identity.base, identity.seed, identity.terms))
    return leaders(snapshot.model, make_network(snapshot.model.shape))


def _check(identity: Identity, here: Identity) -> None:
    if here != identity:
        raise SnapshotError(f"the snapshot is of another version: {identity.difference(here)}")


def load(path: Path) -> NDArray[np.uint8]:
    """A file as ``uint8[28, 28]``, made grey. Raises RecordError if it is no image or has another size."""
    try:
        with warnings.catch_warnings(action="error"), Image.open(path) as image:
            if image.size != (SIDE, SIDE):
                raise RecordError("shape", f"{path}: {image.size[0]}×{image.size[1]} pixels; {SIDE}×{SIDE} are needed")
            return np.asarray(image.convert("L"))
    except RecordError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise RecordError("pixels", f"{path}: cannot be read as an image: {error}") from error


def predict(learner: AnyLearner, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """For each image the predicted class and the scores of all, best first."""
    quotes = learner.quote(np.stack(images))
    names, orders = quotes.classes, np.argsort(-quotes.logits, axis=1)
    return [
        {"predicted": names[best[0]], "scores": {names[i]: float(row[i]) for i in best}}
        for row, best in zip(quotes.logits, orders, strict=True)
    ]


def main(command_line: Sequence[str] | None = None) -> int:
    """Classify files as the command line says."""
    parser = cli.parser("Classify image files (28×28) with what was learnt.", "snapshots", "topic_prefix", "group")
    parser.add_argument(
        "--snapshot", type=Path, metavar="S", help="file that a learner wrote (default: the group's newest)"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    arguments = parser.parse_args(command_line)
    path, snapshot = _chosen(arguments.snapshot, Folder.of(cli.settings_of(arguments)))
    if not snapshot.images:
        raise SnapshotError(f"{path}: nothing was learnt yet")
    pixels = [load(path) for path in arguments.images]
    results = predict(serving(snapshot), pixels)
    named = [{"image": str(path), **result} for path, result in zip(arguments.images, results, strict=True)]
    cli.tell(arguments.json, named, _table(named))
    return 0


def _chosen(path: Path | None, folder: Folder) -> tuple[Path, Snapshot]:
    """The snapshot of that file; None: the newest of the folder that is sound. Raises SnapshotError."""
    if path:
        return path, snapshots.read(path)
    newest = folder.newest()
    if newest is None:
        raise SnapshotError(
            f"no snapshot in {folder.path}: check --snapshots, --topic-prefix and --group, or name a --snapshot"
        )
    return folder.path, newest


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(Column("image", overflow="fold"), "class", "score", "runner-up", "score")
    for result in results:
        best = [f"{text}" for name, score in list(result["scores"].items())[:2] for text in (name, f"{score:.2f}")]
        table.add_row(result["image"], *best)
    return table


if __name__ == "__main__":
    cli.run(main)
