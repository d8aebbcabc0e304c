"""The consumer: every image is predicted once and learnt once, whatever happens."""

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumers.learn import main
from pipeline.broker import Record, Topic
from pipeline.errors import SnapshotError
from pipeline.records.images import REASONS
from tests.consumers.harness import Place, digest_of, each_once, records

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_every_image_is_predicted_once_and_learnt(place: Place, capsys: Capture) -> None:
    place.send(records(600))
    summary = place.learn(capsys, "--images", 600)
    assert summary["digest"] == digest_of(600) == place.newest().digest
    assert each_once(place.predictions(), 600)
    assert summary["accuracy"] > 0.8
    assert summary["settled_images"] == summary["records"] == 600


def test_predictions_say_what_was_served_and_by_whom(place: Place, capsys: Capture) -> None:
    place.send(records(300))
    place.learn(capsys, "--images", 300)
    last = place.predictions()[-1]
    scores = list(last["scores"].values())
    assert next(iter(last["scores"])) == last["predicted"]
    assert scores == sorted(scores, reverse=True)
    assert 1 < len(scores) <= 5
    assert (last["group"], last["source"], last["offset"]) == ("learn", "/test/phase", 299)
    assert last["generation"] > 0


def test_the_second_micro_batch_is_served_by_what_the_first_one_taught(place: Place, capsys: Capture) -> None:
    place.send(records(96))
    place.learn(capsys, "--images", 96)
    assert [p["generation"] for p in place.predictions()][:64] == [0] * 32 + [1] * 32


def test_at_first_it_takes_no_more_than_half_of_what_it_knows(place: Place, capsys: Capture) -> None:
    place.send(records(400))
    place.learn(capsys, "--batch-size", 128, "--images", 400)
    journal = [json.loads(message.value) for message in place.topic("updates")]
    assert [entry["images"] for entry in journal] == [32, 32, 32, 48, 72, 108, 76]
    place.send(records(200))
    place.learn(capsys, "--batch-size", 128, "--images", 200)
    assert json.loads(place.topic("updates")[len(journal)].value)["images"] == 128


def test_a_stream_without_labels_comes_in_full_micro_batches_too(place: Place, capsys: Capture) -> None:
    place.send([r._replace(headers=tuple(h for h in r.headers if h[0] != "ce_label")) for r in records(500)])
    assert place.learn(capsys, "--batch-size", 64, "--images", 500)["settled_images"] == 0
    journal = [json.loads(message.value) for message in place.topic("updates")]
    assert max(entry["images"] for entry in journal) == 64


