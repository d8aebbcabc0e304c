"""One schedule of the model check: a broker, learners, and whoever decides what happens next."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from pipeline.errors import OutOfStepError
from pipeline.group.shared import Checkpoint, Retraction, Shared
from tests.simulation.arithmetic import Arithmetic
from tests.simulation.kafka import POSITIONS, SUMS, Kafka
from tests.simulation.learner import MOST_CLASSES, Choose, Images, Learner, label

PARTITIONS = 3
OFFSETS = 20
"""Of each partition; some of them hold no image."""
STEPS = 500
"""Before the world comes to rest."""
PATIENCE = 1000
"""Steps in which it has to."""


class ViolationError(Exception):
    """Something that must never happen, and did."""


class World:
    """Plays one schedule.

    Parameters
    ----------
    choose
        ``choose(n)`` is any of 0 … n − 1. It decides everything.
    """

    def __init__(self, choose: Choose, arithmetic: Arithmetic, learner: type[Learner] = Learner) -> None:
        self.choose, self.arithmetic, self.learner_type = choose, arithmetic, learner
        self.kafka = Kafka()
        self.images = Images(self._layout())
        self.learners: dict[str, Learner] = {}
        self.born = 0
        self.lots = self._lots()
        self.slow = (SUMS, SUMS, POSITIONS, None)[choose(4)]
        self.retracted: set[int] = set()
        self.checkpoints: list[Checkpoint[Any]] = []
        self.oracle: Shared[Any] = Shared(arithmetic.zero)
        self.reader, self.read_to = arithmetic.reader(), 0

    def play(self) -> None:
        """Raises ViolationError, and whatever a learner should not have raised."""
        with patch("pipeline.records.images.MOST_CLASSES", MOST_CLASSES):
            self._play()

    def _play(self) -> None:
        try:
            for _ in range(STEPS):
                self._happen()
            self._come_to_rest()
        except (OutOfStepError, ValueError) as error:
            raise ViolationError(repr(error)) from error

    def _layout(self) -> list[list[int | None]]:
        image = iter(range(PARTITIONS * OFFSETS))
        return [[next(image) if self.choose(6) else None for _ in range(OFFSETS)] for _ in range(PARTITIONS)]

    # -- what may happen

    def _lots(self) -> list[Callable[[], None]]:
        """How often what happens differs from schedule to schedule: some mishaps show only where others are rare."""
        usual = [self._step] * 40 + [self._tell] * (4 + self.choose(12)) + [self._produce] * (2 + self.choose(8))
        rare = [self._rebalance, self._start, self._expel, self._crash, self._time_out, self._retract]
        return usual + [mishap for mishap in rare for _ in range(self.choose(4))] + [self._start] * (1 + self.choose(4))

    def _happen(self) -> None:
        self.lots[self.choose(len(self.lots))]()

    def _step(self) -> None:
        if self.learners:
            for each in self.learners.values():
                each.pause -= each.pause > 0
            awake = [each for each in self.learners.values() if not each.pause] or list(self.learners.values())
            self._let(awake[self.choose(len(awake))])

    def _let(self, learner: Learner) -> None:
        before = learner.owner and learner.owner.shared
        learner.step()
        if learner.owner and learner.owner.shared is not before:
            self._check(learner.name, learner.owner.shared)

    def _tell(self) -> None:
        known = [t for t in self.kafka.unfinished if t.outcome is not None]
        if known:
            transaction = known[self.choose(len(known))]
            untold = sorted(transaction.untold)
            partition = untold[self.choose(len(untold))]
            if partition != self.slow or self.choose(20) == 0:
                self.kafka.tell(transaction, partition)

    def _produce(self) -> None:
        partition = self.choose(PARTITIONS)
        self.images.ends[partition] = min(OFFSETS, self.images.ends[partition] + 1 + self.choose(3))

    def _rebalance(self) -> None:
        self.kafka.rebalance(set(self.kafka.assignment) & set(self.learners), PARTITIONS, self.choose)

    def _start(self) -> None:
        """A learner joins, with a transactional id that another one may have had."""
        if len(self.learners) < 5:
            self.born += 1
            name, id = f"learner-{self.born}", f"id-{self.choose(6)}"
            self.learners[name] = self.learner_type(name, id, self.kafka, self.images, self.arithmetic, self.choose)
            self.kafka.rebalance({*self.kafka.assignment, name}, PARTITIONS, self.choose)

    def _expel(self) -> None:
        """A learner is given up by the group, and does not know; it may join again."""
        if self.kafka.assignment:
            names = sorted(self.kafka.assignment)
            gone = names[self.choose(len(names))]
            self.kafka.rebalance(set(names) - {gone}, PARTITIONS, self.choose)
        if (missing := sorted(set(self.learners) - set(self.kafka.assignment))) and self.choose(2):
            self.kafka.rebalance({*self.kafka.assignment, missing[0]}, PARTITIONS, self.choose)

    def _crash(self) -> None:
        """Killed; the group notices at some later rebalance."""
        if self.learners:
            names = list(self.learners)
            del self.learners[names[self.choose(len(names))]]

    def _time_out(self) -> None:
        still_open = [t for t in self.kafka.unfinished if t.outcome is None]
        if still_open:
            self.kafka.time_out(still_open[self.choose(len(still_open))])

    def _retract(self) -> None:
        """Take back one image that is published; the record may be written twice."""
        self._look()
        clock = self.oracle.clock
        known = [
            (p, offset, image)
            for p, stop in clock.items()
            for offset, image in self.images.span(p, 0, stop)
            if image not in self.retracted and not self.oracle.refuses(label(image))
        ]
        if known:
            partition, offset, image = known[self.choose(len(known))]
            record = Retraction(f"retraction-{image}", {partition: offset + 1}, self.arithmetic.sums([image]))
            for _ in range(1 + self.choose(2)):
                transaction = self.kafka.begin("operator", self.kafka.epochs.setdefault("operator", 0))
                for content in self.arithmetic.contents(record, 1):
                    self.kafka.produce(transaction, content)
                self.kafka.end_transaction(transaction, True)
                self.kafka.tell(transaction, SUMS)
            self.retracted.add(image)

    # -- what must hold

    def _look(self) -> None:
        """Read what is published, from the beginning on, and compare it with what it should be."""
        stop = self.kafka.stable_end
        for found in [self.reader.read(*record) for record in self.kafka.history(self.read_to, stop)]:
            if found and isinstance(found[0], Checkpoint):
                self.checkpoints.append(found[0])
            if found and self.oracle.lacks(found[0]):
                self.oracle = self.oracle.plus(found[0])
        self.read_to = stop

    def _check(self, name: str, shared: Shared[Any]) -> None:
        """What a learner takes for published is the sum over the images before its clock, each of them once."""
        taken_back = {int(id.partition("-")[2]) for id in shared.retracted}
        images = [
            image
            for p, stop in shared.clock.items()
            for _, image in self.images.span(p, 0, stop)
            if image not in taken_back and not shared.refuses(label(image))
        ]
        if not self.arithmetic.same(shared.sums, self.arithmetic.sums(images)):
            raise ViolationError(f"{name}: shared sums are not those of the images before {shared.clock}")

    def _come_to_rest(self) -> None:
        """Everything is produced, nobody crashes any more; after a while all must be done and agree."""
        self.images.ends = [OFFSETS] * PARTITIONS
        if not self.learners:
            self._start()
        newest = {learner.transactional_id: name for name, learner in self.learners.items()}
        self.learners = {name: self.learners[name] for name in newest.values()}  # two would fence each other for ever
        for learner in self.learners.values():
            learner.at_rest = True
        self.kafka.rebalance(set(self.learners), PARTITIONS, self.choose)
        for step in self._until_done():
            for learner in list(self.learners.values()):
                self._let(learner)
            for transaction in list(self.kafka.unfinished):
                if transaction.outcome is None and step % 64 == 0:
                    self.kafka.time_out(transaction)
                for partition in sorted(transaction.untold):
                    self.kafka.tell(transaction, partition)
        self._agree()

    def _until_done(self) -> Iterator[int]:
        for step in range(PATIENCE):
            if all(learner.is_done for learner in self.learners.values()) and not self.kafka.unfinished:
                return
            yield step
        raise ViolationError("the learners do not come to rest")

    def _agree(self) -> None:
        self._look()
        images = [image for partition in self.images.layout for image in partition if image is not None]
        if sorted(self.kafka.predictions) != images:
            raise ViolationError("not every image was predicted once")
        learnt = [image for image in images if not self.oracle.refuses(label(image))]
        expected = self.arithmetic.sums(image for image in learnt if image not in self.retracted)
        for learner in self.learners.values():
            owner = learner.owner
            assert owner
            if not self.arithmetic.same(learner.model.sums(), expected):
                raise ViolationError(f"{learner.name} serves from other sums than a single learner would")
            if not self.arithmetic.same(owner.shared.sums, expected):
                raise ViolationError(f"{learner.name}: not everything was published once")
        for checkpoint in self.checkpoints:
            self._read_late(checkpoint)

    def _read_late(self, checkpoint: Checkpoint[Any]) -> None:
        """Who begins with any checkpoint, however old, and reads all that came after it has what all others have."""
        shared, reader = checkpoint.shared, self.arithmetic.reader()
        late = self.learner_type.owner_type("late", shared, self.arithmetic.model(shared.sums).beyond, most=1)
        for found in [reader.read(*record) for record in self.kafka.history(shared.position, self.kafka.end)]:
            if found:
                late.read(*found)
        if not self.arithmetic.same(late.shared.sums, self.oracle.sums):
            raise ViolationError(f"who begins with {checkpoint.id} comes to other sums")
