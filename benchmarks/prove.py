"""Every claim of the README, measured again: one line each, and exit status 1 if one does not hold.

    python -m benchmarks.prove [--seeds 5] [--kills 50]

Takes hours on two cores, the better part of them for ``model``; ``--only PART`` picks one part. ``kafka`` and
``learners`` need Java and Maven.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console

from benchmarks import speed
from benchmarks.accuracy import measure
from benchmarks.processes import LOOK, Group, command, fill, learn, position, served_ids
from deploy.local.kafka import Server
from pipeline import cli
from pipeline.broker import Record, connect
from pipeline.data import scenario
from pipeline.data.stream import Stream, load_splits, make_stream
from pipeline.features import Features, Filters, make
from pipeline.learners.clearing.accumulator import Accumulator
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.images import encode
from pipeline.settings import Settings
from tests.simulation.check import on_all_cores

BATCH = 256


@dataclass(frozen=True)
class Line:
    """One claim, what was found, and whether it holds."""

    claim: str
    found: str
    holds: bool


def accuracy(settings: Settings, arguments: argparse.Namespace) -> Iterator[Line]:
    for seed in range(arguments.seeds):
        r = measure("mixed", "clearing", seed, None, settings)
        held, during = r["held_out"], r["prequential"]
        yield Line(
            f"mixed, seed {seed}: held out ≥ 0.985 / 0.873, mean ≥ 0.930; streaming ≥ 0.977 / 0.871",
            f"{held['digits']:.4f} / {held['fashion']:.4f}, {held['overall']:.4f}; "
            f"{during['digits']:.4f} / {during['fashion']:.4f}",
            held["digits"] >= 0.985 and held["fashion"] >= 0.873 and held["overall"] >= 0.930
            and during["digits"] >= 0.977 and during["fashion"] >= 0.871,
        )  # fmt: skip
    r = measure("dress", "clearing", 0, None, settings)
    dress, digits = r["held_out_dress_after"], r["held_out_digits_after"]
    yield Line(
        "dress: test dresses after 5 / 10 / 100 micro-batches ≥ 0.97 / 0.985 / 0.995",
        " / ".join(f"{dress[n]:.3f}" for n in ("5", "10", "100")),
        dress["5"] >= 0.97 and dress["10"] >= 0.985 and dress["100"] >= 0.995,
    )
    yield Line(
        "dress: digits never more than 0.003 below what they were",
        f"{digits['0']:.4f}, then at least {min(digits.values()):.4f}",
        min(digits.values()) >= digits["0"] - 0.003,
    )
    held = measure("split", "clearing", 0, None, settings)["held_out"]
    yield Line(
        "split: held out ≥ 0.985 / 0.873, though no class came again after its turn",
        f"{held['digits']:.4f} / {held['fashion']:.4f}",
        held["digits"] >= 0.985 and held["fashion"] >= 0.873,
    )


def everything(settings: Settings, _: argparse.Namespace) -> Iterator[Line]:
    held = measure("mixed", "clearing", 0, 120_000, settings.model_copy(update={"filters": 480}))["held_out"]
    yield Line(
        "all 120,000 images once, 480 filters: held out ≥ 0.990 / 0.896",
        f"{held['digits']:.4f} / {held['fashion']:.4f}",
        held["digits"] >= 0.990 and held["fashion"] >= 0.896,
    )


class Digests:
    """Learners of the same images in different ways, and the digests that they come to."""

    def __init__(self, settings: Settings, images: int) -> None:
        self.filters = Filters(0, settings.filters)
        self.stream = mixed(settings, images)
        self.features = make(self.filters, "blas")
        self.identity = ClearingIdentity.of(self.filters).digest

    def sums(self, places: Sequence[int], batch: int = BATCH, features: Features | None = None) -> Sums:
        """What a learner of the images at these places comes to."""
        learner = Clearing(features or self.features, Sums.zero(self.filters.width))
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            images = np.concatenate([self.stream.images(i, i + 1) for i in some])
            learner.add(learner.settle(learner.quote(images), [self.stream.labels[i] for i in some]))
            learner.clear()
        return learner.sums()

    def taken_back(self, places: Sequence[int]) -> Sums:
        """What a learner of all images would come to, less these."""
        learner = Clearing(self.features, Sums.zero(self.filters.width))
        images = np.concatenate([self.stream.images(i, i + 1) for i in places])
        update = learner.settle(learner.quote(images), [self.stream.labels[i] for i in places])
        accumulator = Accumulator(Sums.zero(self.filters.width))
        accumulator.add(update.products, update.targets, update.labels, update.classes)
        return self.sums(range(len(self.stream))) - accumulator.total()


def digest(settings: Settings, _: argparse.Namespace) -> Iterator[Line]:
    images, extra = 19_200, 1_000
    d = Digests(settings, images + extra)
    places = list(range(images))
    shuffled = random.Random(0).sample(places, images)
    parts = [d.sums(places[i::3]) for i in range(3)]
    ways: dict[str, Callable[[], Sums]] = {
        "another order": lambda: d.sums(shuffled),
        "micro-batches of 100": lambda: d.sums(places, 100),
        "three learners added up": lambda: parts[0] + parts[1] + parts[2],
        "1,000 images more, taken back": lambda: d.taken_back(range(images, images + extra)),
        "tinygrad instead of BLAS": lambda: d.sums(places, features=make(d.filters, "tinygrad", BATCH)),
    }
    expected = d.sums(places).digest(d.identity)
    for name, way in ways.items():
        found = way().digest(d.identity)
        yield Line(f"the same digest: {name}", found[:16], found == expected)


def kills(settings: Settings, arguments: argparse.Namespace) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        yield from killed(f"sqlite:///{Path(folder) / 'stream.db'}", folder, arguments.kills, settings)


def kafka(settings: Settings, arguments: argparse.Namespace) -> Iterator[Line]:
    with closing(Server(settings.cache)) as server, tempfile.TemporaryDirectory() as folder:
        yield from killed(server.url, folder, 2 * arguments.kills, settings)


def killed(url: str, folder: str, times: int, settings: Settings) -> Iterator[Line]:
    """Kill a learner that often, at random moments of its work, and let another one end it."""
    images = 38_400
    d = Digests(settings, images)
    fill(url, [encode(d.stream.record(i), "images") for i in range(images)])
    rng = random.Random(1)
    with closing(connect(url)) as broker:
        for n in range(times):
            target = int(images * 0.9 * (n + rng.random()) / times)
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(command(url, folder, None, settings), stdout=quiet, stderr=quiet)
            while position(broker) < target and process.poll() is None:
                time.sleep(LOOK)
            process.send_signal(signal.SIGKILL)
            process.wait()
        summary = learn(url, folder, images - len(served_ids(broker)), settings)
        served = served_ids(broker)
    kind = url.partition(":")[0]
    same = summary["digest"] == d.sums(range(images)).digest(d.identity)
    yield Line(f"{kind}: killed with -9 {times} times: the same digest", summary["digest"][:16], same)
    once = len(served) == len(set(served)) == images
    yield Line(
        f"{kind}: every image predicted once", f"{len(served):,} predictions of {len(set(served)):,} images", once
    )


def model(_: Settings, arguments: argparse.Namespace) -> Iterator[Line]:
    violations = on_all_cores(arguments.schedules)
    yield Line(
        f"{arguments.schedules:,} schedules of the protocol: one digest, each image once",
        f"{len(violations)} violations {violations[:3]}",
        not violations,
    )


def learners(settings: Settings, arguments: argparse.Namespace) -> Iterator[Line]:
    images, mishaps = 38_400, arguments.mishaps
    d = Digests(settings, images)
    expected = d.sums(range(images)).digest(d.identity)
    with closing(Server(settings.cache)) as server, tempfile.TemporaryDirectory() as folder:
        for count in (1, 2, 4):
            group = Group(server.url, f"{count}.", Path(folder) / str(count), settings)
            fill(server.url, [encode(d.stream.record(i), "images") for i in range(images)], group.prefix, 4)
            with closing(connect(server.url)) as broker:
                group.disturb(broker, count, images, mishaps)
                summary = learn(server.url, str(group.folder / "last"), 0, settings, *group.flags)
                served = served_ids(broker, group.prefix)
            yield Line(
                f"{count} learners, {mishaps} kills, pauses and joins: the digest of one",
                summary["digest"][:16],
                summary["digest"] == expected,
            )
            yield Line(
                f"{count} learners: every image predicted once",
                f"{len(served):,} predictions of {len(set(served)):,} images",
                len(served) == len(set(served)) == images,
            )


def dead_letters(settings: Settings, _: argparse.Namespace) -> Iterator[Line]:
    good, bad = 2_000, 10_000
    d = Digests(settings, good)
    rng = random.Random(2)
    sound = [encode(d.stream.record(i), "images") for i in range(good)]
    records = sound + [malformed(rng.choice(sound), rng) for _ in range(bad)]
    rng.shuffle(records)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'stream.db'}"
        fill(url, records)
        summary = learn(url, folder, len(records), settings)
    same = summary["digest"] == d.sums(range(good)).digest(d.identity)
    yield Line(
        f"{bad:,} malformed records are dead letters, the rest learnt as if they had not been there",
        f"{summary['dead_letters']:,} dead letters, {'the same' if same else 'another'} digest",
        same and summary["dead_letters"] == bad,
    )


def malformed(record: Record, rng: random.Random) -> Record:
    """The record with one thing wrong that no reader could overlook."""
    headers = dict(record.headers)
    value = record.value
    match rng.randrange(7):
        case 0:
            value = value[: rng.randrange(len(value))]
        case 1:
            value += rng.randbytes(rng.randrange(1, 100))
        case 2:
            del headers[rng.choice(["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type", "ce_shape"])]
        case 3:
            headers[rng.choice(sorted(headers))] = b"\xff" + rng.randbytes(8)
        case 4:
            headers["content-type"] = rng.choice([b"image/png", b"image/jpeg", b"text/plain"])
        case 5:
            headers["ce_shape"] = rng.choice([b"32,32", b"28", b"", b"28,28,3"])
        case 6:
            value, headers = rng.randbytes(rng.randrange(2000)), {}
    return Record(record.topic, value, record.key, tuple(headers.items()))


def speeds(settings: Settings, _: argparse.Namespace) -> Iterator[Line]:
    r = speed.measure(settings)
    yield Line("learning ≤ 1.2 × (predicting + bare zᵀz)", f"{r['learn_to_predict_and_square']:.3f}; "
               f"{r['learn_images_per_second']:,.0f}, {r['predict_images_per_second']:,.0f} and "
               f"{r['square_images_per_second']:,.0f} images/s", r["learn_to_predict_and_square"] <= 1.2)  # fmt: skip
    yield Line("through the embedded broker ≤ 1.15 × without", f"{r['broker_to_brokerless']:.3f}; "
               f"{r['broker_images_per_second']:,.0f} images/s", r["broker_to_brokerless"] <= 1.15)  # fmt: skip
    yield Line("no slower after 500,000 images than after 50,000", f"time ratio {r['late_to_early']:.3f}",
               r["late_to_early"] <= 1.05)  # fmt: skip
    yield Line("memory flat", f"{r['early_megabytes']:.0f} MB, then {r['late_megabytes']:.0f} MB",
               r["late_megabytes"] <= 1.05 * r["early_megabytes"])  # fmt: skip


def mixed(settings: Settings, images: int) -> Stream:
    chosen = scenario.load("mixed", images=images)
    return make_stream(chosen, load_splits(chosen, settings))


PARTS = {
    "accuracy": accuracy,
    "digest": digest,
    "kills": kills,
    "kafka": kafka,
    "model": model,
    "learners": learners,
    "dead-letters": dead_letters,
    "speed": speeds,
    "everything": everything,
}


def main() -> int:
    parser = cli.parser("Measure every claim again.", "filters", "window", "data", "cache")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of mixed (default: 5)")
    parser.add_argument(
        "--kills",
        type=int,
        default=50,
        metavar="N",
        help="kills (default: 50; over Kafka twice as many)",
    )
    parser.add_argument(
        "--mishaps", type=int, default=20, metavar="N", help="kills, pauses and joins of each group (default: 20)"
    )
    parser.add_argument(
        "--schedules", type=int, default=1_000_000, metavar="N", help="of the model check (default: 1,000,000)"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be given several times)")
    arguments = parser.parse_args()
    settings = cli.settings_of(arguments)
    console = Console(highlight=False, soft_wrap=True)
    lines: list[Line] = []
    for name in arguments.only or PARTS:
        for line in PARTS[name](settings, arguments):
            lines.append(line)
            if not arguments.json:
                console.print(f"{'holds ' if line.holds else 'FAILS '} {line.claim}: {line.found}")
    if arguments.json:
        sys.stdout.write(orjson.dumps(lines).decode() + "\n")
    return os.EX_OK if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    cli.run(main)
