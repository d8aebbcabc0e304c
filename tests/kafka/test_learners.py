"""Several learners in one group over a real Kafka broker learn one model: that of a single, undisturbed one."""

import json
import random
import uuid
from pathlib import Path

import pytest

from consumers.learn import main
from pipeline.errors import SumsError
from pipeline.features import make
from pipeline.group.publishing import LONG_DELTA
from pipeline.history import commands as history
from pipeline.learners.clearing.learner import Clearing
from pipeline.learners.clearing.sums import Sums
from pipeline.learners.identity import ClearingIdentity
from pipeline.records.topics import Topics
from tests.consumers.harness import FILTERS, Place, digest_of, each_once, records
from tests.kafka.learners import PARTITIONS, learners, pause, until
from tests.pipeline.synthetic import stream

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, kafka_url: str) -> Place:
    return Place(tmp_path, kafka_url, f"t{uuid.uuid4()}.")


def check(place: Place, capsys: Capture, total: int) -> None:
    """Whoever comes last, with an empty disk, has the model of one learner that was never disturbed."""
    summary = place.learn(capsys, "--images", 0, "--snapshots", place.folder / "last")
    assert each_once(place.predictions(), total)
    assert summary["digest"] == digest_of(total)
    assert summary["settled_images"] == total


def test_two_learners_come_to_the_digest_of_one_and_each_counts_its_own(place: Place, capsys: Capture) -> None:
    total = 2000
    some = records(total)
    place.send(some[:500], PARTITIONS)
    patient = ("--session-timeout", 30)  # who loses its session and comes back counts for those who are gone too
    with learners(place) as group:
        one = group.start(*patient)
        group.work_to(500)
        two = group.start(*patient)
        place.send(some[500:], PARTITIONS)
        group.work_to_the_end()
        summaries = [group.stop(two), group.stop(one)]
    assert sum(summary["labelled_images"] for summary in summaries) == total
    check(place, capsys, total)


def test_learners_that_are_killed_paused_and_joined_lose_nothing_and_count_nothing_twice(
    place: Place, capsys: Capture
) -> None:
    total, rng = 3200, random.Random(0)
    place.send(records(total), PARTITIONS)
    with learners(place) as group:
        for process in [group.start() for _ in range(3)]:
            group.work_to(int(0.9 * total * rng.random()))
            if rng.random() < 0.5:
                group.kill(process)
            else:
                pause(process, 4.0)  # longer than its session
            group.start()
        group.work_to_the_end()
        for process in list(group.running):
            group.stop(process)
    check(place, capsys, total)


def test_who_comes_late_reads_the_newest_base_and_what_lies_before_it_is_deleted(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.pace.DELETE_SECONDS", 0.0)
    monkeypatch.setattr("consumers.pace.READ_SECONDS", 0.0)  # so that it publishes as often as it can
    monkeypatch.setattr("pipeline.group.publishing.SHORT_DELTA", LONG_DELTA)  # and 16 deltas make a base due
    total = 3200
    place.send(records(total), PARTITIONS)
    place.learn(capsys, "--images", total, "--publish-images", 32)
    with place.broker() as broker:
        sums = Topics(place.prefix).sums(place.group)
        assert broker.extents(sums.topic)[sums].first > 0
    check(place, capsys, total)


def test_more_learners_than_partitions_stand_by_and_take_over(place: Place, capsys: Capture) -> None:
    total = 1600
    place.send(records(total), partitions=1)
    with learners(place) as group:
        one, _ = group.start(), group.start()
        group.work_to(300)
        group.kill(one)
        group.work_to_the_end()
        for process in list(group.running):
            group.stop(process)
    check(place, capsys, total)


def test_a_learner_of_another_identity_is_refused_with_the_difference(place: Place, capsys: Capture) -> None:
    place.send(records(100), PARTITIONS)
    place.learn(capsys, "--images", 100)
    other = ("--images", 0, "--filters", 5, "--snapshots", place.folder / "other")
    with pytest.raises(SumsError, match=r"learner that differs \(.*filters 5 is not 4.*\): use the settings"):
        main(place.flags(*other))


def test_what_is_taken_back_is_taken_back_by_all_once(place: Place, capsys: Capture) -> None:
    place.send(records(200), PARTITIONS)
    where = ("--broker", place.url, "--topic-prefix", place.prefix, "--group", place.group, "--json")
    with learners(place) as group:
        one, two = (group.start("--publish-images", 50) for _ in range(2))
        group.work_to_the_end()
        group.stop(two)

        def take_back() -> bool:
            capsys.readouterr()
            history.main(["retract", *where, "--id", "0/00003", "--yes"])
            return bool(json.loads(capsys.readouterr().out)["done"])

        until(take_back)  # as soon as it is published
        assert not take_back()
        group.stop(one)
    images, labels = stream(200)
    learner = Clearing(make(FILTERS, "blas"), Sums.zero(FILTERS.width))
    kept = [i for i in range(200) if i != 3]
    learner.add(learner.settle(learner.quote(images[kept]), [labels[i] for i in kept]))
    expected = learner.sums().digest(ClearingIdentity.of(FILTERS, "squared").digest)
    again = place.learn(capsys, "--images", 0, "--snapshots", place.folder / "last")
    assert again["digest"] == expected


def test_learners_begin_with_an_earlier_model_which_those_who_come_later_need_not_have(
    place: Place, tmp_path: Path, capsys: Capture
) -> None:
    first = Place(tmp_path / "first")
    first.send(records(300))
    first.learn(capsys, "--images", 300)
    model = next(first.folder.rglob("*.safetensors"))
    place.send(records(300, seed=1), 2)
    begun = place.learn(capsys, "--images", 200, "--snapshot", model, "--snapshots", place.folder / "one")
    assert begun["settled_images"] == 500
    again = place.learn(capsys, "--images", 100, "--snapshots", place.folder / "two")
    assert again["settled_images"] == 600
