"""Two kinds of sums for the model check: integers in which every image has a digit of its own, and real ones.

Of the first a schedule takes a millisecond, and they say which image was counted twice. The second go through the real
codec, in very small pieces.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.broker import Message
from pipeline.group.encoding import GroupReader, LogIdentity, Pieces, encode
from pipeline.group.membership import Model, Publication
from pipeline.group.shared import GroupRecord
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.sums import ClearingUpdate, LooseSums, Sums, are_few
from pipeline.learners.identity import ClearingIdentity

DIGIT = 8
"""Bits of an image's digit."""


class Arithmetic(Protocol):
    """What images add, and how records travel."""

    zero: Any

    def update(self, images: Sequence[int]) -> Any: ...

    def sums(self, images: Iterable[int]) -> Any: ...

    def model(self, sums: Any) -> "Summing": ...

    def same(self, one: Any, other: Any) -> bool: ...

    def contents(self, record: GroupRecord[Any], pieces: int) -> list[Any]: ...

    def reader(self) -> Any:
        """Something with ``read(offset, content)``, the record that is complete with it and the position after it."""


class Summing(Model[Any, Any], Protocol):
    """A model that can tell its sums."""

    def beyond(self, sums: Any, updates: Sequence[Any]) -> Any: ...

    def sums(self) -> Any: ...


class Tally:
    """A model of integers."""

    def __init__(self, value: int) -> None:
        self.value = value

    def add(self, update: int) -> None:
        self.value += update

    def remove(self, update: int) -> None:
        self.value -= update

    add_sums, remove_sums = add, remove

    def beyond(self, sums: int, updates: Sequence[int]) -> int:  # noqa: ARG002
        return self.value - sums

    def sums(self) -> int:
        return self.value


class Counted:
    """Image i counts 256ⁱ: the digits of a sum are how often each image was counted."""

    zero = 0

    def sums(self, images: Iterable[int]) -> int:
        return sum(1 << (DIGIT * image) for image in images)

    update = sums

    def model(self, sums: int) -> Tally:
        return Tally(sums)

    def same(self, one: int, other: int) -> bool:
        return one == other

    def contents(self, record: GroupRecord[int], pieces: int) -> list[Any]:
        return [(record, piece, pieces) for piece in range(pieces)]

    def reader(self) -> "_CountedReader":
        return _CountedReader()


class _CountedReader:
    def __init__(self) -> None:
        self._pieces: Pieces[GroupRecord[int]] = Pieces()

    def read(self, offset: int, content: tuple[GroupRecord[int], int, int]) -> tuple[GroupRecord[int], int] | None:
        record, piece, pieces = content
        if self._pieces.put(offset, record.id, piece, pieces, record) is None:
            return None
        return record, self._pieces.position(offset + 1)


WIDTH = 4
CLASSES = ("a", "b", "ß")
RUN = LogIdentity("learn", "topic", ClearingIdentity("trunk", "0", "1", "squared"), "", WIDTH)


class RealSums:
    """A model of real sums."""

    def __init__(self, sums: LooseSums) -> None:
        self._sums = sums.summed()

    def add(self, update: ClearingUpdate) -> None:
        self._sums = self._sums + summed(update)

    def remove(self, update: ClearingUpdate) -> None:
        self._sums = self._sums - summed(update)

    def add_sums(self, sums: LooseSums) -> None:
        self._sums = self._sums + sums.summed()

    def remove_sums(self, sums: LooseSums) -> None:
        self._sums = self._sums - sums.summed()

    def beyond(self, sums: LooseSums, updates: Sequence[ClearingUpdate]) -> LooseSums:
        few = updates and are_few(updates, WIDTH)
        return LooseSums(None, tuple(updates)) if few else LooseSums(self._sums - sums.summed())

    def sums(self) -> LooseSums:
        return LooseSums(self._sums)


def summed(update: ClearingUpdate) -> Sums:
    accumulator = Accumulator(Sums.zero(update.products.shape[1]))
    accumulator.add(update)
    return accumulator.total()


class Real:
    """Image i has products and a label that follow from i."""

    def __init__(self) -> None:
        self.zero = LooseSums(Sums.zero(WIDTH))

    def update(self, images: Sequence[int]) -> ClearingUpdate:
        products = np.random.default_rng(7).integers(0, 256, (256, WIDTH), np.uint8)[list(images)]
        labels = tuple(CLASSES[image % len(CLASSES)] for image in images)
        classes = tuple(dict.fromkeys(labels))
        targets = np.array([[256 * (label == name) for name in classes] for label in labels], np.int64)
        targets = targets.reshape(len(labels), len(classes))
        return ClearingUpdate(products, targets, labels, classes)

    def sums(self, images: Iterable[int]) -> LooseSums:
        some = list(images)
        return LooseSums(summed(self.update(some))) if some else self.zero

    def model(self, sums: LooseSums) -> RealSums:
        return RealSums(sums)

    def same(self, one: LooseSums, other: LooseSums) -> bool:
        return one.summed().digest("x") == other.summed().digest("x")

    def contents(self, record: GroupRecord[LooseSums], pieces: int) -> list[Any]:  # noqa: ARG002
        return encode("sums", RUN, record)

    def reader(self) -> "_RealReader":
        return _RealReader()


class _RealReader:
    def __init__(self) -> None:
        self._reader = GroupReader(RUN)

    def read(self, offset: int, content: Any) -> tuple[GroupRecord[LooseSums], int] | None:
        message = Message(content.topic, 0, offset, 0, content.key, content.value, content.headers)
        return self._reader.read(message)


def contents(arithmetic: Arithmetic, publication: Publication[Any], pieces: int) -> list[Any]:
    """All pieces of what goes out with one transaction."""
    return [content for record in publication.records for content in arithmetic.contents(record, pieces)]
