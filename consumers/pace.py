"""The pace of a learner: how much it takes at once, when it looks at what others have published, when it publishes.

No clock: times are seconds, on the clock of whoever asks. ``benchmarks.scale`` simulates groups with the same code.
"""

import math

FIRST_LIMIT = 32
"""Records that a group which knows nothing takes at once."""

ALONE, MANY = 2, 8
"""How many times as much is known as is taken at once: early on, by a learner with all partitions or with few."""

READ_SECONDS = 0.2
"""How often to look at what others have published."""

PUBLISH_SECONDS = 10.0
"""What was learnt is published after so long, however little it is."""

READING_TIMES, RARELY_SECONDS = 4.0, 60.0
"""But not before so many times what reading has taken since, or so long: a large group would do nothing but read."""

DELETE_SECONDS = 10.0
"""What a checkpoint covers is deleted so long after it was read: who has not read it yet must begin anew."""


def batch_limit(batch_size: int, seen: int, share: float) -> int:
    """The most records for the next micro-batch of a learner with so large a share of the partitions.

    Those of a micro-batch are predicted without what the others teach. So at first a learner that is alone takes half
    as many at once as the images that it has ``seen``. The learners of a large group take an eighth together, since
    what the others have on the way is lacking too.

    Examples
    --------
    >>> [batch_limit(256, seen, share=1.0) for seen in (0, 100, 400, 1000)]
    [32, 50, 200, 256]
    >>> [batch_limit(256, seen, share=0.25) for seen in (0, 100, 400, 1000)]
    [8, 8, 16, 39]
    """
    together = seen / (ALONE * share + MANY * (1 - share))
    return min(batch_size, max(1, math.ceil(max(FIRST_LIMIT, together) * share)))


class Pace:
    """When to read and when to publish, from ``now`` on.

    Examples
    --------
    >>> pace = Pace(now=0.0)
    >>> pace.is_time_to_read(0.1), pace.is_time_to_read(0.3)
    (False, True)
    >>> pace.read(begun=0.3, ended=5.3)  # that took long: publish more rarely
    >>> [second for second in range(30) if pace.is_time_to_publish(second)][0]
    21
    """

    def __init__(self, now: float, publish_seconds: float = PUBLISH_SECONDS) -> None:
        self._publish_seconds = publish_seconds
        self._read_at = self._published_at = now
        self._reading = 0.0

    def is_time_to_read(self, now: float) -> bool:
        return now - self._read_at >= READ_SECONDS

    def read(self, begun: float, ended: float) -> None:
        """It has read what others have published."""
        self._read_at = begun
        self._reading += ended - begun

    def is_time_to_publish(self, now: float) -> bool:
        """Whether to publish what there is, be it little."""
        pause = max(self._publish_seconds, min(READING_TIMES * self._reading, RARELY_SECONDS))
        return now - self._published_at > pause

    def published(self, now: float) -> None:
        self._published_at, self._reading = now, 0.0


class Deletion:
    """When to delete what a checkpoint covers, and up to where."""

    def __init__(self) -> None:
        self._covered, self._at = 0, math.inf

    def due(self, covered: int, now: float) -> int | None:
        """The offset before which to delete now, if it is time; the newest checkpoint covers all before ``covered``."""
        found = None
        if now >= self._at:
            found, self._at = self._covered, math.inf
        if self._at == math.inf and covered > self._covered:
            self._covered, self._at = covered, now + DELETE_SECONDS
        return found
