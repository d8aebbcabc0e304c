"""10,000 malformed records among 2,000 sound ones are dead letters; the rest is learnt as if they were not there."""

import random
from pathlib import Path

import pytest

from pipeline.broker import Record
from tests.prove.harness import PROOF, RealPlace, digest, learnt, mixed, records

pytestmark = PROOF

SOUND, MALFORMED = 2_000, 10_000


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
    return record._replace(value=value, headers=tuple(headers.items()))


def test_malformed_records_are_dead_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream, rng, place = mixed(SOUND), random.Random(2), RealPlace(tmp_path)
    sound = records(stream)
    some = sound + [malformed(rng.choice(sound), rng) for _ in range(MALFORMED)]
    rng.shuffle(some)
    place.send(some)
    summary = place.learn(capsys, "--images", len(some))
    assert summary["dead_letters"] == len(place.topic("dead-letters")) == MALFORMED
    assert summary["digest"] == digest(learnt(stream, range(SOUND)))
    assert place.served_once(stream)
