"""Bytes on the wire and on disk keep their names: what commit 30c6106 wrote, before the tree was moved, is read on.

``tests/fixtures/before-the-move.tar.xz`` is a folder as that commit left it: an embedded broker, and snapshots. A group
``one`` learnt 60 synthetic images (of ``tests.pipeline.synthetic.stream(90, 3)`` with all pixels below 60 at 0, every
ninth without a label) with one filter, and then one image was taken back. A group ``steps`` learnt the same with the
learner that was called ``paths`` then. The topic ``sums-many`` holds a delta of 40 images, one of four images, a
retraction and a checkpoint.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.learn import main
from pipeline.broker import Broker, Partition, connect
from pipeline.group.encoding import GroupReader, log_identity_of
from pipeline.group.shared import Checkpoint, Delta, Retraction
from pipeline.history.commands import main as history
from pipeline.learners.marketplace.base import Base
from pipeline.records.journal import Journal
from pipeline.snapshots import snapshot as snapshots

FILE = Path(__file__).parents[1] / "fixtures" / "before-the-move.tar.xz"

LEARNT = "3520014f92688718e5338b12077c38ff8b523f5b5f6af93780d23216f6da7910"
WITHOUT_THE_ONE_TAKEN_BACK = 52

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(FILE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def flags(folder: Path, group: str, *more: object) -> list[str]:
    return [
        *("--broker", f"sqlite:///{folder}/stream.db", "--group", group, "--snapshots", str(folder / "snapshots")),
        *map(str, more),
    ]


def learn(folder: Path, capsys: Capture, group: str, *more: object) -> dict[str, Any]:
    small = ("--filters", 1, "--backend", "blas", "--batch-size", 16, "--metrics-port", 0, "--json", "--images", 0)
    capsys.readouterr()
    assert main(flags(folder, group, *small, *more)) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def opened(folder: Path) -> Broker:
    return connect(f"sqlite:///{folder}/stream.db")


def test_a_snapshot_has_the_digest_that_it_had(folder: Path) -> None:
    found = snapshots.read(folder / "snapshots" / "one" / "snapshot-0000000000.safetensors")
    assert (found.digest, found.images, found.clock) == (LEARNT, 53, {0: 61})
    assert found.identity.learner == "clearing"


def test_a_learner_goes_on_from_it_and_takes_back_what_was_taken_back(folder: Path, capsys: Capture) -> None:
    summary = learn(folder, capsys, "one")
    assert (summary["settled_images"], summary["labelled_images"]) == (WITHOUT_THE_ONE_TAKEN_BACK, 53)
    again = folder / "snapshots" / "one" / "snapshot-0000000000.safetensors"
    again.unlink()  # now the topic alone tells
    assert learn(folder, capsys, "one")["digest"] == summary["digest"]


@pytest.mark.parametrize("name", ["paths", "marketplace"])
def test_the_journal_rebuilds_the_learner_that_was_called_paths(folder: Path, capsys: Capture, name: str) -> None:
    path = folder / "snapshots" / "steps" / "snapshot-0000000000.safetensors"
    before = snapshots.read(path)
    path.unlink()
    summary = learn(folder, capsys, "steps", "--learner", name)
    assert (summary["settled_images"], summary["generation"]) == (53, before.generation)
    [path] = (folder / "snapshots" / "steps").iterdir()
    after = snapshots.read(path)
    assert isinstance(before.model, Base)
    assert isinstance(after.model, Base)
    assert after.identity == before.identity
    for mine, theirs in zip(after.model.parameters, before.model.parameters, strict=True):
        assert np.allclose(mine, theirs, atol=1e-5)  # to the bit on the machine that wrote it


def test_the_journal_tells_of_both_groups(folder: Path, capsys: Capture) -> None:
    broker = opened(folder)
    entries = {group: list(Journal(broker, "updates", group).micro_batches()) for group in ("one", "steps")}
    broker.close()
    assert [sum(one.images for one in some) for some in entries.values()] == [60, 60]
    assert [sum(one.dead for one in some) for some in entries.values()] == [1, 1]
    assert all(one.update for one in entries["steps"])
    assert history(["list", *flags(folder, "one"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["digest"] for row in rows if row["kind"] == "snapshot"] == [LEARNT]


def test_records_of_a_group_s_log_are_read(folder: Path) -> None:
    broker = opened(folder)
    sums = Partition("sums-many", 0)
    messages = list(broker.read(sums, 0, broker.end(sums)))
    broker.close()
    reader = GroupReader(log_identity_of(messages[0]))
    records = [found[0] for message in messages if (found := reader.read(message))]
    assert [type(record) for record in records] == [Delta, Delta, Retraction, Checkpoint]
    dense, few, retraction, checkpoint = records
    assert isinstance(dense, Delta)
    assert isinstance(few, Delta)
    assert isinstance(retraction, Retraction)
    assert isinstance(checkpoint, Checkpoint)
    assert (dense.images, dict(dense.spans), few.images, dict(few.spans)) == (40, {0: (0, 40)}, 4, {0: (40, 44)})
    assert (few.sums.dense, retraction.sums.images, checkpoint.shared.clock) == (None, 1, {0: 40})
    digests = {some.summed().digest("x") for some in (dense.sums, checkpoint.shared.sums)}
    assert len(digests) == 1
