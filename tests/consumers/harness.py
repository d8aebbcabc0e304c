"""A small stream in an embedded broker, and the learner run on it as a user would."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consumers.learn import main
from pipeline.broker import Broker, Message, Record, Topic, connect
from pipeline.features import Filters, make
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import ImageRecord, encode
from pipeline.settings import Settings
from pipeline.snapshots.snapshot import Folder, Snapshot
from tests.pipeline.synthetic import stream

ROOT = Path(__file__).parents[2]
FILTERS = Filters(seed=0, count=4)


def records(count: int, seed: int = 0) -> list[Record]:
    """Synthetic images as they come on the topic."""
    images, labels = stream(count, seed)
    return [
        encode(ImageRecord(f"{seed}/{i:05}", "/test/phase", image.tobytes(), label), "images")
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def digest_of(count: int, seed: int = 0) -> str:
    """The digest of a learner that was given the same images in one go, without a broker."""
    images, labels = stream(count, seed)
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    learner.add(learner.settle(learner.quote(images), labels))
    return learner.sums().digest(ClearingIdentity.of(FILTERS, "squared").digest)


@dataclass(frozen=True)
class Place:
    """A folder for snapshots, and a broker: the embedded one in that folder, or one that others use too.

    On such a one ``prefix`` begins the names of topics and groups.
    """

    folder: Path
    broker_url: str = ""
    prefix: str = ""
    own_group: str = "learn"

    @property
    def url(self) -> str:
        return self.broker_url or f"sqlite:///{self.folder}/stream.db"

    @property
    def group(self) -> str:
        return f"{self.prefix}{self.own_group}"

    def send(self, some: Iterable[Record], partitions: int = 1) -> None:
        patient = Settings(session_timeout=30)  # the first leaders of a new topic's partitions take their time
        with closing(connect(self.url, patient)) as broker:
            broker.ensure_topics([Topic(f"{self.prefix}images", partitions)])
            with closing(broker.producer(f"{self.prefix}test")) as producer, producer.transaction() as transaction:
                transaction.produce(record._replace(topic=self.prefix + record.topic) for record in some)

    def lose_snapshots(self) -> None:
        for file in (self.folder / "snapshots").rglob("*.safetensors"):
            file.unlink()

    def flags(self, *more: object) -> list[str]:
        """Of a small learner in this place."""
        return [
            *("--broker", self.url, "--topic-prefix", self.prefix, "--group", self.group),
            *("--snapshots", str(self.folder / "snapshots"), "--filters", "4"),
            *("--backend", "blas", "--batch-size", "32", "--batch-wait", "0.05", "--metrics-port", "0", "--json"),
            *map(str, more),
        ]

    def learn(self, capsys: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
        """Run the learner in this process; its summary."""
        capsys.readouterr()
        assert main(self.flags(*more)) == 0
        summary: dict[str, Any] = json.loads(capsys.readouterr().out)
        return summary

    @contextmanager
    def learner(self, *more: object) -> Iterator[subprocess.Popen[str]]:
        """Run the learner as a process of its own, which is killed at the end of the block if it has not ended."""
        command = [sys.executable, "-m", "consumers.learn", *self.flags(*more)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def broker(self) -> Iterator[Broker]:
        with closing(connect(self.url)) as broker:
            yield broker

    def topic(self, name: str) -> list[Message]:
        """All messages of a topic."""
        with self.broker() as broker:
            extents = broker.extents(self.prefix + name)
            return [m for p, e in extents.items() for m in broker.read(p, e.first, e.end)]

    def position(self) -> int:
        """How far the learners have committed."""
        with self.broker() as broker:
            return self._position(broker)

    def await_position(self, process: "subprocess.Popen[str]", wanted: int) -> None:
        """Until the learners have come that far."""
        with self.broker() as broker:
            while self._position(broker) < wanted:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)  # or nobody else gets to work

    def _position(self, broker: Broker) -> int:
        return sum(p.offset for p in broker.committed(self.group, f"{self.prefix}images").values())

    def predictions(self, group: str | None = None) -> list[dict[str, Any]]:
        served = [json.loads(message.value) for message in self.topic("predictions")]
        return [one for one in served if one["group"] == (group or self.group)]

    def newest(self) -> Snapshot:
        snapshot = Folder(self.folder / "snapshots" / f"{self.prefix}{self.group}", 3).newest()
        assert snapshot is not None
        return snapshot


def each_once(predictions: Sequence[dict[str, Any]], count: int, seed: int = 0) -> bool:
    """Whether each image of a stream was predicted exactly once."""
    return sorted(p["id"] for p in predictions) == [f"{seed}/{i:05}" for i in range(count)]
