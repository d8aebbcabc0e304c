"""Learning again from messages, without writing to any topic: after a crash, to verify, to take images back."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pipeline.broker import Message
from pipeline.learners.protocol import AnyLearner, Learner, Q, U
from pipeline.records.images import decode_all, stack


def settled(
    learner: Learner[Q, U], messages: Iterable[Message], size: int, refuses: Callable[[str], bool]
) -> Iterator[tuple[list[Message], U]]:
    """Settle messages in micro-batches of ``size``. Yields each micro-batch and its update; the caller adds it.

    Messages that cannot be read are passed over, and those with labels that the group ``refuses``. Whoever asks what
    some offsets added asks here: a learner that takes over, verify, retract.
    """
    messages = iter(messages)
    while some := list(islice(messages, size)):
        decoded = decode_all(some)
        decoded.refuse(refuses)
        yield some, learner.settle(learner.quote(stack(decoded.images)), decoded.labels)


def settle_again(
    learner: AnyLearner,
    messages: Iterable[Message],
    size: int,
    refuses: Callable[[str], bool],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Learn from messages in micro-batches of ``size``. ``progress`` gets the number of messages of each."""
    for some, update in settled(learner, messages, size, refuses):
        learner.add(update)
        progress(len(some))
