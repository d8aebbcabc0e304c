"""Scores: what they count is what a person would count by hand, also across a restart."""

import json
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitoring.scores import NOTHING, ClassScore, Scores

Outcome = tuple[str, str | None]

OUTCOMES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "d", None])), max_size=80)
WINDOWS = st.integers(1, 12)


def scores_of(outcomes: Sequence[Outcome], window: int) -> Scores:
    scores = Scores(window)
    scores.add(outcomes)
    return scores


def through_json(scores: Scores, window: int) -> Scores:
    """The same scores after a restart with a window of this size."""
    return Scores.restored(json.loads(json.dumps(scores.state())), window)


def by_hand(outcomes: Sequence[Outcome], name: str, window: int) -> ClassScore:
    """The definitions, read aloud."""
    right = [label == predicted for label, predicted in outcomes if label == name]
    last = right[-window:]
    full = [sum(right[end - window : end]) / window for end in range(window, len(right) + 1)]
    rolling = sum(last) / len(last)
    forgetting = max(full) - rolling if full else 0.0
    return ClassScore(name, len(right), sum(right), rolling, forgetting, len(last))


def rounded(score: ClassScore) -> tuple[object, ...]:
    ratios = round(score.rolling, 12), round(score.forgetting, 12)
    return score.name, score.images, score.correct, ratios, score.recent


def visible(scores: Scores) -> tuple[object, ...]:
    """Everything that scores show."""
    return scores.classes(), scores.confusion(), scores.images, scores.correct, scores.rolling


@given(OUTCOMES, WINDOWS)
def test_each_class_is_scored_over_its_own_last_images(outcomes: list[Outcome], window: int) -> None:
    scores = scores_of(outcomes, window)
    names = list(dict.fromkeys(label for label, _ in outcomes))
    expected = [rounded(by_hand(outcomes, name, window)) for name in names]
    assert [rounded(score) for score in scores.classes()] == expected


@given(OUTCOMES, WINDOWS)
def test_all_classes_together_are_scored_over_the_last_images_of_any(outcomes: list[Outcome], window: int) -> None:
    scores = scores_of(outcomes, window)
    right = [label == predicted for label, predicted in outcomes]
    assert (scores.images, scores.correct) == (len(right), sum(right))
    assert scores.rolling == (sum(right[-window:]) / len(right[-window:]) if right else 0.0)


@given(OUTCOMES)
def test_confusion_counts_every_image_once(outcomes: list[Outcome]) -> None:
    confusion = scores_of(outcomes, 5).confusion()
    assert sum(confusion.values()) == len(outcomes)
    for (label, predicted), count in confusion.items():
        assert count == outcomes.count((label, None if predicted == NOTHING else predicted))


def test_nothing_predicted_counts_as_wrong() -> None:
    scores = scores_of([("a", None), ("a", "a")], 5)
    assert scores.classes() == [ClassScore("a", 2, 1, 0.5, 0.0, 2)]
    assert scores.confusion() == {("a", NOTHING): 1, ("a", "a"): 1}


def test_forgetting_is_0_until_the_window_was_full() -> None:
    right, wrong = ("a", "a"), ("a", "b")
    assert scores_of([right, right, wrong], 4).classes()[0].forgetting == 0.0
    assert scores_of([right, right, wrong, wrong], 4).classes()[0].forgetting == 0.0
    assert scores_of([right, right, wrong, wrong, wrong], 4).classes()[0].forgetting == 0.25


def test_forgetting_is_the_best_less_the_present_and_goes_when_it_is_learnt_again() -> None:
    right, wrong = [("a", "a")] * 4, [("a", "b")] * 4
    assert scores_of([*right, *wrong], 4).classes()[0].forgetting == 1.0
    assert scores_of([*right, *wrong, *right], 4).classes()[0].forgetting == 0.0


@given(OUTCOMES, OUTCOMES, WINDOWS)
def test_a_restart_in_the_middle_changes_nothing(before: list[Outcome], after: list[Outcome], window: int) -> None:
    whole = scores_of([*before, *after], window)
    again = through_json(scores_of(before, window), window)
    again.add(after)
    assert visible(again) == visible(whole)
    assert again.state() == whole.state()


@given(OUTCOMES, OUTCOMES, WINDOWS, WINDOWS)
def test_a_restart_with_a_smaller_window_looks_at_the_newest_images(
    before: list[Outcome], after: list[Outcome], window: int, less: int
) -> None:
    smaller = max(1, window - less)
    again = through_json(scores_of(before, window), smaller)
    again.add(after)
    whole = scores_of([*before, *after], smaller)
    assert [(c.name, c.images, c.correct, c.rolling) for c in again.classes()] == [
        (c.name, c.images, c.correct, c.rolling) for c in whole.classes()
    ]
    assert (again.rolling, again.confusion()) == (whole.rolling, whole.confusion())


def test_a_restart_with_a_larger_window_goes_on_with_the_images_it_knows() -> None:
    again = through_json(scores_of([("a", "b")] * 10 + [("a", "a")] * 3, 3), 6)
    assert again.classes() == [ClassScore("a", 13, 3, 1.0, 0.0, 3)]
    again.add([("a", "b")] * 3)
    assert again.classes() == [ClassScore("a", 16, 3, 0.5, 0.0, 6)]
    again.add([("a", "b")])
    assert again.classes()[0].forgetting == pytest.approx(1 / 6)


def test_a_class_that_is_called_none_is_not_taken_for_nothing() -> None:
    scores = scores_of([("none", None), ("none", "none")], 5)
    again = through_json(scores, 5)
    assert (scores.correct, again.correct) == (1, 1)
    assert again.classes() == scores.classes()


def test_a_reader_in_another_thread_never_sees_half_of_a_micro_batch() -> None:
    scores = Scores(5)
    seen: list[list[ClassScore]] = []
    reader = threading.Thread(target=lambda: seen.append(scores.classes()))

    def outcomes() -> Iterator[Outcome]:
        yield "a", "a"
        reader.start()
        reader.join(0.05)
        assert not seen
        yield "b", "a"

    scores.add(outcomes())
    reader.join(10)
    assert [[c.name for c in classes] for classes in seen] == [["a", "b"]]
