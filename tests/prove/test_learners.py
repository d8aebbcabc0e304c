"""One, two and four learners of one group over Kafka, 20 times killed, paused for longer than their session, or joined
by others that leave again: one digest, and each image is predicted once."""

import random
import signal
import uuid
from pathlib import Path

import pytest

from tests.kafka.learners import PARTITIONS, Learners, learners, pause
from tests.prove.harness import LABELLED, PROOF, RealPlace, digest, learnt, mixed, records

pytestmark = PROOF

MISHAPS = 20
REAL = ("--batch-size", 256)


def befall(group: Learners, rng: random.Random) -> None:
    """Kill one, and start another; or pause one: another joins meanwhile, and then leaves."""
    victim = rng.choice(group.running)
    if rng.random() < 0.7:
        group.kill(victim)
        group.start(*REAL)
        return
    other = group.start(*REAL)
    pause(victim, 5.0)
    other.send_signal(signal.SIGTERM)
    other.communicate()
    group.running.remove(other)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_whatever_befalls_learners_they_come_to_the_digest_of_one(
    count: int, tmp_path: Path, kafka_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, rng = mixed(LABELLED), random.Random(count)
    place = RealPlace(tmp_path, kafka_url, f"t{uuid.uuid4()}.")
    place.send(records(stream), PARTITIONS)
    with learners(place) as group:
        for _ in range(count):
            group.start(*REAL)
        for n in range(MISHAPS):
            group.work_to(int(0.9 * LABELLED * (n + rng.random()) / MISHAPS))
            befall(group, rng)
        group.work_to_the_end()
        for process in list(group.running):
            group.stop(process)
    summary = place.learn(capsys, "--images", 0, "--snapshots", tmp_path / "last")
    assert summary["digest"] == digest(learnt(stream, range(LABELLED)))
    assert place.served_once(stream)
