"""An owner that publishes for a group: what all have published, and what it alone has learnt since.

The same code runs in the real consumer and in the model check: no broker, no clock on the wall, no file, no thread.
At any moment what the learner serves from is

    shared sums + unpublished updates of the partitions it owns + its own delta that has not come back yet

so what is unpublished of all partitions together is a difference, and one delta carries all of them. A delta ends
where the partitions stood before the micro-batch that it is committed with: never past the group's position.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.errors import FencedError
from pipeline.group.membership import Acquired, Change, Learnt, PartitionOwner, Publication, U
from pipeline.group.shared import Checkpoint, Clock, Delta, G, GroupRecord, Retraction, Shared

LONG_DELTA, SHORT_DELTA = 1_000, 50
"""Images. A delta of more takes no longer to read, one of less no shorter."""

CHECKPOINT_IMAGES = 16 * LONG_DELTA
"""A checkpoint is due after deltas of so many images: a newcomer reads one checkpoint or two, and no more."""

EARLY = 2_048
"""Images for which a learner publishes often."""

MOST_UNPUBLISHED = 30_000
"""Images in a delta; int32 holds their sums: 255² · 30,000 < 2³¹. They are also what is read again after a crash."""


def counted(images: int) -> int:
    """As how many images a delta counts towards the next checkpoint."""
    return max(SHORT_DELTA, min(images, LONG_DELTA))


class PublishingSchedule:
    """When to publish.

    At an eighth more images than the last time, after ``EARLY`` of them at half as many again; from the beginning after
    a new class; and every ``most`` images. Of what the others have learnt, a learner lacks a seventeenth on average,
    later a fifth.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.begin()

    def begin(self) -> None:
        """Something new: publish soon and often."""
        self._images, self._next = 0, 1

    def learnt(self, images: int) -> None:
        """From so many more images."""
        self._images += images

    def due(self, unpublished: int) -> bool:
        return self._images >= self._next or unpublished >= self._most

    def published(self) -> None:
        self._next = max(1, self._images + -(-self._images // (8 if self._images < EARLY else 2)))


class PublishingOwner(PartitionOwner[U, G]):
    """What one learner of a group owns.

    Parameters
    ----------
    name
        Of this learner in this session; no other learner ever had it.
    shared
        The newest checkpoint, or what the group began with. The model holds its sums.
    beyond
        What the model holds beyond some sums, which is what the updates given with them add up to.
    most
        Images after which to publish, at most ``MOST_UNPUBLISHED``.
    checkpoint_images
        Images in deltas after which a checkpoint is due, from whoever owns partition 0.
    checkpoint_due
        Whether one is due at once: nobody else could tell what the group began with.
    """

    def __init__(
        self,
        name: str,
        shared: Shared[G],
        beyond: Callable[[G, Sequence[U]], G],
        *,
        most: int,
        checkpoint_images: int = CHECKPOINT_IMAGES,
        checkpoint_due: bool = False,
    ) -> None:
        super().__init__(name)
        self.shared, self._beyond = shared, beyond
        self.deletable = shared.position
        self._schedule = PublishingSchedule(most)
        self._checkpoint_images = checkpoint_images
        self._awaited: set[str] = set()
        self._made = 0
        self._since_checkpoint = checkpoint_images if checkpoint_due else 0

    @property
    def clock(self) -> Clock:
        return self.shared.clock

    @property
    def unpublished(self) -> int:
        """Images that only this learner has learnt from."""
        return sum(owned.images for owned in self._owned.values())

    @property
    def full(self) -> bool:
        return self.unpublished >= MOST_UNPUBLISHED

    @property
    def awaiting(self) -> bool:
        return bool(self._awaited)

    @property
    def complete(self) -> bool:
        return not self._awaited and not self._spans()

    @property
    def reach(self) -> int:
        return sum(self.shared.clock.values())

    def kept(self) -> Shared[G]:
        """What a snapshot is to hold: sums that nobody will take away from this learner."""
        return self.shared

    # -- what others did

    def read(self, record: GroupRecord[G], position: int) -> Change[U, G]:
        """A committed record of ``sums``, in the order of the log; ``position`` is that of ``Shared``.

        Raises OutOfStepError: make a new owner, from the newest checkpoint.
        """
        self._check_closed()
        change: Change[U, G] = Change()
        if self.shared.lacks(record):
            change = self._change(record)
            self.shared = self.shared.plus(record)
        if isinstance(record, Checkpoint):
            self.deletable, self._since_checkpoint = max(self.deletable, record.shared.position), 0
        self._awaited.discard(record.id)
        self.shared = replace(self.shared, position=position)
        return change

    def _change(self, record: GroupRecord[G]) -> Change[U, G]:
        match record:
            case Delta():
                self._since_checkpoint += counted(record.images)
                if record.id in self._awaited:  # its own is in the model already
                    return Change()
                return replace(self._lose(record.spans), added_sums=record.sums)
            case Retraction():
                return Change(removed_sums=record.sums)
        return Change()

    # -- partitions come and go

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        """As above.

        ``sums`` must have been read up to an end that was asked for after ``committed``, with uncommitted records
        counted. Raises FencedError if the sums reach past ``committed``.
        """
        clock = self.clock.get(partition, 0)
        if committed is not None and committed < clock:
            raise FencedError(
                f"partition {partition}: the sums reach {clock}, past the group's position {committed}: another "
                "learner has it now, or positions were moved back"
            )
        return super().acquire(partition, committed, first)

    # -- its own work

    def committed(self, parts: Mapping[int, Learnt[U]]) -> Change[U, G]:
        """The open transaction was committed: what it published is no longer this learner's, what it learnt is."""
        publication = self._close()
        if publication.delta:
            for partition in publication.delta.spans:
                self._owned[partition].learnt.clear()
            self._schedule.published()
        self._awaited |= {record.id for record in publication.records}
        if any(learnt.new_class for learnt in parts.values()):
            self._schedule.begin()
        self._schedule.learnt(sum(learnt.images for learnt in parts.values()))
        return self._learn_all(parts)

    def _publication(self, at_rest: bool) -> Publication[G]:
        delta: Delta[G] | None = None
        checkpoint: Checkpoint[G] | None = None
        if not self._awaited:
            if (at_rest or self._schedule.due(self.unpublished)) and (spans := self._spans()):
                updates = [learnt.update for p in spans for learnt in self._owned[p].learnt]
                delta = Delta(self._id(), spans, self._beyond(self.shared.sums, updates), self.unpublished)
            if 0 in self._owned and self._since_checkpoint >= self._checkpoint_images:
                checkpoint = Checkpoint(self._id(), self.shared)
        return Publication(delta, checkpoint)

    def _spans(self) -> dict[int, tuple[int, int]]:
        clock = self.shared.clock
        spans = {p: (clock.get(p, 0), owned.position) for p, owned in self._owned.items()}
        return {p: (start, stop) for p, (start, stop) in spans.items() if start < stop}

    def _learn(self, partition: int, learnt: Learnt[U]) -> Change[U, G]:
        owned = self._owned[partition]
        owned.learnt.append(learnt)
        owned.position = learnt.stop
        return Change(added=[learnt.update])

    def _id(self) -> str:
        self._made += 1
        return f"{self.name}-{self._made}"
