"""One, two and four real learners, the start of a late one, and a simulation with measured costs up to 64.

    python -m benchmarks.scale [--images 25600] [--out docs]

Writes OUT/scale.md and OUT/scale.png. Starts a Kafka broker, so it needs Java and Maven.
"""

import logging
import os
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import speed
from benchmarks.accuracy import HeldOut, draw
from benchmarks.scale import group, model, page
from benchmarks.scale.group import REAL, Group
from deploy.local.kafka import Server
from pipeline import cli
from pipeline.broker import connect
from pipeline.cores import CORES
from pipeline.data.stream import Stream
from pipeline.errors import SettingsError
from pipeline.learners.clearing.sums import Sums
from pipeline.records.images import encode
from pipeline.settings import Settings

log = logging.getLogger(__name__)

SIMULATED = (1, 2, 4, 8, 16, 32, 64)


def sums(stream: Stream, images: int, settings: Settings) -> Sums:
    """What a single learner without any broker makes of the first images."""
    run, learner = speed.begin(stream, settings)
    run.seconds(stop=images)
    return learner.sums()


def measure(settings: Settings, images: int, cores_each: int) -> dict[str, Any]:
    """All of it, as one object."""
    cores = divided(cores_each)
    stream = draw("mixed", settings, max(images, settings.publish_images))
    delta = sums(stream, settings.publish_images, settings)
    held_out, found = HeldOut(settings), []
    with closing(Server(settings.cache)) as server, tempfile.TemporaryDirectory() as name:
        patient = settings.model_copy(update={"broker": server.url, "session_timeout": 60.0})  # for pieces of 8 MB
        with closing(connect(server.url, patient)) as broker:
            for count in REAL:
                learners = Group(broker, patient, f"scale{count}", Path(name), cores)
                found.append(group.measure(learners, count, images, held_out))
                log.info("%d learners: %.0f images/s", count, found[-1]["images_per_second"])
            image = encode(stream.record(0), "images")
            late, costs = group.join_late(Group(broker, patient, "late", Path(name)), image, delta)
            log.info("a late one: %s; %s", late, costs)
    case = model.Case(costs, 1 / found[0]["images_per_second"], 1, settings.publish_images)
    return {
        "cores": CORES,
        "cores_each": cores_each,
        "images": images,
        "digest": sums(stream, images, settings).digest(learners.identity.digest),
        "groups": found,
        "late": late | {"seconds_without_bases": late["deltas_written"] * costs.read},
        "costs": asdict(costs),
        "image_seconds": case.image_seconds,
        "simulated": simulated(case),
    }


def divided(cores_each: int) -> list[set[int]]:
    """So many cores for each learner; the rest is this process's and the broker's. None at all: all share all of them.

    Raises SettingsError if that cannot be.
    """
    if not cores_each:
        return []
    cores = sorted(os.sched_getaffinity(0))
    most = (len(cores) - 1) // REAL[-1]
    if not 0 < cores_each <= most:
        raise SettingsError(
            f"--cores-each {cores_each}: {REAL[-1]} learners can have up to {most} each of this machine's {len(cores)} "
            "cores, so that one is left for the broker; 0: all share all"
        )
    parts = [set(cores[n * cores_each : (n + 1) * cores_each]) for n in range(REAL[-1])]
    rest = cores[REAL[-1] * cores_each :]
    os.sched_setaffinity(0, rest)
    return parts


def simulated(case: model.Case) -> list[dict[str, float]]:
    """More and more learners."""
    found = [model.play(case, learners) for learners in SIMULATED]
    alone = found[0].images_per_second
    return [asdict(f) | {"efficiency": f.images_per_second / alone / f.learners} for f in found]


def main() -> int:
    parser = cli.parser("Measure what more learners bring.", "filters", "window", "data", "cache")
    cli.add_number(parser, "--images", 1, "of each group", default=25_600)
    cli.add_number(parser, "--cores-each", 0, "of each learner's own; 0: all share all cores", default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where to write (default: docs)")
    arguments = parser.parse_args()
    result = measure(cli.settings_of(arguments), arguments.images, arguments.cores_each)
    shown = page.text(result)
    (arguments.out / "scale.md").write_text(shown, encoding="utf-8")
    page.draw(result, arguments.out / "scale.png")
    cli.tell(arguments.json, result, shown)
    holds = all(g["each_once"] and g["digest"] == result["digest"] for g in result["groups"])
    return 0 if holds else 1


if __name__ == "__main__":
    cli.run(main)
