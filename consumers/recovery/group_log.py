"""What a group's broker can tell a learner that takes partitions over: the real ``takeover.Log``."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from pipeline.broker import Broker, Partition, Position, Tail
from pipeline.errors import OutOfStepError, RecoveryError, TopicError
from pipeline.group.encoding import GroupReader, LogIdentity, kind, log_identity_of
from pipeline.group.membership import Learnt
from pipeline.group.shared import Checkpoint, GroupRecord, Shared
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.protocol import AnyLearner, ClearingUpdate
from pipeline.records.batch import settled
from pipeline.records.topics import Topics

log = logging.getLogger(__name__)

SOON_SECONDS = 0.02
"""How long to wait for more of ``sums`` where some has just come: a broker sends a record's pieces one by one."""

STEP_SECONDS = 0.1
"""How long to wait for more of ``sums`` at a time, where a certain end is to be reached."""


class GroupLog:
    """Positions, ``sums`` and images of one group.

    Parameters
    ----------
    learner
        Quotes and settles what is learnt again, ``batch_size`` images at a time.
    reading
        Read ``sums``; None for who does not follow it.
    """

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        group: str,
        learner: AnyLearner,
        batch_size: int,
        reading: tuple[Tail, GroupReader] | None = None,
    ) -> None:
        self._broker, self._images, self._group = broker, topics.images, group
        self._learner, self._batch_size = learner, batch_size
        self._sums, self._reading = topics.sums(group), reading

    def committed(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Waits for open transactions. Raises RecoveryError."""
        return offsets(self._broker.committed(self._group, self._images, partitions), self._group)

    def first(self, partition: int) -> int:
        return self._broker.extents(self._images)[Partition(self._images, partition)].first

    def end_of_sums(self) -> int:
        return self._broker.end(self._sums) if self._reading else 0

    def read_group(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Sums], int]], bool]:
        """As in the protocol. Raises SumsError for a learner that differs, OutOfStepError if records are gone."""
        if not self._reading:
            return [], True
        tail, reader = self._reading
        try:
            messages = some = tail.poll(STEP_SECONDS if end is not None and tail.position < end else 0.0)
            while some and end is None:
                some = tail.poll(SOON_SECONDS)
                messages += some
        except TopicError as error:  # below a newer base
            raise OutOfStepError(f"{error}: begin again with the newest base") from error
        found = [record for message in messages if (record := reader.read(message))]
        return found, end is None or tail.position >= end

    def expect(self, own: Collection[GroupRecord[Sums]]) -> None:
        """This learner is about to write these to ``sums``."""
        if self._reading and own:
            self._reading[1].expect(own)

    def replay(self, partition: int, start: int, stop: int) -> Iterator[Learnt[ClearingUpdate]]:
        """As in the protocol. Raises RecoveryError if they are gone, or never were."""
        place = Partition(self._images, partition)
        self._check(place, start, stop)
        if start < stop:
            log.info("partition %d: learning offsets %d to %d again", partition, start, stop)
        for messages, update in settled(self._learner, self._broker.read(place, start, stop), self._batch_size):
            yield Learnt(messages[-1].offset + 1, update, len(update.labels))

    def close(self) -> None:
        if self._reading:
            self._reading[0].close()

    def _check(self, place: Partition, start: int, stop: int) -> None:
        extent = self._broker.extents(self._images)[place]
        where = f"topic {place.topic}, partition {place.number}"
        if stop > extent.end:
            raise RecoveryError(
                f"{where}: group {self._group} stands at {stop}, but the topic ends at {extent.end}: positions were "
                "moved or the topic was made anew; choose another --group"
            )
        if start < extent.first and start < stop:
            raise RecoveryError(
                f"{where}: images from offset {start} to {min(stop, extent.first)} are needed to rebuild the sums, but "
                f"the topic begins at {extent.first}: put back a snapshot that reaches further, or choose another "
                "--group"
            )


def offsets(positions: Mapping[Partition, Position], group: str, note: str = "") -> dict[int, int]:
    """A group's positions, by partition. Raises RecoveryError if another kind of learner left them: see ``note``."""
    for position in positions.values():
        if position.note != note:
            theirs, mine = ("marketplace" if one else "clearing" for one in (position.note, note))
            raise RecoveryError(
                f"group {group} learns with {theirs}, not with {mine}: choose another --group, or --learner {theirs}"
            )
    return {partition.number: position.offset for partition, position in positions.items()}


def newest_checkpoint(broker: Broker, sums: Partition, run: LogIdentity) -> tuple[Shared[Sums] | None, str]:
    """The newest base of a group, and the digest of the model that the group began with.

    Raises SumsError if a learner that differs has written there, OutOfStepError if records go while this reads.
    """
    extent = broker.extents(sums.topic)[sums]
    newest: Shared[Sums] | None = None
    reader: GroupReader | None = None
    try:
        for message in broker.read(sums, extent.first, extent.end):
            if reader is None:
                run = replace(run, base=run.base or log_identity_of(message).base)
                reader = GroupReader(run)
            if kind(message) == "base" and (found := reader.read(message)) and isinstance(found[0], Checkpoint):
                newest = found[0].published
    except TopicError as error:
        raise OutOfStepError(f"{error}: a newer base was written, begin again with it") from error
    return newest, run.base
