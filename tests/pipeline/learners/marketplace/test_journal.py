"""A whole update is a few numbers, and base and journal make the model again, bit for bit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import RecoveryError, SnapshotError
from pipeline.learners.marketplace.base import Base
from pipeline.learners.marketplace.blas import BlasNetwork
from pipeline.learners.marketplace.learner import Marketplace
from pipeline.learners.marketplace.model import Model
from pipeline.learners.marketplace.network import Shape
from pipeline.learners.marketplace.settling import MarketplaceUpdate
from pipeline.learners.marketplace.terms import PUBLISHED, STREAM, Terms
from tests.pipeline.synthetic import stream

SHAPE = Shape(widths=(2, 3))
NETWORK = BlasNetwork(SHAPE)
BASE = Base.untrained(SHAPE, 0)
BOTH = Terms(vendors=(3, 2, 4), lr=0.05, lr_decay=0.01, unit="per_spec", label_weights=True, seed=7)

Images = NDArray[np.uint8]


def learn(learner: Marketplace, images: Images, labels: Sequence[str | None], batch: int = 32) -> list[bytes]:
    """Predict, then learn; what was put into the journal."""
    journal = []
    for start in range(0, len(images), batch):
        update = learner.settle(learner.quote(images[start : start + batch]), labels[start : start + batch])
        journal.append(orjson.dumps(update.record()))
        learner.add(update)
        learner.clear()
    return journal


def replayed(terms: Terms, journal: Sequence[bytes]) -> Model:
    model = Model(BASE, terms)
    for record in journal:
        model.apply(MarketplaceUpdate.of(orjson.loads(record)))
    return model


@pytest.mark.parametrize("terms", [PUBLISHED, STREAM, BOTH], ids=["published", "stream", "both"])
def test_base_and_journal_make_every_generation_again_bit_for_bit(terms: Terms) -> None:
    images, labels = stream(150)
    learner = Marketplace(BASE, NETWORK, terms)
    journal: list[bytes] = []
    for start in range(0, 150, 50):
        journal += learn(learner, images[start : start + 50], labels[start : start + 50])
        again = replayed(terms, journal)
        assert again.generation == learner.generation == len(journal)
        assert again.base().digest == learner.base().digest
    assert learner.base().digest != BASE.digest


@pytest.mark.parametrize("terms", [PUBLISHED, STREAM, BOTH], ids=["published", "stream", "both"])
def test_a_learner_that_begins_again_goes_on_as_if_it_had_never_stopped(terms: Terms) -> None:
    images, labels = stream(200)
    steady = Marketplace(BASE, NETWORK, terms)
    journal = learn(steady, images[:128], labels[:128])
    other = Marketplace(replayed(terms, journal).base(), NETWORK, terms)
    assert learn(steady, images[128:], labels[128:]) == learn(other, images[128:], labels[128:])
    assert steady.base().digest == other.base().digest


def test_a_published_update_is_48_bytes() -> None:
    images, labels = stream(16)
    first, second, _ = BASE.parameters
    base = Base.of(SHAPE, (first, second, np.zeros(4 * SHAPE.products, np.float32)), tuple("abcd"))
    learner = Marketplace(base, NETWORK, PUBLISHED)
    update = learner.settle(learner.quote(images), labels)
    assert len(update.published) == 48 == 4 * sum(PUBLISHED.vendors)


def test_an_update_of_vendors_on_outputs_is_a_row_for_each_class_and_one_of_products() -> None:
    images, labels = stream(40)
    learner = Marketplace(BASE, NETWORK, STREAM)
    update = learner.settle(learner.quote(images), labels)
    assert len(update.published) == 4 * (len(set(labels)) + 1) * SHAPE.products


def test_updates_settled_on_older_vendors_are_replayed_as_they_were_added() -> None:
    images, labels = stream(96)
    learner = Marketplace(BASE, NETWORK, BOTH)
    journal = learn(learner, images[:32], labels[:32])
    early = learner.quote(images[32:64])  # quoted before the update before it was cleared
    journal += learn(learner, images[64:], labels[64:])
    update = learner.settle(early, ["late", *labels[33:64]])
    learner.add(update)
    learner.clear()
    journal.append(orjson.dumps(update.record()))
    assert replayed(BOTH, journal).base().digest == learner.base().digest
    assert "late" in learner.classes


@settings(max_examples=25)
@given(place=st.integers(0, 10_000), text=st.sampled_from(["numbers", "vendors", "classes", "generation"]))
def test_a_damaged_record_is_refused(place: int, text: str) -> None:
    images, labels = stream(8)
    learner = Marketplace(BASE, NETWORK, STREAM)
    record = learner.settle(learner.quote(images), labels).record()
    broken = {**record, "numbers": record["numbers"][: place % len(record["numbers"]) // 16 * 16 + 4]}
    with pytest.raises(RecoveryError, match="the journal holds a record that cannot be read"):
        MarketplaceUpdate.of(broken)
    with pytest.raises(RecoveryError, match="the journal holds a record that cannot be read"):
        MarketplaceUpdate.of({name: value for name, value in record.items() if name != text})


def test_a_base_comes_back_as_it_was_written(tmp_path: Path) -> None:
    images, labels = stream(64)
    learner = Marketplace(BASE, NETWORK, BOTH)
    learn(learner, images, labels)
    learner.base().write(tmp_path / "here" / "base.safetensors")
    read = Base.read(tmp_path / "here" / "base.safetensors")
    assert read.digest == learner.base().digest
    assert read.shape == SHAPE


def test_a_base_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    with pytest.raises(SnapshotError, match=r"no such base model; marketstream pretrain makes one"):
        Base.read(path)
    BASE.write(path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="damaged: its digest is"):
        Base.read(path)
    path.write_bytes(content[:100])
    with pytest.raises(SnapshotError, match="damaged, or no base model at all"):
        Base.read(path)
