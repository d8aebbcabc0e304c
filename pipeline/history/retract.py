"""Taking images back: their sums are subtracted once by every learner of the group, also by those that start later.

The topic with the images, predictions, the journal, and snapshots that were written before still hold them.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipeline.broker import Broker, Message, Producer
from pipeline.errors import RecordError, RecoveryError, SettingsError, SnapshotError
from pipeline.group.encoding import Held, LogIdentity, encode, log_identity_of
from pipeline.group.shared import Clock, Retraction
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import LooseSums, Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.learners.replay import settled
from pipeline.records.images import ImageRecord, admitted_with, decode
from pipeline.records.journal import places, retraction_record, taken_back
from pipeline.records.topics import Topics
from pipeline.snapshots.predict import learner_of
from pipeline.snapshots.snapshot import Folder, Snapshot

SIZE = 256
"""Images that are settled at once."""

SHOWN = 30
"""Labels that an error names."""


@dataclass(frozen=True)
class Choice:
    """Which images are meant: those that match every field that is not None. ``begin`` and ``end`` are milliseconds."""

    id: str | None = None
    label: str | None = None
    key: bytes | None = None
    begin: int | None = None
    end: int | None = None

    def matches(self, message: Message, image: ImageRecord) -> bool:
        """Whether an image that came as this message is meant."""
        pairs = ((self.key, message.key), (self.id, image.id), (self.label, image.label))
        late = self.begin is None or self.begin <= message.timestamp  # which is −1 where whoever wrote it gave none
        early = self.end is None or message.timestamp < self.end
        return late and early and all(wanted in (None, found) for wanted, found in pairs)


@dataclass
class Found:
    """The images of a choice. ``messages`` can be taken back; ``later`` counts those that were not published yet."""

    messages: list[Message] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    later: int = 0


@dataclass(frozen=True)
class LearntGroup:
    """A group of learners, as an operator sees it from outside."""

    broker: Broker
    topics: Topics
    name: str
    folder: Folder

    def log_identity(self) -> LogIdentity:
        """What its learners agree on. Raises SnapshotError if it has learnt nothing that could be taken back."""
        for message in self._sums():
            return log_identity_of(message)
        own = self.folder.newest()
        if own is None or self.broker.shares_groups:
            raise SnapshotError(
                f"group {self.name} has published nothing, and there is no snapshot in {self.folder.path}: check "
                "--group, --topic-prefix and --snapshots"
            )
        sums, identity = own.sums, own.identity
        assert isinstance(identity, ClearingIdentity)
        return LogIdentity(self.name, own.topic_id, identity, own.base, sums.width)

    def held(self) -> Held:
        """Which images every learner of the group has, or will have."""
        held = Held()
        for message in self._sums():
            held = held.after(message)
        if self.broker.shares_groups:
            return held
        own, committed = self.folder.newest(), self.broker.committed(self.name, self.topics.images)
        clock = {p.number: at.offset for p, at in committed.items()}
        if own is None:
            return replace(held, clock=clock)
        admitted = admitted_with(held.admitted, own.admitted)
        return Held({**own.clock, **clock}, own.begins, held.retracted | own.retracted, admitted)

    def find(self, choice: Choice) -> Found:
        """The images of a choice that were learnt and not taken back yet.

        Raises RecoveryError for another learner, SettingsError for a label that no image has.
        """
        committed = self.broker.committed(self.name, self.topics.images)
        if any(position.note for position in committed.values()):
            raise RecoveryError(
                f"group {self.name} learns with marketplace, whose steps cannot be undone: only images that clearing "
                "has learnt can be taken back"
            )
        held, found, labels = self.held(), Found(), set[str]()
        taken = taken_back(self.broker, self.topics.updates)
        gone = places(one for id, one in taken.items() if one.group == self.name or id in held.retracted)
        reach = {p.number: at.offset for p, at in committed.items()}
        for message, image, label in self._labelled({**held.clock, **reach}):
            labels.add(label)
            if not choice.matches(message, image) or (message.partition, message.offset) in gone:
                continue
            if message.offset < held.begins.get(message.partition, 0) or held.refuses(label):
                continue
            if message.offset < held.clock.get(message.partition, 0):
                found.messages.append(message)
                found.classes[label] += 1
            else:
                found.later += 1
        if choice.label is not None and choice.label not in labels:
            raise SettingsError(
                f"--label {choice.label!r}: topic {self.topics.images} holds no image with this label that group "
                f"{self.name} has learnt; there are {_some(labels)}"
            )
        return found

    def producer(self) -> Producer:
        """The group's own: of two operators who take back at once, the later one fences the other."""
        return self.broker.producer(f"{self.topics.images}.{self.name}.retract")

    def take_back(self, producer: Producer, found: Found) -> str:
        """Write the retraction; its id. Raises SnapshotError if this program has other features."""
        log, id = self.log_identity(), uuid.uuid4().hex
        learner = learner_of(Snapshot(Sums.zero(log.width), log.identity))
        offsets = by_partition((m.partition, m.offset) for m in found.messages)
        clock = {partition: max(some) + 1 for partition, some in offsets.items()}
        retraction = Retraction(id, clock, LooseSums(sums_of(learner, found.messages, self.held().refuses)))
        with producer.transaction() as transaction:
            transaction.produce(encode(self.topics.sums(self.name).topic, log, retraction))
            transaction.produce([retraction_record(self.topics.updates, self.name, id, offsets)])
        return id

    def _labelled(self, clock: Clock) -> Iterator[tuple[Message, ImageRecord, str]]:
        """The images with a label that the topic has before this clock, and the label."""
        for partition, extent in self.broker.extents(self.topics.images).items():
            for message in self.broker.read(partition, extent.first, clock.get(partition.number, 0)):
                with suppress(RecordError):  # a dead letter
                    image = decode(message.value, message.headers)
                    if image.label is not None:
                        yield message, image, image.label

    def _sums(self) -> Iterator[Message]:
        sums = self.topics.sums(self.name)
        extent = self.broker.extents(sums.topic)[sums]
        return self.broker.read(sums, extent.first, extent.end)


def sums_of(learner: Clearing, messages: Iterable[Message], refuses: Callable[[str], bool]) -> Sums:
    """What messages add."""
    accumulator: Accumulator | None = None
    for _, update in settled(learner, messages, SIZE, refuses):
        accumulator = accumulator or Accumulator(Sums.zero(update.products.shape[1]))
        accumulator.add(update)
    assert accumulator, "there is at least one"
    return accumulator.total()


def by_partition(places: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Offsets of each partition, in order."""
    offsets: dict[int, list[int]] = {}
    for partition, offset in sorted(places):
        offsets.setdefault(partition, []).append(offset)
    return offsets


def _some(labels: set[str]) -> str:
    shown = [repr(label) for label in sorted(labels)[:SHOWN]]
    return ", ".join([*shown, "…"] if len(labels) > SHOWN else shown) or "none"
