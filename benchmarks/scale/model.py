"""A group of learners as discrete events, with costs that were measured: what more of them would do.

Each learner is a machine like this one, with partitions of its own that never run dry. It learns a micro-batch, then
does what the worker does between two of them: reads what others have published, and publishes when the project's own
schedule says so. Everything that is published goes into the broker and out of it to every learner, over links of a
given speed; the broker and its disk are otherwise free. What is not modelled: rebalances, clearings (too rare to
matter) and that reading could overlap with learning.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

from benchmarks.scale.costs import Costs
from consumers.pace import PUBLISH_SECONDS, READ_SECONDS, Pace
from pipeline.group.publishing import CHECKPOINT_IMAGES, MOST_UNPUBLISHED, PublishingSchedule, counted

BATCH = 256
SECONDS = 1200.0
"""Of simulated time, of which the first half is not counted: early on learners publish often."""

LINK = 1.25e9
"""Bytes a second of every machine's link, in each direction: 10 Gbit/s. An assumption, not a measurement."""

BASE = -1
"""The partner of a delta that is a base."""


@dataclass(frozen=True)
class Case:
    """What is simulated. ``image_seconds`` is what a lone learner takes for an image, with all that comes with it."""

    costs: Costs
    image_seconds: float
    learners: int
    publish_images: int
    link: float = LINK
    publish_seconds: float = PUBLISH_SECONDS
    most: int = MOST_UNPUBLISHED


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


@dataclass
class Learner:
    schedule: PublishingSchedule
    pace: Pace
    link: Link
    unpublished: int = 0
    open: int = 0
    seen: int = 0
    awaited: bool = False
    inbox: list[tuple[float, int, int]] = field(default_factory=list)


class Group:
    """Plays a case."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._broker_in, self._broker_out = Link(case.link), Link(case.link)
        self._learners = [
            Learner(PublishingSchedule(case.publish_images), Pace(0.0, case.publish_seconds), Link(case.link))
            for _ in range(case.learners)
        ]
        self._since_checkpoint = self._learnt = 0

    def play(self) -> Found:
        case, half = self._case, SECONDS / 2
        turns = [(number * case.image_seconds * BATCH / case.learners, number) for number in range(case.learners)]
        unseen, unpublished, counted = 0.0, 0.0, 0
        start = (0, 0.0, 0.0, 0.0)
        while turns:
            now, number = heapq.heappop(turns)
            if now >= half and not counted:
                start = self._totals()
            if now >= half:
                me = self._learners[number]
                unseen += self._learnt - me.seen - me.unpublished - me.open
                unpublished += me.unpublished + me.open
                counted += 1
            if now < SECONDS:
                heapq.heappush(turns, (self._turn(now, number), number))
        images, into, out, broker = (b - a for a, b in zip(start, self._totals(), strict=True))
        rate = images / half
        own = rate / case.learners
        return Found(
            case.learners,
            rate,
            into / half / case.learners + own * case.costs.image_bytes,
            out / half / case.learners + own * case.costs.prediction_bytes,
            broker / half + rate * case.costs.image_bytes,
            unseen / counted,
            unpublished / counted,
        )

    def _totals(self) -> tuple[int, float, float, float]:
        into = sum(each.link.bytes for each in self._learners)
        return self._learnt, into, self._broker_in.bytes, self._broker_out.bytes

    def _turn(self, now: float, number: int) -> float:
        """One micro-batch and what comes with it; when it is over."""
        me = self._learners[number]
        if me.unpublished < self._case.most:
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
            if owner == BASE:
                now += costs.read_base
                continue
            now += costs.read
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
        there = self._broker_in.through(now, size)
        for each in self._learners:
            heapq.heappush(each.inbox, (each.link.through(self._broker_out.through(there, size), size), owner, images))


def series(case: Case, learners: tuple[int, ...]) -> Iterator[Found]:
    """The same with so many learners."""
    for count in learners:
        yield Group(replace(case, learners=count)).play()


def remedies(case: Case) -> dict[str, Case]:
    """What would move the bend: each is the case with one thing other than it is."""
    costs = case.costs
    return {
        "as it is": case,
        "published every 200,000 images, in wider integers": replace(
            case, publish_images=200_000, most=300_000, publish_seconds=inf
        ),
        "deltas half as long": replace(case, costs=replace(costs, delta_bytes=costs.delta_bytes // 2)),
        "deltas read in half the time": replace(
            case, costs=replace(costs, read=costs.read / 2, read_base=costs.read_base / 2)
        ),
        "bases not decoded": replace(case, costs=replace(costs, read_base=0.0)),
        "links of 100 Gbit/s": replace(case, link=10 * case.link),
        "links of 1 Gbit/s": replace(case, link=case.link / 10),
    }
