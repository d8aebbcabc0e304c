"""A micro-batch on its way: as it was read, what was found, and the records that go out with it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from consumers.intake import Reading
from pipeline.broker import Message, Record
from pipeline.errors import RecordError
from pipeline.group.membership import Publication
from pipeline.learners.protocol import Quotes
from pipeline.records import topics as t
from pipeline.records.batch import Decoded

BEST = 5
"""Scores in a prediction: with a thousand classes, all of them would be 16 kB an image."""


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch that was quoted and settled: what is to be committed, and then remembered.

    ``clock`` is where each partition stood before it, ``journal_fields`` what the journal holds of the update besides.
    """

    reading: Reading
    quotes: Quotes
    predictions: list[str | None]
    update: Any
    generation: int
    clock: Mapping[int, int]
    publication: Publication[Any]
    learnt: bool
    journal_fields: Mapping[str, Any]

    @property
    def batch(self) -> Decoded:
        return self.reading.batch

    @property
    def ends(self) -> dict[int, int]:
        return {partition.number: end for partition, end in self.reading.ends.items()}

    @property
    def outcomes(self) -> list[tuple[str, str | None]]:
        """Label and prediction of each labelled image."""
        pairs = zip(self.batch.labels, self.predictions, strict=True)
        return [(label, predicted) for label, predicted in pairs if label is not None]

    @property
    def dead(self) -> list[tuple[Message, RecordError]]:
        """What could not be read, and what could not be learnt from."""
        reason = RecordError("loss", "a vendor's loss was not finite")
        return self.batch.dead + [(self.batch.messages[place], reason) for place in self.update.unsound]

    def learnt_from(self) -> list[Message]:
        """The messages whose images are learnt from."""
        if not self.learnt:
            return []
        unsound = set(self.update.unsound)
        places = (i for i, label in enumerate(self.batch.labels) if label is not None and i not in unsound)
        return [self.batch.messages[place] for place in places]

    def records(self, topics: t.Topics) -> list[Record]:
        """Predictions, dead letters and the journal."""
        dead = [t.dead_letter(topics.dead_letters, m, e.reason, str(e)) for m, e in self.dead]
        return [*self._predictions(topics), *dead, self._journal(topics)]

    def _predictions(self, topics: t.Topics) -> list[Record]:
        rows = zip(self.batch.messages, self.batch.images, self.predictions, _best(self.quotes), strict=True)
        group = self.reading.member.group
        return [
            t.prediction(topics.predictions, message, image, predicted, scores, group, self.generation)
            for message, image, predicted, scores in rows
        ]

    def _journal(self, topics: t.Topics) -> Record:
        total = Counter(label for label, _ in self.outcomes)
        right = Counter(label for label, predicted in self.outcomes if label == predicted)
        entry = {
            "from": {str(number): self.clock[number] for number in self.ends},
            "to": {str(number): end for number, end in self.ends.items()},
            "images": len(self.batch.images),
            "dead": len(self.dead),
            "total": total,
            "right": {label: right[label] for label in total},
            "generation": self.generation,
            "learnt": self.learnt,
            "time": time.time(),
            **self.journal_fields,
        }
        return t.journal(topics.updates, self.reading.member.group, entry)


def _best(quotes: Quotes) -> list[dict[str, float]]:
    """The largest logits of each image, largest first, by class."""
    best = np.argsort(-quotes.logits, axis=1, kind="stable")[:, :BEST]
    names = np.array(quotes.classes, object)[best].tolist()
    # In float32, 0.1 would be written as 0.10000000149011612.
    values = np.take_along_axis(quotes.logits, best, axis=1).astype(np.float64).round(4).tolist()
    return [dict(zip(*pair, strict=True)) for pair in zip(names, values, strict=True)]
