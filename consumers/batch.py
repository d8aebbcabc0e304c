"""A micro-batch: the messages that could be read as images, and those that could not."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.broker import Message
from pipeline.errors import RecordError
from pipeline.learner import MOST_CLASSES
from pipeline.records import ImageRecord, decode


@dataclass
class Batch:
    """``images`` and the ``messages`` that they came in, in the order of the stream; ``dead`` the rest, with why."""

    images: list[ImageRecord] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    dead: list[tuple[Message, RecordError]] = field(default_factory=list)

    @classmethod
    def of(cls, messages: Iterable[Message], known: set[str]) -> "Batch":
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
