"""The learner ``marketplace`` over a real Kafka broker: one in a group, and the bits that it has without a broker."""

import signal
import uuid
from pathlib import Path

import pytest

from consumers.learn import main
from pipeline.broker.kafka.broker import KafkaBroker
from pipeline.errors import GroupBusyError
from tests.consumers.harness import Place, each_once, records
from tests.consumers.test_marketplace import digest_of, paths

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, kafka_url: str) -> Place:
    return Place(tmp_path, kafka_url, f"t{uuid.uuid4()}.")


def test_killed_with_9_and_started_again_it_gets_in_and_comes_to_the_same_bits(place: Place, capsys: Capture) -> None:
    total = 640
    place.send(records(total))
    with place.learner(*paths(place, "--snapshot-images", 100)) as process:
        place.await_position(process, 250)
        process.send_signal(signal.SIGKILL)
    summary = place.learn(capsys, *paths(place, "--images", total - len(place.predictions())))
    assert summary["digest"] == digest_of(total)
    assert summary["labelled_images"] == total
    assert each_once(place.predictions(), total)
    place.lose_snapshots()
    assert place.learn(capsys, *paths(place, "--images", 0))["digest"] == summary["digest"]


@pytest.mark.parametrize(("seen", "partitions"), [(True, 3), (False, 1)], ids=["seen", "not seen before it joins"])
def test_a_second_learner_is_refused_with_the_reason_and_the_first_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, seen: bool, partitions: int
) -> None:
    some = records(240)
    place.send(some[:120], partitions)
    with place.learner(*paths(place, "--batch-wait", 0.05)) as process:
        place.await_position(process, 120)
        if not seen:  # as when two are started at the same moment
            monkeypatch.setattr(KafkaBroker, "members", lambda *_: 0)
        with pytest.raises(GroupBusyError, match=r"one learner already: .*cannot be shared: .*--learner clearing"):
            main(place.flags(*paths(place, "--snapshots", place.folder / "other")))
        place.send(some[120:], partitions)
        place.await_position(process, 240)
    assert each_once(place.predictions(), 240)
