"""The journal: what the topic ``updates`` tells of every micro-batch."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from pipeline.broker import Broker, Message, Record
from pipeline.errors import TopicError

log = logging.getLogger(__name__)

Seconds = Annotated[float, Field(ge=0, lt=1e11)]
"""Since the epoch."""


class JournalEntry(BaseModel):
    """One micro-batch.

    ``number`` is the offset of its record in the journal; a broker may leave gaps between numbers. ``begin`` and
    ``end`` are the clock before and after it. ``images`` could be read and were predicted, ``dead`` records are dead
    letters; ``total`` are the labelled images of each class, ``right`` those of them that were predicted right.
    ``generation`` made the predictions. ``learnt`` is False for a learner that only serves. ``marketplace`` writes its
    ``identity`` and its ``update``, from which what it learnt can be made again.

    Examples
    --------
    >>> value = b'''{"v": 1, "group": "learn", "time": 0, "from": {"0": 256}, "to": {"0": 512}, "generation": 4,
    ...     "images": 256, "dead": 0, "total": {"cat": 100, "dog": 50}, "right": {"cat": 96, "dog": 39},
    ...     "learnt": true}'''
    >>> entry = decode(Message("updates", 0, offset=7, timestamp=0, key=b"learn", value=value, headers=()))
    >>> entry.number, entry.end, entry.labelled, entry.accuracy
    (7, {0: 512}, 150, 0.9)
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1]
    number: int
    group: str
    time: Seconds
    begin: Mapping[int, NonNegativeInt] = Field(alias="from")
    end: Mapping[int, NonNegativeInt] = Field(alias="to")
    images: NonNegativeInt
    dead: NonNegativeInt
    total: Mapping[str, NonNegativeInt]
    right: Mapping[str, NonNegativeInt]
    generation: NonNegativeInt
    learnt: bool
    identity: Mapping[str, str] | None = None
    update: Mapping[str, Any] | None = None

    @property
    def labelled(self) -> int:
        """Labelled images."""
        return sum(self.total.values())

    @property
    def settled(self) -> int:
        """Images that were learnt from."""
        return self.labelled if self.learnt else 0

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that was predicted right; None if there are none."""
        return sum(self.right.values()) / self.labelled if self.labelled else None


def decode(message: Message) -> JournalEntry:
    """The micro-batch that a record of the journal tells of. Raises TopicError."""
    try:
        return JournalEntry.model_validate({**orjson.loads(message.value), "number": message.offset})
    except (ValueError, TypeError) as error:
        problem = _first(error) if isinstance(error, ValidationError) else str(error)
        raise TopicError(
            f"topic {message.topic}, offset {message.offset}: not a micro-batch that this program can read: {problem}; "
            "it was damaged, or written by another program or version"
        ) from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{problem['loc'][0]}: {problem['msg']}"


@dataclass(frozen=True)
class Journal:
    """The micro-batches of one group of learners."""

    broker: Broker
    topic: str
    group: str

    def micro_batches(self) -> Iterator[JournalEntry]:
        """All of them, oldest first; with a warning if some could not be read. Raises TopicError."""
        problems = []
        for message in self._messages():
            try:
                yield decode(message)
            except TopicError as error:
                problems.append(error)
        if problems:
            log.warning("passed over %d of the journal's records, first %s", len(problems), problems[0])

    def micro_batch(self, number: int) -> JournalEntry:
        """The one of that number. Raises TopicError if there is none or it cannot be read."""
        for message in self._messages(number):
            return decode(message)
        raise TopicError(
            f"topic {self.topic} holds no micro-batch {number} of group {self.group}: the command 'list' shows numbers"
        )

    def _messages(self, number: int | None = None) -> Iterator[Message]:
        for partition, extent in self.broker.extents(self.topic).items():
            first, end = (extent.first, extent.end) if number is None else (number, number + 1)
            for message in self.broker.read(partition, first, end):
                if message.key == self.group.encode():
                    yield message


class Taken(NamedTuple):
    """What one retraction took back: offsets of images, by partition."""

    group: str
    offsets: Mapping[int, Sequence[int]]


def retraction_record(topic: str, group: str, id: str, offsets: Mapping[int, Sequence[int]]) -> Record:
    """A retraction in the journal. Its key is not the group's alone, so that it is no micro-batch."""
    entry = {"v": 1, "group": group, "id": id, "images": {str(p): some for p, some in offsets.items()}}
    return Record(topic, orjson.dumps(entry), f"{group}/retraction".encode())


def taken_back(broker: Broker, topic: str) -> dict[str, Taken]:
    """What all groups have taken back, by the id of the retraction."""
    found: dict[str, Taken] = {}
    for partition, extent in broker.extents(topic).items():
        for message in broker.read(partition, extent.first, extent.end):
            if (message.key or b"").endswith(b"/retraction"):
                entry: dict[str, Any] = orjson.loads(message.value)
                offsets = {int(p): some for p, some in entry["images"].items()}
                found[entry["id"]] = Taken(entry["group"], offsets)
    return found


def places(taken: Iterable[Taken]) -> set[tuple[int, int]]:
    """Partition and offset of all images that were taken back."""
    return {(p, offset) for one in taken for p, some in one.offsets.items() for offset in some}
