"""A frozen learner learns what it is trained on, and nothing after that."""

from benchmarks.learners.frozen import Frozen
from pipeline.features import Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from tests.pipeline.synthetic import CLASSES, stream

FILTERS = Filters(seed=0, count=4)


def test_it_learns_up_to_so_many_images_and_never_again() -> None:
    images, labels = stream(300, classes=CLASSES[:2])
    more, names = stream(300, seed=1)
    inner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    learner = Frozen(inner, 300)
    for start in range(0, 300, 100):
        some = slice(start, start + 100)
        learner.add(learner.settle(learner.quote(images[some]), labels[some]))
        learner.clear()
    assert (learner.images, learner.classes) == (300, tuple(dict.fromkeys(labels)))
    digest, served = inner.sums().digest(""), learner.quote(more).logits
    update = learner.settle(learner.quote(more), names)
    assert update is None
    learner.add(update)
    learner.clear()
    assert inner.sums().digest("") == digest
    assert (learner.quote(more).logits == served).all()
    assert learner.classes == tuple(dict.fromkeys(labels))
