"""What all brokers refuse, and how they say it. ``where`` is the broker."""

from pipeline.broker import Topic
from pipeline.errors import RecordTooLargeError, TopicError


def no_topic(topic: str, where: object) -> TopicError:
    """The error for a topic that is not there."""
    return TopicError(f"there is no topic {topic!r} in {where}; check name and prefix, or start its producer first")


def gone(topic: str, number: int, position: int, held: str) -> TopicError:
    """The error for a position whose records are gone, or which never was."""
    return TopicError(
        f"topic {topic!r}, partition {number}: position {position} is gone, the first record kept is {held}; seek "
        "there if what lies between may be lost, and raise the retention"
    )


def check_number(topic: str, number: int, count: int) -> None:
    """Raises TopicError unless a topic with so many partitions has one of this number."""
    if not 0 <= number < count:
        raise TopicError(f"topic {topic!r} has no partition {number}, only 0 to {count - 1}; use one of those")


def check_count(topic: Topic, found: int, where: object) -> None:
    """Raises TopicError unless a topic that exists has as many partitions as it should, if that is said."""
    if topic.partitions not in (None, found):
        raise TopicError(
            f"topic {topic.name!r} in {where} has {found} partitions, not {topic.partitions}; ask for as many as it "
            "has, or use another topic"
        )


def check_size(topic: str, size: int, most: int, advice: str) -> None:
    """Raises RecordTooLargeError."""
    if size > most:
        raise RecordTooLargeError(f"topic {topic!r}: a record of {size:,} bytes, but {most:,} are the most; {advice}")
