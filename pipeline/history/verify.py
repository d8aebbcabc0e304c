"""Does a snapshot hold what the topic holds? Every image before its clock is settled anew, and the digests compared."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.broker import Broker, Extent, Partition
from pipeline.errors import RecoveryError, SnapshotError
from pipeline.history.difference import check_follows
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.replay import settle_again, settled
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.predict import learner_of
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

SIZE = 256
"""Images of a micro-batch here. The sums are the same for any size."""


def beginning(snapshot: Snapshot, older: Snapshot | None, folder: Path) -> Snapshot:
    """What to settle on top of: ``older`` if there is one, else the model that ``snapshot`` began with.

    That model is looked for in all files below ``folder``. Raises SnapshotError if it is in none of them, if ``older``
    is neither that model nor of the same learning, or if no learner ``clearing`` wrote ``snapshot``.
    """
    width = snapshot.sums.width
    if snapshot.scores is None:
        raise SnapshotError("no learner wrote this snapshot: verify the snapshots of learners that it was made of")
    if older:
        check_follows(older, snapshot)
        return older
    if not snapshot.base:
        return Snapshot(Sums.zero(width), snapshot.identity)
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            found = snapshots.read(path)
        except SnapshotError as error:
            log.warning("passed over a snapshot: %s", error)
            continue
        if found.digest == snapshot.base:
            log.info("learning began with %s", path)
            return found
    raise SnapshotError(
        f"learning began with the model of digest {snapshot.base}, which no file below {folder} holds: name its file, "
        "or an older snapshot, with --from"
    )


def spans(broker: Broker, topic: str, begin: Snapshot, snapshot: Snapshot) -> dict[Partition, Extent]:
    """The offsets of each partition that lie between two snapshots.

    Raises RecoveryError if the topic is another one or does not hold them all, TopicError if there is none.
    """
    topic_id = broker.topic_id(topic)
    if snapshot.topic_id != topic_id:
        raise RecoveryError(
            f"the snapshot was learnt from another topic than {topic}, or that was made anew (id {topic_id}, not "
            f"{snapshot.topic_id}): check --broker and --topic-prefix"
        )
    clock = begin.clock if begin.topic_id == topic_id else {}
    held = broker.extents(topic)
    result = {p: Extent(clock.get(p.number, 0), snapshot.clock.get(p.number, 0)) for p in held}
    for partition, span in result.items():
        _check(partition, span, held[partition])
    return result


def _check(partition: Partition, span: Extent, held: Extent) -> None:
    where = f"topic {partition.topic}, partition {partition.number}"
    if span.first > span.end:
        raise RecoveryError(
            f"{where}: the snapshot reaches offset {span.end}, the one to begin from {span.first}: name an older one"
        )
    if span.first < span.end and span.first < held.first:
        raise RecoveryError(
            f"{where}: images from offset {span.first} to {min(span.end, held.first)} are gone, the topic begins at "
            f"{held.first}: name an older snapshot that reaches as far with --from"
        )
    if span.end > held.end:
        raise RecoveryError(
            f"{where}: the snapshot reaches offset {span.end}, but the topic ends at {held.end}: records were lost"
        )


def settle_spans(
    broker: Broker,
    begin: Snapshot,
    parts: Mapping[Partition, Extent],
    refuses: Callable[[str], bool],
    progress: Callable[[int], None],
    gone: Collection[tuple[int, int]] = (),
) -> Snapshot:
    """``begin`` and every image that those offsets hold, without those that are ``gone``: partition and offset.

    ``refuses`` says of a label whether it was never learnt, ``progress`` is given numbers of records. Raises
    SnapshotError if this program has other features, and what the broker raises.
    """
    learner = learner_of(begin)
    for partition, span in parts.items():
        messages = broker.read(partition, span.first, span.end)
        kept = (message for message in messages if (partition.number, message.offset) not in gone)
        settle_again(learner, kept, SIZE, refuses, progress)
        before = [offset for number, offset in gone if number == partition.number and offset < span.first]
        lost = (message for offset in before for message in broker.read(partition, offset, offset + 1))
        for _, update in settled(learner, lost, SIZE, refuses):
            learner.remove(update)
    return replace(begin, model=learner.sums())
