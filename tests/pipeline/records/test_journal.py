"""The journal's records: read as they were written, or refused in one line."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.broker import Message
from pipeline.errors import TopicError
from pipeline.records import topics
from pipeline.records.journal import decode

ENTRY = {
    "from": {"0": 256, "2": 0},
    "to": {"0": 500, "2": 12},
    "images": 255,
    "dead": 1,
    "total": {"Dress": 200, "3": 50},
    "right": {"Dress": 150, "3": 25},
    "generation": 4,
    "learnt": True,
    "time": 1.8e9,
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def message(value: bytes) -> Message:
    return Message("updates", 0, 17, 0, b"learn", value, ())


def record(entry: Mapping[str, Any]) -> bytes:
    return topics.journal("updates", "learn", entry).value


def test_what_the_learner_wrote_is_read() -> None:
    one = decode(message(record(ENTRY)))
    assert (one.number, one.group, one.time, one.generation) == (17, "learn", 1.8e9, 4)
    assert (one.begin, one.end) == ({0: 256, 2: 0}, {0: 500, 2: 12})
    assert (one.images, one.dead, one.total, one.right) == (255, 1, ENTRY["total"], ENTRY["right"])
    assert (one.labelled, one.settled, one.accuracy) == (250, 250, 0.7)


def test_without_labels_there_is_no_accuracy() -> None:
    assert decode(message(record(ENTRY | {"total": {}, "right": {}}))).accuracy is None


def test_a_frozen_learner_settles_nothing() -> None:
    one = decode(message(record(ENTRY | {"learnt": False})))
    assert (one.labelled, one.settled) == (250, 0)


def test_fields_of_a_later_program_are_ignored() -> None:
    assert decode(message(record(ENTRY | {"coefficients": [1, 2]}))) == decode(message(record(ENTRY)))


@pytest.mark.parametrize("name", [*ENTRY, "v", "group"])
def test_a_missing_field_is_named(name: str) -> None:
    fields = json.loads(record(ENTRY))
    del fields[name]
    with pytest.raises(TopicError, match=rf"^topic updates, offset 17: not a micro-batch .*: {name}: Field required"):
        decode(message(json.dumps(fields).encode()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("v", 2), ("images", -1), ("time", -1), ("time", 1e300), ("from", {"x": 1}), ("total", {"a": "b"}), ("learnt", 7)],
)
def test_a_field_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(TopicError, match=f": {name}"):
        decode(message(json.dumps(json.loads(record(ENTRY)) | {name: value}).encode()))


@given(st.sampled_from([*ENTRY, "v", "group"]), anything)
def test_any_value_of_a_field_is_read_or_refused_in_one_line(name: str, value: object) -> None:
    problem = ""
    try:
        one = decode(message(json.dumps(json.loads(record(ENTRY)) | {name: value}).encode()))
        assert one.labelled >= 0
        assert one.accuracy is None or one.accuracy >= 0
    except TopicError as error:
        problem = str(error)
    assert "\n" not in problem


@given(st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_journal_entry_is_refused(value: bytes) -> None:
    with pytest.raises(TopicError):
        decode(message(value))
