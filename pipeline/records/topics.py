"""The topics, and what is written to them: predictions, the journal, dead letters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.broker import Message, Partition, Record, Topic
from pipeline.records.images import ImageRecord
from pipeline.settings import Settings

SCHEMA = 1
"""Version of the JSON of predictions and journal, in their field ``v``."""


@dataclass(frozen=True)
class Topics:
    """Names of the topics, under a prefix."""

    prefix: str = ""

    @property
    def images(self) -> str:
        return self.prefix + "images"

    @property
    def predictions(self) -> str:
        return self.prefix + "predictions"

    @property
    def updates(self) -> str:
        return self.prefix + "updates"

    @property
    def dead_letters(self) -> str:
        return self.prefix + "dead-letters"

    def sums(self, group: str) -> Partition:
        """Where a group publishes. It is a topic of its own, since records before a checkpoint are deleted."""
        return Partition(f"{self.prefix}sums-{group}", 0)

    def source(self, settings: Settings) -> Topic:
        """The topic ``images`` as the settings want it."""
        return Topic(self.images, settings.partitions, settings.retention, settings.retention_bytes)

    def results(self) -> list[Topic]:
        """The topics that a learner writes to."""
        return [Topic(name) for name in (self.predictions, self.updates, self.dead_letters)]


def prediction(
    topic: str,
    message: Message,
    image: ImageRecord,
    *,
    predicted: str | None,
    scores: Mapping[str, float],
    group: str,
    generation: int,
) -> Record:
    """One image's prediction: what was served, its best scores, by which generation of which group, and the label."""
    value = {
        "v": SCHEMA,
        "id": image.id,
        "source": image.source,
        "predicted": predicted,
        "label": image.label,
        "scores": scores,
        "group": group,
        "generation": generation,
        "partition": message.partition,
        "offset": message.offset,
    }
    return Record(topic, orjson.dumps(value), message.key)


def journal(topic: str, group: str, entry: Mapping[str, Any]) -> Record:
    """One micro-batch in the journal."""
    return Record(topic, orjson.dumps({"v": SCHEMA, "group": group, **entry}), group.encode())


def dead_letter(topic: str, message: Message, reason: str, text: str) -> Record:
    """A record as it was received, and why it could not be used."""
    why = {
        "dead_reason": reason,
        "dead_text": text,
        "dead_topic": message.topic,
        "dead_partition": str(message.partition),
        "dead_offset": str(message.offset),
    }
    headers = tuple((name, value.encode()) for name, value in why.items())
    return Record(topic, message.value, message.key, message.headers + headers)


def ends(messages: Iterable[Message]) -> dict[Partition, int]:
    """The offset after the last message of each partition."""
    found = {(m.topic, m.partition): m.offset + 1 for m in messages}
    return {Partition(*place): end for place, end in found.items()}
