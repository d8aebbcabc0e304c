"""A micro-batch on its way: as it was read, what was found in it, and the records that go out with it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.broker import Consumer, Member, Message, Partition, Record
from pipeline.errors import RecordError
from pipeline.group.membership import Publication
from pipeline.learners.protocol import Quotes
from pipeline.records import topics as t
from pipeline.records.images import Decoded, decode_all

BEST = 5
"""Scores in a prediction: with a thousand classes, all of them would be 16 kB an image."""

LAG_SECONDS = 1.0
"""How often to look how far behind it is, while records flow."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Records as they were read, up to one micro-batch of them.

    ``ends`` are the offsets after the last message of each partition, ``member`` is who the broker took the consumer
    for at that moment, ``rebalancing`` whether the next poll may change that.
    """

    messages: list[Message]
    decoded: Decoded
    ends: Mapping[Partition, int]
    member: Member
    rebalancing: bool = False


class MicroBatchReader:
    """Reads full micro-batches, or what there is when the first record has waited long enough.

    Attributes
    ----------
    lag
        Records that were not read yet, by partition.
    """

    def __init__(self, batch_wait: float) -> None:
        self._batch_wait = batch_wait
        self._lag_at = 0.0
        self.lag: Mapping[int, int] = {}

    def read(self, consumer: Consumer, limit: int, patience: float) -> Reading:
        """At most ``limit`` records, decoded; none if none comes for ``patience`` seconds, or the group changes.

        Raises what the broker raises.
        """
        messages = _poll(consumer, limit, patience)
        deadline = time.monotonic() + self._batch_wait
        while messages and len(messages) < limit and (left := deadline - time.monotonic()) > 0:
            messages += _poll(consumer, limit - len(messages), left)
        # It asks the broker, so now and then while records flow. Where none flow, that tells whether there is a broker.
        if not messages or time.monotonic() - self._lag_at > LAG_SECONDS:
            self.look_at_lag(consumer)
        return Reading(
            messages=messages,
            decoded=decode_all(messages),
            ends=t.ends(messages),
            member=consumer.member,
            rebalancing=consumer.rebalancing,
        )

    def look_at_lag(self, consumer: Consumer) -> None:
        """Ask the broker how far the consumer is behind."""
        self.lag = {partition.number: records for partition, records in consumer.lag().items()}
        self._lag_at = time.monotonic()


def _poll(consumer: Consumer, limit: int, timeout: float) -> list[Message]:
    # A poll that changes the group fences what is still to be committed.
    return [] if consumer.rebalancing else consumer.poll(limit, timeout)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch that was quoted and settled: what is to be committed, and remembered after that.

    Parameters
    ----------
    update
        What settling found.
    generation
        Of the weights that quoted it.
    clock
        Where each partition stood before it.
    learnt
        Whether its images are learnt from.
    journal_fields
        What the journal holds of the update besides what it tells of every micro-batch.
    """

    reading: Reading
    quotes: Quotes
    update: Any
    generation: int
    clock: Mapping[int, int]
    publication: Publication[Any]
    learnt: bool
    journal_fields: Mapping[str, Any]

    @property
    def decoded(self) -> Decoded:
        return self.reading.decoded

    @property
    def ends(self) -> dict[int, int]:
        return {partition.number: end for partition, end in self.reading.ends.items()}

    @cached_property
    def best(self) -> list[dict[str, float]]:
        """The largest logits of each image, largest first, by class; empty where no class is known yet."""
        quotes = self.quotes
        best = np.argsort(-quotes.logits, axis=1, kind="stable")[:, :BEST]
        names = np.array(quotes.classes, object)[best].tolist()
        # In float32, 0.1 would be written as 0.10000000149011612.
        values = np.take_along_axis(quotes.logits, best, axis=1).astype(np.float64).round(4).tolist()
        return [dict(zip(*pair, strict=True)) for pair in zip(names, values, strict=True)]

    @cached_property
    def predictions(self) -> list[str | None]:
        """The predicted class of each image; None where no class is known yet."""
        return [next(iter(scores), None) for scores in self.best]

    @cached_property
    def outcomes(self) -> list[tuple[str, str | None]]:
        """Label and prediction of each labelled image."""
        pairs = zip(self.decoded.labels, self.predictions, strict=True)
        return [(label, predicted) for label, predicted in pairs if label is not None]

    @property
    def dead(self) -> list[tuple[Message, RecordError]]:
        """What could not be read, and what could not be learnt from."""
        unsound = [self.decoded.messages[place] for place in self.update.unsound]
        return self.decoded.dead + [(m, RecordError("loss", "a vendor's loss was not finite")) for m in unsound]

    def learnt_from(self) -> list[Message]:
        """The messages whose images are learnt from."""
        if not self.learnt:
            return []
        unsound = set(self.update.unsound)
        places = (i for i, label in enumerate(self.decoded.labels) if label is not None and i not in unsound)
        return [self.decoded.messages[place] for place in places]

    def records(self, topics: t.Topics) -> list[Record]:
        """Predictions, dead letters and the journal."""
        dead = [t.dead_letter(topics.dead_letters, m, e.reason, str(e)) for m, e in self.dead]
        return [*self._predictions(topics), *dead, self._journal(topics)]

    def _predictions(self, topics: t.Topics) -> list[Record]:
        rows = zip(self.decoded.messages, self.decoded.images, self.predictions, self.best, strict=True)
        return [
            t.prediction(
                topics.predictions,
                message,
                image,
                predicted=predicted,
                scores=scores,
                group=self.reading.member.group,
                generation=self.generation,
            )
            for message, image, predicted, scores in rows
        ]

    def _journal(self, topics: t.Topics) -> Record:
        total = Counter(label for label, _ in self.outcomes)
        right = Counter(label for label, predicted in self.outcomes if label == predicted)
        entry = {
            "from": {str(number): self.clock[number] for number in self.ends},
            "to": {str(number): end for number, end in self.ends.items()},
            "images": len(self.decoded.images),
            "dead": len(self.dead),
            "total": total,
            "right": {label: right[label] for label in total},
            "generation": self.generation,
            "learnt": self.learnt,
            "time": time.time(),
            **self.journal_fields,
        }
        return t.journal(topics.updates, self.reading.member.group, entry)
