"""A learner of the model check: the real protocol code, with all that a worker does around it, step by step.

It is a generator, which the scheduler may leave alone for as long as it likes (a pause) or for ever (a crash).
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from typing import Any

from pipeline.errors import FencedError
from pipeline.group.membership import Change, Learnt, Publication
from pipeline.group.publishing import SHORT_DELTA, PublishingOwner
from pipeline.group.shared import Checkpoint, GroupRecord, Shared
from pipeline.group.takeover import read, take_over
from tests.simulation.arithmetic import Arithmetic, contents
from tests.simulation.kafka import BusyError, GoneError, Kafka, Transaction

LABELS, MOST_CLASSES = 6, 4
"""Labels in the topic, and how many of them there is room for."""

MOST = 6
"""Images after which to publish: a schedule has about fifty."""
CHECKPOINT_IMAGES = 2 * SHORT_DELTA
"""A checkpoint is due after two deltas."""

Choose = Callable[[int], int]


class UnknownOutcomeError(Exception):
    """A commit that no answer came to."""


class Images:
    """The topic: for each partition the image at each offset, or None where the broker has a record of its own."""

    def __init__(self, layout: list[list[int | None]]) -> None:
        self.layout = layout
        self.ends = [0] * len(layout)

    def span(self, partition: int, start: int, stop: int | None = None) -> list[tuple[int, int]]:
        """Offsets and images with start <= offset < stop, as far as they have been produced."""
        stop = self.ends[partition] if stop is None else min(stop, self.ends[partition])
        some = enumerate(self.layout[partition][start:stop], start)
        return [(offset, image) for offset, image in some if image is not None]


class LearnerLog:
    """``takeover.Log`` for one learner, whose ``owner`` says which labels are refused."""

    owner: PublishingOwner[Any, Any]

    def __init__(self, kafka: Kafka, images: Images, arithmetic: Arithmetic, start: int, choose: Choose) -> None:
        self.kafka, self.images, self.arithmetic, self.choose = kafka, images, arithmetic, choose
        self.reader = arithmetic.reader()
        self.next = start

    def committed(self, partitions: Collection[int]) -> Mapping[int, int] | None:
        return self.kafka.stable_positions(partitions)

    def first(self, partition: int) -> int:  # noqa: ARG002
        return 0

    def end_of_sums(self) -> int:
        return self.kafka.end

    def read_sums(self, end: int | None = None) -> tuple[list[tuple[GroupRecord[Any], int]], bool]:
        end = self.kafka.end if end is None else end
        stop = max(self.next, min(end, self.kafka.stable_end, self.next + 1 + self.choose(3)))  # as much as came
        found = [self.reader.read(*record) for record in self.kafka.read(self.next, stop)]
        self.next = stop
        return [record for record in found if record], self.next >= end

    def replay(self, partition: int, start: int, stop: int) -> Iterable[Learnt[Any]]:
        some = self.images.span(partition, start, stop)
        for place in range(0, len(some), 2):
            yield learnt(self.arithmetic, some[place : place + 2], self.owner)


def label(image: int) -> str:
    """The label of an image: there is room for most."""
    return f"label-{image % LABELS}"


def learnt(arithmetic: Arithmetic, some: list[tuple[int, int]], owner: PublishingOwner[Any, Any]) -> Learnt[Any]:
    images = [image for _, image in some if not owner.refuses(label(image))]
    return Learnt(some[-1][0] + 1, arithmetic.update(images), len(images))


class Learner:
    """One learner, from its start to its crash."""

    owner_type: type[PublishingOwner[Any, Any]] = PublishingOwner
    log_type: type[LearnerLog] = LearnerLog

    def __init__(
        self, name: str, transactional_id: str, kafka: Kafka, images: Images, arithmetic: Arithmetic, choose: Choose
    ) -> None:
        self.name, self.transactional_id = name, transactional_id
        self.kafka, self.images, self.arithmetic, self.choose = kafka, images, arithmetic, choose
        self.at_rest = False
        self.pause = 0  # steps of the world for which it stands still, if others do not
        self.owner: PublishingOwner[Any, Any] | None = None
        self.member: tuple[int, frozenset[int]] | None = None
        self._steps = self._life()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing that it could do, as things are."""
        return (
            self.owner is not None
            and self.member is not None
            and self.member == self.kafka.look(self.name)
            and self.owner.complete
            and self.log.next == self.kafka.end
            and not any(self.images.span(p, at) for p, at in self.owner.positions.items())
        )

    def step(self) -> None:
        next(self._steps)

    def _life(self) -> Iterator[None]:
        while True:
            try:
                self.owner = None
                yield from self._begun_anew()
                yield from self._session()
            except GoneError:
                yield

    def _begun_anew(self) -> Iterator[None]:
        newest: Shared[Any] = Shared(self.arithmetic.zero)
        reader = self.arithmetic.reader()
        for found in [reader.read(*record) for record in self.kafka.read(self.kafka.first, self.kafka.end)]:
            if found and isinstance(found[0], Checkpoint):
                newest = found[0].shared
        yield
        self.log = self.log_type(self.kafka, self.images, self.arithmetic, newest.position, self.choose)
        self.model = self.arithmetic.model(newest.sums)
        name = f"{self.name}/{self.choose(1 << 30)}"
        self.owner = self.owner_type(name, newest, self.model.beyond, most=MOST, checkpoint_images=CHECKPOINT_IMAGES)
        self.log.owner = self.owner

    def apply(self, change: Change[Any, Any]) -> None:
        change.apply(self.model)

    def _session(self) -> Iterator[None]:
        """Work, until a part of the log is gone that was not read yet."""
        assert self.owner
        while True:
            try:
                self.member = None
                epoch = yield from self._fence_the_one_before()
                while True:
                    yield from self._come_round(epoch)
            except (FencedError, UnknownOutcomeError):
                yield

    def _fence_the_one_before(self) -> Generator[None, None, int]:
        while True:
            try:
                return self.kafka.init(self.transactional_id)
            except BusyError:
                yield

    def _come_round(self, epoch: int) -> Iterator[None]:
        assert self.owner
        now = self.kafka.look(self.name)
        if now is None:
            yield
        elif now != self.member:
            yield from take_over(self.owner, self.log, self.apply, sorted(now[1]))
            self.member = now
        else:
            read(self.owner, self.log, self.apply)
            if self.owner.deletable > self.kafka.first and self.choose(3) == 0:
                self.delete(self.owner)
            yield
            yield from self._micro_batch(epoch)

    def delete(self, owner: PublishingOwner[Any, Any]) -> None:
        self.kafka.delete_before(owner.deletable)

    def _micro_batch(self, epoch: int) -> Iterator[None]:
        assert self.owner
        some = self._some(self.owner.positions)
        if unknown := self.owner.unknown(label(image) for images in some.values() for _, image in images):
            yield from self._admit(epoch, unknown)
        parts = {p: learnt(self.arithmetic, images, self.owner) for p, images in some.items() if images}
        ends = {p: part.stop for p, part in parts.items()}
        publication = self.owner.begin(ends, at_rest=self.at_rest or (not parts and self.choose(4) == 0))
        if not parts and not publication.records:
            self.owner.aborted()
            yield
            return
        try:
            images = [image for p in parts for _, image in some[p]]
            yield from self.commit(epoch, publication, images, self.positions(publication, ends))
        except BaseException:
            self.owner.aborted()
            raise
        self.apply(self.owner.committed(parts))

    def _admit(self, epoch: int, labels: tuple[str, ...]) -> Iterator[None]:
        """Name labels in the log, and wait until that has come back."""
        assert self.owner
        publication = self.owner.admit(labels)
        try:
            yield from self.commit(epoch, publication, [], publication.positions)
        except BaseException:
            self.owner.aborted()
            raise
        self.apply(self.owner.committed({}))
        while self.owner.unknown(labels):
            yield
            read(self.owner, self.log, self.apply)

    def _some(self, positions: Mapping[int, int]) -> dict[int, list[tuple[int, int]]]:
        """Images of all partitions, or, more often, of one of them."""
        if self.at_rest:
            return {p: self.images.span(p, at) for p, at in positions.items()}
        fed = list(positions)
        if fed and self.choose(3):
            fed = [fed[self.choose(len(fed))]]
        return {p: self.images.span(p, positions[p])[: self.choose(4)] for p in fed}

    def positions(self, publication: Publication[Any], ends: Mapping[int, int]) -> Mapping[int, int]:  # noqa: ARG002
        """What a transaction commits that holds the micro-batch which ends there."""
        return publication.positions

    def commit(
        self, epoch: int, publication: Publication[Any], images: list[int], positions: Mapping[int, int]
    ) -> Iterator[None]:
        """One transaction; it is over when this is."""
        transaction = self.kafka.begin(self.transactional_id, epoch)
        self.kafka.predict(transaction, images)
        early = self.choose(2)
        if early:  # what was sent may arrive in any order, and the rest of it late
            self.commit_positions(transaction, positions)
            self.pause = 0 if self.choose(4) else 40 + self.choose(80)
            yield
        for content in contents(self.arithmetic, publication, 1 + self.choose(4)):
            self.kafka.produce(transaction, content)
            if self.choose(3):
                yield
        if not early:
            self.commit_positions(transaction, positions)
        yield
        lost = self.choose(24)
        if lost == 0:
            raise UnknownOutcomeError
        self.kafka.end_transaction(transaction, True)
        if lost == 1:
            raise UnknownOutcomeError
        while not self.kafka.is_over(transaction):
            yield

    def commit_positions(self, transaction: Transaction, positions: Mapping[int, int]) -> None:
        assert self.member
        self.kafka.commit_positions(transaction, self.name, self.member[0], positions)
