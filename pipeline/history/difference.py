"""The model of what was learnt between two snapshots: the difference of two snapshots' sums."""

from collections.abc import Mapping

from pipeline.errors import SnapshotError
from pipeline.learners.clearing.sums import Sums
from pipeline.records.journal import Taken
from pipeline.snapshots.snapshot import Snapshot


def difference(older: Snapshot, newer: Snapshot) -> Snapshot:
    """What was learnt after ``older`` and up to ``newer``, as a model of its own.

    A learner that begins with it goes on where ``newer`` ends. Raises SnapshotError if the two do not belong
    together, are in the wrong order, or nothing was learnt between them.
    """
    check_follows(older, newer)
    if older.topic_id != newer.topic_id:
        raise SnapshotError(
            f"they were learnt from different topics (ids {older.topic_id} and {newer.topic_id}): no difference of one "
            "stream lies between them"
        )
    for partition, offset in older.clock.items():
        if newer.clock.get(partition, 0) < offset:
            raise _wrong_order(f"in partition {partition} it reaches offset {offset}")
    sums = _difference(older.sums, newer.sums)
    if not sums.images:
        raise SnapshotError("nothing was learnt between the two snapshots: both hold the same images")
    return Snapshot(
        model=sums,
        identity=newer.identity,
        generation=newer.generation,
        topic_id=newer.topic_id,
        clock=newer.clock,
        retracted=newer.retracted,
        begins=older.clock,
    )


def check_retractions(older: Snapshot, newer: Snapshot, taken: Mapping[str, Taken]) -> None:
    """Raises SnapshotError if images of ``older`` were taken back before ``newer``: they would count below zero."""
    for id in newer.retracted - older.retracted:
        offsets = taken[id].offsets if id in taken else {}
        early = [o for p, some in offsets.items() for o in some if o < older.clock.get(p, 0)]
        if early or not offsets:
            raise SnapshotError(
                f"between the two snapshots {len(early) or 'some'} images were taken back that the older one holds: "
                "take an older snapshot that was written after that"
            )


def check_follows(older: Snapshot, newer: Snapshot) -> None:
    """Raises SnapshotError unless ``newer`` is a learner's, and ``older`` is of the same learning or its beginning."""
    if older.identity != newer.identity:
        raise SnapshotError(
            f"the snapshots have different identities ({older.identity.difference(newer.identity)}): sums of one "
            "cannot be taken from the other's"
        )
    if older.digest != newer.base and (older.scores is None or newer.scores is None or older.base != newer.base):
        raise SnapshotError(
            "the newer snapshot did not go on from the older one, they began with different models: take two "
            "snapshots of one group"
        )


def _difference(older: Sums, newer: Sums) -> Sums:
    sums = newer - older
    for name, count in sums.counts.items():
        if count < 0:
            raise _wrong_order(f"it holds {-count:,} images more of class {name!r}")
    # A class that no image of the stretch is of would be one that could be predicted.
    some = [name for name, count in sums.counts.items() if count]
    return Sums(sums.A, {name: sums.T[name] for name in some}, {name: sums.counts[name] for name in some})


def _wrong_order(how: str) -> SnapshotError:
    return SnapshotError(f"the first snapshot reaches further than the second ({how}): name the older one first")
