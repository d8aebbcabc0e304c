"""One learner's share in the work of a group: what all have published, and what it alone has learnt since.

The same code runs in the real consumer and in the model check: no broker, no clock on the wall, no file, no thread.
At any moment what the learner serves from is

    published sums + unpublished updates of the partitions it holds + its own delta that has not come back yet

so what is unpublished of all partitions together is a difference, and one delta carries all of them. A delta ends
where the partitions stood before the micro-batch that it is committed with: never past the group's position.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from pipeline.errors import FencedError
from pipeline.group.membership import Learnt, PartitionOwner, Publication, U
from pipeline.group.shared import Checkpoint, Clock, Delta, G, GroupRecord, Shared

LONG_DELTA, SHORT_DELTA = 1_000, 50
"""Images. A delta of more takes no longer to read, one of less no shorter."""

CHECKPOINT_IMAGES = 16 * LONG_DELTA
"""A base is due after deltas of so many images: a newcomer reads no more than those and one base, or two."""

EARLY = 2_048
"""Images for which a learner publishes often."""

MOST_UNPUBLISHED = 30_000
"""Images in a delta; int32 holds their sums: 255² · 30,000 < 2³¹. They are also what is read again after a crash."""

U_contra = TypeVar("U_contra", contravariant=True)
H = TypeVar("H")


def counted(images: int) -> int:
    """As how many images a delta counts towards the next base."""
    return max(SHORT_DELTA, min(images, LONG_DELTA))


class Adder(Protocol[U_contra, H]):
    """The sums that a learner serves from."""

    @property
    def classes(self) -> Collection[str]: ...

    def add(self, update: U_contra, /) -> None: ...

    def remove(self, update: U_contra, /) -> None:
        """Undo ``add``."""

    def add_sums(self, sums: H, /) -> None: ...

    def remove_sums(self, sums: H, /) -> None: ...

    def sums(self) -> H: ...

    def beyond(self, sums: H, updates: Sequence[U_contra], /) -> H:
        """What it holds beyond these sums, which is what the updates add up to."""


class PublishingSchedule:
    """When to publish: at an eighth more images than the last time, after ``EARLY`` of them at half as many again, from
    the beginning after a new class, and every ``most`` images.

    Of what the others have learnt, a learner lacks a seventeenth on average, then a fifth.
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


class PublishingOwner(PartitionOwner[U], Generic[U, G]):
    """What one learner holds.

    Parameters
    ----------
    name
        Of this learner in this session; no other learner ever had it.
    published
        The newest base, or what the group began with.
    adder
        Holds ``published.sums``, and grows and shrinks with everything that this share is told.
    most
        Images after which to publish, at most ``MOST_UNPUBLISHED``.
    checkpoint_images
        Images in deltas after which a base is due, from whoever holds partition 0.
    checkpoint_due
        Whether one is due at once: nobody else could tell what the group began with.
    """

    def __init__(
        self,
        name: str,
        published: Shared[G],
        adder: Adder[U, G],
        most: int,
        checkpoint_images: int = CHECKPOINT_IMAGES,
        checkpoint_due: bool = False,
    ) -> None:
        super().__init__(name)
        self.published, self.adder = published, adder
        self.deletable = published.position
        self._schedule = PublishingSchedule(most)
        self._checkpoint_images = checkpoint_images
        self._awaited: set[str] = set()
        self._made = 0
        self._since_checkpoint = checkpoint_images if checkpoint_due else 0

    @property
    def clock(self) -> Clock:
        return self.published.clock

    @property
    def unpublished(self) -> int:
        """Images that only this learner has learnt from."""
        return sum(holding.images for holding in self._held.values())

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
        return sum(self.published.clock.values())

    def kept(self) -> Shared[G]:
        """What a snapshot is to hold: sums that nobody will take away from this learner."""
        return self.published

    # -- what others did

    def read(self, record: GroupRecord[G], position: int) -> None:
        """A committed record of ``sums``, in the order of the log; ``position`` is that of ``Shared``.

        Raises OutOfStepError: make a new share, from the newest base.
        """
        self._check_closed()
        if self.published.lacks(record):
            self._change(record)
            self.published = self.published.plus(record)
        if isinstance(record, Checkpoint):
            self.deletable, self._since_checkpoint = max(self.deletable, record.published.position), 0
        self._awaited.discard(record.id)
        self.published = replace(self.published, position=position)

    def _change(self, record: GroupRecord[G]) -> None:
        match record:
            case Delta():
                self._since_checkpoint += counted(record.images)
                if record.id not in self._awaited:  # its own is in the adder already
                    self._let_go(record.spans)
                    self.adder.add_sums(record.sums)
            case Checkpoint():
                return
            case _:
                self.adder.remove_sums(record.sums)

    # -- partitions come and go

    def acquire(self, partition: int, committed: int | None, first: int = 0) -> tuple[int, int]:
        """Hold a partition; from which offset to which its images are to be learnt from again.

        ``sums`` must have been read up to an end that was asked for after ``committed``, with uncommitted records
        counted. Where nobody has been yet, work begins at ``first``, the first offset that the topic still has.
        Raises FencedError if the sums reach past ``committed``.
        """
        clock = self.clock.get(partition, 0)
        if committed is not None and committed < clock:
            raise FencedError(
                f"partition {partition}: the sums reach {clock}, past the group's position {committed}: another "
                "learner has it now, or positions were moved back"
            )
        return super().acquire(partition, committed, first)

    def _let_go(self, partitions: Iterable[int]) -> None:
        """What was not published of these partitions is no longer this learner's."""
        for partition in set(partitions) & self._held.keys():
            for learnt in self._held.pop(partition).learnt:
                self.adder.remove(learnt.update)

    # -- its own work

    def committed(self, parts: Mapping[int, Learnt[U]]) -> None:
        """The open transaction was committed: what it published is no longer this learner's, what it learnt is."""
        publication, classes = self._close(), len(self.adder.classes)
        if publication.delta:
            for partition in publication.delta.spans:
                self._held[partition].learnt.clear()
            self._schedule.published()
        self._awaited |= {record.id for record in publication.records}
        for partition, learnt in parts.items():
            self._learn(partition, learnt)
        if len(self.adder.classes) > classes:
            self._schedule.begin()
        self._schedule.learnt(sum(learnt.images for learnt in parts.values()))

    def _publication(self, at_rest: bool) -> Publication[G]:
        delta: Delta[G] | None = None
        base: Checkpoint[G] | None = None
        if not self._awaited:
            if (at_rest or self._schedule.due(self.unpublished)) and (spans := self._spans()):
                updates = [learnt.update for p in spans for learnt in self._held[p].learnt]
                delta = Delta(self._id(), spans, self.adder.beyond(self.published.sums, updates), self.unpublished)
            if 0 in self._held and self._since_checkpoint >= self._checkpoint_images:
                base = Checkpoint(self._id(), self.published)
        return Publication(delta, base)

    def _spans(self) -> dict[int, tuple[int, int]]:
        clock = self.published.clock
        spans = {p: (clock.get(p, 0), holding.position) for p, holding in self._held.items()}
        return {p: (start, stop) for p, (start, stop) in spans.items() if start < stop}

    def _learn(self, partition: int, learnt: Learnt[U]) -> None:
        self.adder.add(learnt.update)
        holding = self._held[partition]
        holding.learnt.append(learnt)
        holding.position = learnt.stop

    def _id(self) -> str:
        self._made += 1
        return f"{self.name}-{self._made}"
