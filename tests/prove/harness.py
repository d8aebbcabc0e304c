"""What proofs share: real images, and learners of the real size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.accuracy import BATCH, draw
from pipeline.broker import Record
from pipeline.data.stream import Stream
from pipeline.features import Features, Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import encode
from pipeline.settings import Settings
from tests.consumers.harness import Place

PROOF = [pytest.mark.prove, pytest.mark.timeout(3600)]

SETTINGS = Settings()
FILTERS = Filters(SETTINGS.seed, SETTINGS.filters)

LABELLED = 38_400


def mixed(images: int) -> Stream:
    return draw("mixed", SETTINGS, images)


def records(stream: Stream) -> list[Record]:
    return [encode(stream.record(i), "images") for i in range(len(stream))]


def learnt(stream: Stream, places: Sequence[int], batch: int = BATCH, features: Features | None = None) -> Sums:
    """What a learner of the images at these places comes to, without a broker."""
    learner = Clearing(features or make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        images = np.concatenate([stream.images(i, i + 1) for i in some])
        learner.add(learner.settle(learner.quote(images), [stream.labels[i] for i in some]))
        learner.clear()
    return learner.sums()


def digest(sums: Sums) -> str:
    return sums.digest(ClearingIdentity.of(FILTERS).digest)


@dataclass(frozen=True)
class RealPlace(Place):
    """Where learners are as they come out of the box, but that nobody waits long for those that were killed."""

    def send(self, some: Sequence[Record], partitions: int = 1) -> None:  # type: ignore[override]
        for start in range(0, len(some), 2000):
            super().send(some[start : start + 2000], partitions)

    def flags(self, *more: object) -> list[str]:
        real = ("--filters", SETTINGS.filters, "--batch-size", SETTINGS.batch_size, "--batch-wait", SETTINGS.batch_wait)
        return super().flags(*real, "--snapshot-images", 5000, *more)

    def served_once(self, stream: Stream) -> bool:
        """Whether each image of the stream was predicted exactly once."""
        return sorted(p["id"] for p in self.predictions()) == sorted(stream.record(i).id for i in range(len(stream)))
