"""One, two and four real learners, the start of a late one, and a simulation with measured costs up to 64.

    python -m benchmarks.scale [--images 25600] [--out docs]

Writes OUT/scale.md and OUT/scale.png. Starts a Kafka broker, so it needs Java and Maven, and 6 GB of disk for a while.
"""

import logging
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from benchmarks.accuracy import HeldOut
from benchmarks.prove import Digests
from benchmarks.scale import costs, groups, late, model, page
from benchmarks.scale.groups import REAL
from deploy.local.kafka import Server
from pipeline import cli
from pipeline.cores import CORES
from pipeline.errors import SettingsError
from pipeline.records.images import encode
from pipeline.settings import Settings

log = logging.getLogger(__name__)

SIMULATED = (1, 2, 4, 8, 16, 32, 64)


def measure(settings: Settings, images: int, cores_each: int) -> dict[str, Any]:
    """All of it, as one object."""
    cores = divided(cores_each)
    d = Digests(settings, max(images, settings.publish_images))
    delta = d.sums(range(settings.publish_images))
    expected = d.sums(range(images)).digest(d.identity)
    records = [encode(d.stream.record(i), "images") for i in range(images)]
    held_out = HeldOut(settings)
    with closing(Server(settings.cache)) as server, tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), []
        for count in REAL:
            place = groups.Place(server.url, f"scale{count}", folder, settings, cores)
            found.append(groups.measure(place, count, records, held_out))
            log.info("%d learners: %.0f images/s", count, found[-1]["images_per_second"])
        amid = groups.join_amid_work(groups.Place(server.url, "amid", folder, settings, cores), records)
        log.info("a third one joins: %s", amid)
        measured = costs.measure(server.url, d.stream, delta, settings)
        log.info("%s", measured)
        begun = late.measure(server.url, folder, d.stream, delta, settings)
        log.info("a late one: %s", begun)
    case = model.Case(measured, 1 / found[0]["images_per_second"], 1, settings.publish_images)
    return {
        "cores": CORES,
        "cores_each": cores_each,
        "images": images,
        "digest": expected,
        "groups": found,
        "join_amid_work": amid,
        "late": begun | {"seconds_without_bases": begun["deltas_written"] * measured.read},
        "costs": asdict(measured),
        "image_seconds": case.image_seconds,
        **simulated(case),
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


def simulated(case: model.Case) -> dict[str, Any]:
    """More and more learners, and what would help the most of them."""
    alone = next(model.series(case, (1,))).images_per_second

    def row(found: model.Found) -> dict[str, float]:
        return asdict(found) | {"efficiency": found.images_per_second / alone / found.learners}

    return {
        "simulated": [row(found) for found in model.series(case, SIMULATED)],
        "remedies": {
            name: row(next(model.series(other, SIMULATED[-1:]))) for name, other in model.remedies(case).items()
        },
    }


def main() -> int:
    parser = cli.parser("Measure what more learners bring.", "filters", "window", "data", "cache")
    parser.add_argument("--images", type=int, default=25_600, metavar="N", help="of each group (default: 25,600)")
    parser.add_argument(
        "--cores-each", type=int, default=0, metavar="N", help="of each learner's own (default: all share all cores)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="where to write (default: docs)")
    arguments = parser.parse_args()
    result = measure(cli.settings_of(arguments), arguments.images, arguments.cores_each)
    (arguments.out / "scale.md").write_text(page.text(result))
    page.draw(result, arguments.out / "scale.png")
    sys.stdout.write(orjson.dumps(result).decode() + "\n" if arguments.json else page.text(result))
    holds = all(g["each_once"] and g["digest"] == result["digest"] for g in result["groups"])
    return 0 if holds else 1


if __name__ == "__main__":
    cli.run(main)
