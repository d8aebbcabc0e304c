"""An owner that publishes what it learns for the other learners of its group.

At any moment the learner serves from

    shared sums + unpublished updates of the partitions it owns + its own delta that has not come back yet

So the unpublished part is a difference of sums, and one delta carries it for all partitions. The delta goes out with a
micro-batch, and holds what came before that micro-batch. So it never ends past the group's position.

The real consumer and the model check run the same code. It knows no broker, wall clock, file or thread.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.errors import FencedError
from pipeline.group.membership import Acquired, Change, Learnt, Publication, SharingOwner, U
from pipeline.group.shared import Checkpoint, Delta, G, GroupRecord, Reach, Retraction, Shared

LONG_DELTA, SHORT_DELTA = 1_000, 50
"""In images. A longer delta takes no longer to read, and a shorter one is read no faster."""

CHECKPOINT_IMAGES = 16 * LONG_DELTA
"""A checkpoint is due after deltas that count as so many images. So a newcomer has little to read."""

EARLY = 2_048
"""A learner publishes often until it has learnt from so many images."""

MOST_UNPUBLISHED = 30_000
"""Most images in a delta: int32 holds their sums, as 255² · 30,000 < 2³¹. A crash repeats no more of them."""


def counted(images: int) -> int:
    """How many images a delta of ``images`` counts as, towards the next checkpoint."""
    return max(SHORT_DELTA, min(images, LONG_DELTA))


class PublishingSchedule:
    """When to publish: each time the images have grown by an eighth, and from ``EARLY`` images on by half.

    A new class begins the schedule anew. ``most`` unpublished images are always enough. On average a learner lacks a
    seventeenth of what the others have learnt, and later a fifth.

    Examples
    --------
    >>> schedule, times = PublishingSchedule(most=20_000), []
    >>> for images in range(256, 8192, 256):
    ...     schedule.learnt(256)
    ...     if schedule.due(unpublished=256):
    ...         schedule.published()
    ...         times.append(images)
    >>> times
    [256, 512, 768, 1024, 1280, 1536, 1792, 2048, 3072, 4608, 6912]
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.begin()

    def begin(self) -> None:
        """Begin anew: publish soon and often."""
        self._images, self._next = 0, 1

    def learnt(self, images: int) -> None:
        """Count so many more images."""
        self._images += images

    def due(self, unpublished: int) -> bool:
        return self._images >= self._next or unpublished >= self._most

    def published(self) -> None:
        self._next = max(1, self._images + -(-self._images // (8 if self._images < EARLY else 2)))


class PublishingOwner(SharingOwner[U, G]):
    """The owner of one learner of a group.

    Parameters
    ----------
    name
        Name of this learner in this session. No other learner ever has the same.
    shared
        The newest checkpoint, or what the group began with. The model holds its sums.
    beyond
        Computes what the model holds beyond some sums. It is given the sums, and the updates that make the difference.
    most
        Unpublished images after which to publish, at most ``MOST_UNPUBLISHED``.
    checkpoint_images
        A checkpoint is due after deltas that count as so many (``counted``). The owner of partition 0 writes it.
    checkpoint_due
        Whether a checkpoint is due at once. A group that began with an earlier model needs one: no delta holds that.
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
        super().__init__(name, shared)
        self._beyond = beyond
        self.deletable = shared.position
        self._schedule = PublishingSchedule(most)
        self._checkpoint_images = checkpoint_images
        self._awaited: set[str] = set()
        self._since_checkpoint = checkpoint_images if checkpoint_due else 0

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
    def reach(self) -> Reach:
        return self.shared.reach

    def kept(self) -> Shared[G]:
        """What a snapshot holds: sums that this learner cannot lose."""
        return self.shared

    # -- what others did

    def read(self, record: GroupRecord[G], position: int) -> Change[U, G]:
        """Take in a committed record of ``sums``, in the order of the log. ``position`` is where to read on.

        Raises OutOfStepError if the record does not fit the clock: make a new owner from the newest checkpoint. Raises
        ValueError if a transaction is open.
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
                if record.id in self._awaited:  # the model holds this learner's own delta already
                    return Change()
                return replace(self._lose(record.spans), added_sums=record.sums)
            case Retraction():
                return Change(removed_sums=record.sums)
        return Change()

    # -- partitions come and go

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> Acquired:
        """Own a partition, as in ``PartitionOwner``.

        First ask for ``committed``, then for the end of ``sums``, uncommitted records included. Then read ``sums`` up
        to that end. Raises FencedError if the sums reach past ``committed``.
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
        """The open transaction was committed: its delta is published, and ``parts`` are learnt."""
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