def test_stopped_before_it_took_over_it_claims_no_score_of_the_group(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send(records(96))
    place.learn(capsys, "--images", 64)

    @contextmanager
    def stopped(_patience: float) -> Iterator[threading.Event]:
        stop = threading.Event()
        stop.set()
        yield stop

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cli.stop_on_signals", stopped)
        assert place.learn(capsys)["labelled_images"] == 0
    assert place.learn(capsys, "--images", 32)["labelled_images"] == 96


def test_the_journal_tells_every_micro_batch(place: Place, capsys: Capture) -> None:
    place.send(records(300))
    summary = place.learn(capsys, "--images", 300)
    journal = [json.loads(message.value) for message in place.topic("updates")]
    assert [entry["from"]["0"] for entry in journal[1:]] == [entry["to"]["0"] for entry in journal[:-1]]
    assert (journal[0]["from"]["0"], journal[-1]["to"]["0"]) == (0, 300)
    assert sum(sum(entry["total"].values()) for entry in journal) == 300
    assert sum(sum(entry["right"].values()) for entry in journal) == summary["accuracy"] * 300


def test_several_partitions_and_batch_sizes_give_the_same_digest(place: Place, capsys: Capture) -> None:
    place.send(records(400), partitions=3)
    assert place.learn(capsys, "--images", 400, "--batch-size", 100)["digest"] == digest_of(400)


def test_sigterm_stops_cleanly_and_scores_go_on_where_they_were(place: Place, capsys: Capture) -> None:
    place.send(records(640))
    with place.broker() as broker:
        broker.ensure_topics([Topic("predictions")])
        watch = broker.consumer("watch", "predictions")
        with place.learner() as process:
            assert watch.poll(1, 30.0)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
            assert process.returncode == 0
        first = json.loads(out)
    position = place.position()
    assert first["labelled_images"] == position == place.newest().clock[0]
    if position < 640:
        place.learn(capsys, "--images", 640 - position)
    again = place.learn(capsys, "--images", 0)
    assert again["labelled_images"] == 640
    right = [p["predicted"] == p["label"] for p in place.predictions()]
    assert again["accuracy"] == sum(right) / 640
    assert again["digest"] == digest_of(640)


def broken(record: Record, kind: int) -> Record:
    """The record, made unreadable in one of several ways."""
    headers = dict(record.headers)
    value = record.value
    if kind == 0:
        value = value[:-1]
    elif kind == 1:
        del headers["ce_id"]
    elif kind == 2:
        headers["content-type"] = b"image/png"
    elif kind == 3:
        headers["ce_label"] = b"\xff"
    elif kind == 4:
        headers["ce_type"] = b"marketstream.image.v2"
    elif kind == 5:
        headers["ce_shape"] = b"32,32"
    elif kind == 6:
        value, headers = b"", {}
    return Record(record.topic, value, record.key, tuple(headers.items()))


def test_what_cannot_be_read_is_a_dead_letter_and_the_rest_is_learnt(place: Place, capsys: Capture) -> None:
    some = []
    for i, record in enumerate(records(350)):
        some += [record, broken(record, i % 7)]
    place.send(some)
    summary = place.learn(capsys, "--images", 700)
    assert summary["digest"] == digest_of(350)
    assert summary["dead_letters"] == 350
    dead = place.topic("dead-letters")
    assert len(dead) == 350
    for letter, original in zip(dead, some[1::2], strict=True):
        headers = dict(letter.headers)
        assert (letter.key, letter.value) == (original.key, original.value)
        assert letter.headers[: len(original.headers)] == original.headers
        assert headers["dead_reason"].decode() in REASONS
        assert headers["dead_text"]
        assert some[int(headers["dead_offset"])] == original


def test_a_micro_batch_of_nothing_but_dead_letters_is_passed(place: Place, capsys: Capture) -> None:
    bad = [broken(record, 0) for record in records(64)]
    place.send([*bad, *records(64), *bad])  # nothing is known yet, then four classes are
    summary = place.learn(capsys, "--images", 192)
    assert (summary["dead_letters"], summary["digest"]) == (128, digest_of(64))


def test_the_class_past_the_bound_is_a_dead_letter(
    place: Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.images.MOST_CLASSES", 3)
    place.send(records(100))
    summary = place.learn(capsys, "--images", 100)
    assert len(summary["classes"]) == 3
    dead = place.topic("dead-letters")
    assert {dict(m.headers)["dead_reason"] for m in dead} == {b"classes"}
    assert summary["labelled_images"] + len(dead) == 100


def test_a_frozen_consumer_serves_and_does_not_learn(place: Place, capsys: Capture) -> None:
    place.send(records(300))
    learnt = place.learn(capsys, "--images", 300)
    place.send(records(200, seed=1))
    frozen = place.learn(capsys, "--images", 200, "--freeze")
    assert frozen["digest"] == learnt["digest"]
    assert frozen["accuracy"] > 0.9
    assert each_once(place.predictions("learn-frozen"), 200, seed=1)
    assert len(place.topic("updates")) > 0
    learnt = place.learn(capsys, "--images", 200)  # what was served frozen meanwhile is still learnt afterwards
    assert learnt["settled_images"] == 500


def test_frozen_without_a_model_is_refused(place: Place) -> None:
    place.send(records(1))
    with pytest.raises(SnapshotError, match=r"nothing to serve: no snapshot in .*; name one with --snapshot"):
        main(place.flags("--freeze"))


def test_learning_begins_with_an_earlier_model(tmp_path: Path, capsys: Capture) -> None:
    first, second = Place(tmp_path / "a"), Place(tmp_path / "b")
    first.send(records(300))
    first.learn(capsys, "--images", 300)
    model = next(first.folder.rglob("*.safetensors"))
    second.send(records(300, seed=1))
    summary = second.learn(capsys, "--images", 200, "--snapshot", model)
    assert summary["accuracy"] > 0.95
    again = second.learn(capsys, "--images", 100, "--snapshot", model)  # the same command goes on
    assert again["settled_images"] == 600
    assert again["digest"] != digest_of(300, seed=1)


def test_another_model_for_a_group_that_has_learnt_is_refused(tmp_path: Path, capsys: Capture) -> None:
    first, second = Place(tmp_path / "a"), Place(tmp_path / "b")
    for place in (first, second):
        place.send(records(100))
        place.learn(capsys, "--images", 100)
    model = next(first.folder.rglob("*.safetensors"))
    with pytest.raises(SnapshotError, match="did not begin with that model: choose another --group"):
        main(second.flags("--snapshot", model, "--images", 0))


def test_a_learner_of_another_identity_is_refused_with_the_difference(place: Place, capsys: Capture) -> None:
    place.send(records(100))
    place.learn(capsys, "--images", 100)
    with pytest.raises(SnapshotError, match=r"another identity \(.*filters 4 is not 5.*\): use the settings"):
        main(place.flags("--images", 0, "--filters", 5))


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health_over_http(place: Place) -> None:
    some = records(640)
    place.send([*some, broken(some[0], 0)])
    with place.broker() as broker, place.learner() as process:
        broker.ensure_topics([Topic("updates")])
        journal = broker.consumer("watch", "updates")
        done = 0
        while done < 641:  # images and dead letters
            messages = journal.poll(100, 30.0)
            assert messages, "nothing came for thirty seconds"
            for message in messages:
                entry: dict[str, Any] = json.loads(message.value)
                done += entry["images"] + entry["dead"]
        assert process.stderr is not None
        line = next(line for line in process.stderr if "metrics at" in line)
        port = int(line.rsplit(":", 1)[1].split("/")[0])
        samples: dict[str, float] = {}
        while samples.get("marketplace_dead_letters_totallength") != 1:  # the last commit lands within half a second
            status, text = get(port, "/metrics")
            assert status == 200
            samples = {
                s.name + "".join(s.labels.values()): s.value
                for family in text_string_to_metric_families(text)
                for s in family.samples
            }
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/other")[0] == 404
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    for name, score in json.loads(out)["classes"].items():
        assert samples[f"marketplace_images_total{name}"] == score["images"]
        assert samples[f"marketplace_correct_total{name}"] == score["correct"]
        assert samples[f"marketplace_rolling_accuracy_ratio{name}"] == pytest.approx(score["rolling"])
        assert f"marketplace_forgetting_ratio{name}" in samples
    assert samples["marketplace_model_images"] == samples["marketplace_settled_images_total"] == 640
    assert samples["marketplace_at_work"] == 1
    assert samples["marketplace_consumer_lag_records0"] == 0
    assert samples["marketplace_generation"] > 0
    assert samples["marketplace_quote_seconds_count"] > 0
    assert samples["marketplace_last_clear_timestamp_seconds"] > 0
