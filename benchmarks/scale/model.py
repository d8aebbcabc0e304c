"""A group of learners as discrete events, with costs that were measured: what more of them would do.

Each learner is a machine like this one, with partitions of its own that never run dry. It learns a micro-batch, then
does what the worker does between two of them: reads what others have published, and publishes when the project's own
schedule says so. Everything that is published goes into the broker and out of it to every learner, over links of a
given speed; the broker and its disk are otherwise free. What is not modelled: rebalances, clearings (too rare to
matter) and that reading could overlap with learning.
"""

import heapq
from dataclasses import dataclass, replace

from benchmarks.accuracy import BATCH
from consumers.pace import PUBLISH_SECONDS, READ_SECONDS, Pace
from pipeline.group.publishing import CHECKPOINT_IMAGES, MOST_UNPUBLISHED, PublishingSchedule, counted

SECONDS = 1200.0
"""Of simulated time, of which the first half is not counted: early on learners publish often."""

LINK = 1.25e9
"""Bytes a second of every machine's link, in each direction: 10 Gbit/s. An assumption, not a measurement."""

BASE = -1
"""The partner of a delta that is a base."""


@dataclass(frozen=True)
class Costs:
    """What the parts of a learner's work cost on this machine.

    Parameters
    ----------
    publish
        Seconds to take a delta out of the sums, encode it and commit it.
    read
        Seconds to read, decode and add somebody else's delta.
    read_base
        Seconds to read and decode a base, which every learner does.
    delta_bytes, base_bytes, image_bytes, prediction_bytes
        Of one record each, as they are handed to the client, which compresses all but the first two once more.
    width
        D, the number of products.
    """

    publish: float
    read: float
    read_base: float
    delta_bytes: int
    base_bytes: int
    image_bytes: int
    prediction_bytes: int
    width: int


@dataclass(frozen=True)
class Case:
    """What is simulated. ``image_seconds`` is what a lone learner takes for an image, with all that comes with it."""

    costs: Costs
    image_seconds: float
    learners: int
    publish_images: int
    link: float = LINK
    publish_seconds: float = PUBLISH_SECONDS


@dataclass(frozen=True)
class Found:
    """Bytes a second of one learner in each direction and of the broker's link out, images not seen on average."""

    learners: int
    images_per_second: float
    bytes_in: float
    bytes_out: float
    broker_out: float
    unseen: float
    unpublished: float


class Link:
    """One after the other, at so many bytes a second."""

    def __init__(self, speed: float) -> None:
        self._speed, self._free, self.bytes = speed, 0.0, 0.0

    def through(self, now: float, size: float) -> float:
        """When it is through."""
        self._free = max(now, self._free) + size / self._speed
        self.bytes += size
        return self._free


class Learner:
    """``inbox`` holds when it came, whose it is and of how many images."""

    def __init__(self, case: Case) -> None:
        self.schedule, self.pace = PublishingSchedule(case.publish_images), Pace(0.0, case.publish_seconds)
        self.link, self.inbox = Link(case.link), list[tuple[float, int, int]]()
        self.unpublished = self.open = self.seen = 0
        self.awaited = False


class Group:
    """Plays a case."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._into_broker, self._out_of_broker = Link(case.link), Link(case.link)
        self._learners = [Learner(case) for _ in range(case.learners)]
        self._since_checkpoint = self._learnt = 0

    def play(self) -> Found:
        case, half = self._case, SECONDS / 2
        turns = [(number * case.image_seconds * BATCH / case.learners, number) for number in range(case.learners)]
        self._play(turns, half)
        before = self._totals()
        unseen, unpublished = self._play(turns, SECONDS)
        images, into, out, broker = (after - b for after, b in zip(self._totals(), before, strict=True))
        rate = images / half
        own = rate / case.learners
        return Found(
            case.learners,
            rate,
            into / half / case.learners + own * case.costs.image_bytes,
            out / half / case.learners + own * case.costs.prediction_bytes,
            broker / half + rate * case.costs.image_bytes,
            unseen,
            unpublished,
        )

    def _totals(self) -> tuple[int, float, float, float]:
        into = sum(each.link.bytes for each in self._learners)
        return self._learnt, into, self._into_broker.bytes, self._out_of_broker.bytes

    def _play(self, turns: list[tuple[float, int]], end: float) -> tuple[float, float]:
        """Turn by turn; how many images were not seen before each of them, and not published, on average."""
        unseen = unpublished = count = 0
        while turns[0][0] < end:
            now, number = heapq.heappop(turns)
            me = self._learners[number]
            unpublished += me.unpublished + me.open
            unseen += self._learnt - me.seen - me.unpublished - me.open
            count += 1
            heapq.heappush(turns, (self._turn(now, number), number))
        return unseen / count, unpublished / count

    def _turn(self, now: float, number: int) -> float:
        """One micro-batch and what comes with it; when it is over."""
        me = self._learners[number]
        if me.unpublished < MOST_UNPUBLISHED:
            now += BATCH * self._case.image_seconds
            self._learnt += BATCH
            me.unpublished += BATCH
            me.schedule.learnt(BATCH)
        else:  # it waits for what it has published
            now = max(now, min((at for at, _, _ in me.inbox), default=now)) + READ_SECONDS / 10
        if me.pace.is_time_to_read(now):
            now = self._read(now, number)
        due = me.schedule.due(me.unpublished) or me.pace.is_time_to_publish(now)
        return self._publish(now, number) if due and not me.awaited and me.unpublished else now

    def _read(self, now: float, number: int) -> float:
        me, costs, begun = self._learners[number], self._case.costs, now
        while me.inbox and me.inbox[0][0] <= now:
            _, owner, images = heapq.heappop(me.inbox)
            now += costs.read_base if owner == BASE else costs.read
            me.seen += images
            if owner == number:
                me.awaited, me.open = False, 0
        me.pace.read(begun, now)
        return now

    def _publish(self, now: float, number: int) -> float:
        me, costs = self._learners[number], self._case.costs
        now += costs.publish
        few = me.unpublished <= costs.width // 2  # which go out as what they are
        self._send(now, number, me.unpublished, me.unpublished * costs.width if few else costs.delta_bytes)
        self._since_checkpoint += counted(me.unpublished)
        me.awaited, me.open, me.unpublished = True, me.unpublished, 0
        me.pace.published(now)
        me.schedule.published()
        if self._since_checkpoint >= CHECKPOINT_IMAGES:
            self._since_checkpoint = 0
            self._send(now, BASE, 0, costs.base_bytes)
        return now

    def _send(self, now: float, owner: int, images: int, size: int) -> None:
        there = self._into_broker.through(now, size)
        for each in self._learners:
            at = each.link.through(self._out_of_broker.through(there, size), size)
            heapq.heappush(each.inbox, (at, owner, images))


def play(case: Case, learners: int) -> Found:
    """The same with so many learners."""
    return Group(replace(case, learners=learners)).play()
