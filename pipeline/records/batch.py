"""A micro-batch: the messages that could be read as images, and those that could not; and learning it again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from pipeline.broker import Message
from pipeline.errors import RecordError
from pipeline.learners.protocol import MOST_CLASSES, AnyLearner, Learner, Q, U
from pipeline.records.images import ImageRecord, decode, stack


@dataclass
class Decoded:
    """``images`` and the ``messages`` that they came in, in the order of the stream; ``dead`` the rest, with why."""

    images: list[ImageRecord] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    dead: list[tuple[Message, RecordError]] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Iterable[Message], known: set[str]) -> "Decoded":
        """Decode messages for a learner of the ``known`` classes; new ones are added to them."""
        batch = cls()
        for message in messages:
            try:
                image = decode(message.value, message.headers)
                if image.label is not None and image.label not in known:
                    if len(known) >= MOST_CLASSES:
                        raise RecordError(
                            "classes",
                            f"label {image.label!r} would be class {MOST_CLASSES + 1}; {MOST_CLASSES} is the bound",
                        )
                    known.add(image.label)
            except RecordError as error:
                batch.dead.append((message, error))
            else:
                batch.images.append(image)
                batch.messages.append(message)
        return batch

    @property
    def labels(self) -> list[str | None]:
        return [image.label for image in self.images]


def settled(learner: Learner[Q, U], messages: Iterable[Message], size: int) -> Iterator[tuple[list[Message], U]]:
    """What messages hold, in micro-batches of ``size``, settled; adding it is left to the caller.

    What is a dead letter is passed over.
    """
    messages = iter(messages)
    known = set(learner.classes)
    while some := list(islice(messages, size)):
        batch = Decoded.of(some, known)
        yield some, learner.settle(learner.quote(stack(batch.images)), batch.labels)


def settle_again(
    learner: AnyLearner, messages: Iterable[Message], size: int, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Learn what messages hold, and write nothing anywhere.

    ``progress`` is given the number of messages of each micro-batch.
    """
    for some, update in settled(learner, messages, size):
        learner.add(update)
        progress(len(some))
