"""A learner that is killed with -9 at random moments of its work, 50 times over the embedded broker and 100 times over
Kafka: whoever ends it comes to the digest of one that was never disturbed, and each image is predicted once."""

import random
import uuid
from pathlib import Path

import pytest

from tests.prove.harness import LABELLED, PROOF, RealPlace, digest, learnt, mixed, records

pytestmark = PROOF


@pytest.mark.parametrize(("broker", "times"), [("sqlite", 50), ("kafka", 100)])
def test_kills_at_random_moments_change_nothing(
    broker: str, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    stream, rng = mixed(LABELLED), random.Random(1)
    url = request.getfixturevalue("kafka_url") if broker == "kafka" else ""
    place = RealPlace(tmp_path, url, f"t{uuid.uuid4()}.")
    place.send(records(stream))
    for n in range(times):
        with place.learner() as process:  # which kills it
            place.await_position(process, int(0.9 * LABELLED * (n + rng.random()) / times))
    summary = place.learn(capsys, "--images", LABELLED - len(place.predictions()))
    assert summary["digest"] == digest(learnt(stream, range(LABELLED)))
    assert place.served_once(stream)
