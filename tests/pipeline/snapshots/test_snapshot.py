"""Snapshots: read back exactly or not at all, and never half written."""

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from pipeline.errors import SnapshotError
from pipeline.learners.clearing.sums import Sums, packed_size
from pipeline.learners.identity import ClearingIdentity
from pipeline.monitoring.scores import Scores
from pipeline.snapshots import snapshot as snapshots
from pipeline.snapshots.snapshot import Folder, Snapshot, read, write

WIDTH = 3
IDENTITY = ClearingIdentity("trunk", "0", "4", "squared")


def snapshot(seed: int = 0, classes: tuple[str, ...] = ("7", "Naïve 👗", "T-shirt/top")) -> Snapshot:
    """A small one that has something in every field."""
    rng = np.random.default_rng(seed)
    sums = Sums(
        rng.integers(-(2**60), 2**60, packed_size(WIDTH)),
        {name: rng.integers(-(2**60), 2**60, WIDTH) for name in classes},
        {name: i + 1 for i, name in enumerate(classes)},
    )
    scores = Scores(5)
    scores.add([("7", None), ("7", "7"), ("Dress", "7")])
    return Snapshot(sums, IDENTITY, 12, "topic-1", {0: 2**53 + 1, 11: 0}, 345, scores.state(), "ab" * 32)


def same(one: Snapshot, other: Snapshot) -> bool:
    """Whether they agree in every field, to the bit and to the order of the classes."""
    a, b = one.sums, other.sums
    return (
        one.digest == other.digest
        and a.A.dtype == b.A.dtype
        and np.array_equal(a.A, b.A)
        and list(a.T) == list(b.T)
        and all(a.T[name].dtype == b.T[name].dtype and np.array_equal(a.T[name], b.T[name]) for name in a.T)
        and list(a.counts.items()) == list(b.counts.items())
        and replace(one, model=b).__dict__ == other.__dict__
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound snapshot."""
    path = tmp_path_factory.mktemp("sound") / "s.safetensors"
    write(snapshot(), path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.safetensors"


@pytest.mark.parametrize(
    "written",
    [
        snapshot(),
        snapshot(classes=("a",)),
        Snapshot(Sums.zero(WIDTH), IDENTITY),
        Snapshot(snapshot().sums - snapshot().sums, IDENTITY),
    ],
    ids=["everything", "one class", "nothing learnt", "everything taken back"],
)
def test_what_was_written_is_read(path: Path, written: Snapshot) -> None:
    write(written, path)
    assert same(read(path), written)


def test_what_was_read_can_be_learnt_on(path: Path) -> None:
    write(snapshot(), path)
    both = read(path).sums + snapshot(1).sums
    assert both.digest("") == (snapshot().sums + snapshot(1).sums).digest("")


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "s.safetensors"
    write(snapshot(), path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_file_cut_off_anywhere_is_refused(path: Path, sound: bytes) -> None:
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(SnapshotError, match=f"^{path}: damaged"):
            read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data(), st.integers(1, 255))
def test_no_damaged_byte_is_ever_read_as_another_snapshot(
    path: Path, sound: bytes, data: st.DataObject, flip: int
) -> None:
    """All that can be read still is white space of the format, and that changes nothing."""
    place = data.draw(st.integers(0, len(sound) - 1))
    damaged = bytearray(sound)
    damaged[place] ^= flip
    path.write_bytes(damaged)
    try:
        result = read(path)
    except SnapshotError:
        return
    assert sound[place : place + 1].isspace()
    assert same(result, snapshot())


@pytest.mark.parametrize("tensor", [b'"A"', b'"T"', b'"counts"'])
def test_numbers_of_another_type_are_refused(path: Path, sound: bytes, tensor: bytes) -> None:
    """One byte in the file makes signed numbers unsigned; sums of such numbers would no longer be integers."""
    start = sound.index(b"I64", sound.index(tensor + b":{"))
    path.write_bytes(sound[:start] + b"U64" + sound[start + 3 :])
    with pytest.raises(SnapshotError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 64, b"\xff" * 64, b"PK\x03\x04 no snapshot", np.random.default_rng(0).bytes(4096)]
)
def test_what_is_no_snapshot_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=f"^{path}: damaged, or no snapshot at all"):
        read(path)


def test_tensors_of_another_program_are_refused(path: Path) -> None:
    path.write_bytes(save({"weights": np.zeros(3)}))
    with pytest.raises(SnapshotError, match="no snapshot at all"):
        read(path)


@pytest.mark.parametrize("name", ["missing.safetensors", ".", "x" * 300])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(SnapshotError, match=f"^{path}: "):
        read(path)


def test_another_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "VERSION", 2)
        write(snapshot(), path)
    with pytest.raises(SnapshotError, match=f"^{path}: version 2, this program reads 1$"):
        read(path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write past so many bytes, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_half_way_leaves_the_earlier_snapshot(path: Path) -> None:
    write(snapshot(), path)
    with files_of_at_most(500), pytest.raises(SnapshotError, match=f"^{path}: cannot write .*: File too large$"):
        write(snapshot(1), path)
    assert same(read(path), snapshot())
    write(snapshot(1), path)
    assert same(read(path), snapshot(1))


def test_a_disk_that_refuses_half_way_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 3)
    with files_of_at_most(500), pytest.raises(SnapshotError, match="File too large"):
        folder.save(snapshot())
    assert folder.files() == []
    assert folder.newest() is None
    folder.save(snapshot())
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_synced_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(snapshot(), path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match="No space left on device"):
        write(snapshot(1), path)
    assert same(read(path), snapshot())


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match=r"file/learn/s\.safetensors: cannot write the snapshot: Not a directory"):
        write(snapshot(), tmp_path / "file" / "learn" / "s.safetensors")


def test_the_newest_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    for seed in range(5):
        Folder(tmp_path, 2).save(snapshot(seed))
    assert [p.name for p in Folder(tmp_path, 2).files()] == [
        "snapshot-0000000004.safetensors",
        "snapshot-0000000003.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 2
    newest = Folder(tmp_path, 2).newest()
    assert newest
    assert same(newest, snapshot(4))


def test_a_number_is_not_used_again_though_its_snapshot_is_damaged(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 3)
    first = folder.save(snapshot())
    first.write_bytes(b"damaged")
    second = folder.save(snapshot(1))
    assert second > first


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("notes.txt", "snapshot-1.safetensors")]
    for other in others:
        other.write_text("mine")
    folder = Folder(tmp_path, 1)
    for _ in range(3):
        folder.save(snapshot())
    assert all(other.read_text() == "mine" for other in others)
    assert len(folder.files()) == 1


def test_damaged_ones_are_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(tmp_path, 3)
    _, second, third = (folder.save(snapshot(seed)) for seed in range(3))
    second.write_bytes(second.read_bytes()[:-1])
    third.write_bytes(b"")
    newest = folder.newest()
    assert newest
    assert same(newest, snapshot(0))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [str(third) in warnings[0], str(second) in warnings[1], len(warnings)] == [True, True, 2]


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 3)
    for seed in range(2):
        folder.save(snapshot(seed)).write_bytes(b"damaged")
    with pytest.raises(SnapshotError, match="damaged"):
        folder.newest()


@pytest.mark.parametrize("made", [True, False])
def test_an_empty_folder_has_no_newest(tmp_path: Path, made: bool) -> None:
    assert Folder(tmp_path if made else tmp_path / "missing", 3).newest() is None
