"""Reads micro-batches: full ones, or what there is when the first record has waited long enough."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.broker import Consumer, Member, Message, Partition
from pipeline.records import topics as t
from pipeline.records.batch import Decoded

LAG_SECONDS = 1.0
"""How often to look how far behind it is, while records flow."""


@dataclass(frozen=True)
class Reading:
    """A micro-batch as it was read.

    ``ends`` are the offsets after the last message of each partition, ``member`` is who the broker took the consumer
    for at that moment, ``rebalancing`` whether the next poll may change that.
    """

    messages: list[Message]
    batch: Decoded
    ends: Mapping[Partition, int]
    member: Member
    rebalancing: bool = False


class MicroBatchReader:
    """Reads from consumers; ``lag`` tells how many records were not read yet, by partition."""

    def __init__(self, batch_wait: float) -> None:
        self._batch_wait = batch_wait
        self._lag_at = 0.0
        self.lag: Mapping[int, int] = {}

    def read(self, consumer: Consumer, most: int, patience: float, known: set[str]) -> Reading:
        """At most so many records, decoded; none if there is none for ``patience`` seconds, or the group changes.

        New classes are added to the ``known`` ones. Raises what the broker raises.
        """
        messages = _poll(consumer, most, patience)
        deadline = time.monotonic() + self._batch_wait
        while messages and len(messages) < most and (left := deadline - time.monotonic()) > 0:
            messages += _poll(consumer, most - len(messages), left)
        self._look_at_lag(consumer, bool(messages))
        batch, ends = Decoded.of(messages, known), t.ends(messages)
        return Reading(messages, batch, ends, consumer.member, consumer.rebalancing)

    def _look_at_lag(self, consumer: Consumer, flows: bool) -> None:
        """Now and then: it asks the broker. Where nothing flows, that also tells whether there is one."""
        if not flows or time.monotonic() - self._lag_at > LAG_SECONDS:
            self.lag = {partition.number: records for partition, records in consumer.lag().items()}
            self._lag_at = time.monotonic()


def _poll(consumer: Consumer, most: int, timeout: float) -> list[Message]:
    # A poll that changes the group fences what is still to be committed.
    return [] if consumer.rebalancing else consumer.poll(most, timeout)
