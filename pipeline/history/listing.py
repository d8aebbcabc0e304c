"""Micro-batches and snapshots as plain data, fit for JSON: the list of the newest, and all about one."""

import logging
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import SnapshotError
from pipeline.monitoring.scores import Scores
from pipeline.records.journal import Journal, JournalEntry
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import NAME, Folder, Snapshot

log = logging.getLogger(__name__)

Row = dict[str, Any]


def name_of(path: Path) -> str:
    """``s3`` for the snapshot number 3 of a group's folder; the path for any other file."""
    found = NAME.fullmatch(path.name)
    return f"s{int(found[1])}" if found else str(path)


def newest(journal: Journal, folder: Folder, last: int) -> Row:
    """How many micro-batches and snapshots a group has, and the ``last`` newest in the order of time.

    ``settled_images`` of a micro-batch are those since the journal begins, of a snapshot all that are in its sums. A
    damaged snapshot is a row with its ``problem``. Raises TopicError, and what else the broker raises.
    """
    count, rows = _micro_batches(journal, last)
    files = folder.files()
    for path in files[:last]:
        with suppress(FileNotFoundError):  # a learner that is at work deletes old ones
            rows.append({"kind": "snapshot", "name": name_of(path), "time": path.stat().st_mtime, "file": str(path)})
    rows = sorted(rows, key=lambda row: row["time"])[-last:]
    # Reading a snapshot takes a while, so only what is shown is read.
    rows = [row | _contents(Path(row["file"])) if "file" in row else row for row in rows]
    return {"micro_batches": count, "snapshots": len(files), "rows": rows}


def _micro_batches(journal: Journal, last: int) -> tuple[int, list[Row]]:
    rows: deque[Row] = deque(maxlen=last)
    count = settled = 0
    for one in journal.micro_batches():
        count += 1
        settled += one.settled
        row: Row = {"kind": "micro-batch", "name": str(one.number), "time": one.time, "generation": one.generation}
        rows.append(row | {"settled_images": settled, "images": one.images, "accuracy": one.accuracy})
    return count, list(rows)


def _contents(path: Path) -> Row:
    try:
        snapshot = snapshots.read(path)
    except SnapshotError as error:
        log.warning("%s", error)
        return {"problem": str(error)}
    images = snapshot.images
    return {"generation": snapshot.generation, "settled_images": images, "digest": snapshot.digest}


def about_micro_batch(one: JournalEntry) -> Row:
    """All that the journal tells of a micro-batch."""
    told = one.model_dump(by_alias=True, exclude={"v", "dead", "total", "right", "identity", "update"})
    classes = {name: {"images": n, "correct": one.right.get(name, 0)} for name, n in one.total.items()}
    rest = {"dead_letters": one.dead, "accuracy": one.accuracy, "classes": classes}
    return {"kind": "micro-batch", **told, **rest}


def about_snapshot(snapshot: Snapshot, path: Path) -> Row:
    """All that a snapshot tells: of each class the images that are in the sums, and if it has scores, those."""
    classes: dict[str, Row] = {name: {"settled_images": count} for name, count in snapshot.model.counts.items()}
    if snapshot.scores:
        for c in Scores.restored(snapshot.scores, snapshot.scores["window"]).classes():
            scores = {"images": c.images, "correct": c.correct, "rolling": c.rolling, "forgetting": c.forgetting}
            classes[c.name] = {"settled_images": 0} | classes.get(c.name, {}) | scores
    return {
        "kind": "snapshot",
        "file": str(path),
        "time": path.stat().st_mtime,
        "digest": snapshot.digest,
        "base": snapshot.base,
        "retractions": len(snapshot.retracted),
        "settled_images": snapshot.images,
        "generation": snapshot.generation,
        "topic_id": snapshot.topic_id,
        "clock": snapshot.clock,
        "predictions": snapshot.predictions,
        "identity": asdict(snapshot.identity),
        "classes": classes,
    }
