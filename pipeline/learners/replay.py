"""Learning again what messages hold, without a trace on any topic: after a crash, to verify, to take back."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pipeline.broker import Message
from pipeline.learners.protocol import AnyLearner, Learner, Q, U
from pipeline.records.images import decode_all, stack


def settled(learner: Learner[Q, U], messages: Iterable[Message], size: int) -> Iterator[tuple[list[Message], U]]:
    """What messages hold, in micro-batches of ``size``, settled; adding it is left to the caller.

    What is a dead letter is passed over.
    """
    messages = iter(messages)
    known = set(learner.classes)
    while some := list(islice(messages, size)):
        decoded = decode_all(some, known)
        yield some, learner.settle(learner.quote(stack(decoded.images)), decoded.labels)


def settle_again(
    learner: AnyLearner, messages: Iterable[Message], size: int, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Learn what messages hold. ``progress`` is given the number of messages of each micro-batch."""
    for some, update in settled(learner, messages, size):
        learner.add(update)
        progress(len(some))
