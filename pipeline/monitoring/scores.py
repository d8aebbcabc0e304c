"""Scores tell how well each class was predicted before its label was known, lately and ever."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = ""
"""The prediction of an image that came before any class was known. It is always wrong: no class has this name."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The scores of one class.

    Attributes
    ----------
    images
        Its images so far.
    correct
        Those of them that were predicted right.
    rolling
        Accuracy over its last ``recent`` images, from 0 to 1.
    forgetting
        The best accuracy over a full window so far, less the present one. 0 until its window is full.
    recent
        Images that ``rolling`` is over: as many as the window holds, or all while there are fewer.
    """

    name: str
    images: int
    correct: int
    rolling: float
    forgetting: float
    recent: int


class _Window:
    """The last ``size`` outcomes of something, and the most right ones that a full window has held."""

    def __init__(self, size: int) -> None:
        self.outcomes: deque[bool] = deque(maxlen=size)
        self.right = 0
        self.best = 0

    def add(self, right: bool) -> None:
        if len(self.outcomes) == self.outcomes.maxlen:
            self.right -= self.outcomes[0]
        self.outcomes.append(right)
        self.right += right
        if len(self.outcomes) == self.outcomes.maxlen:
            self.best = max(self.best, self.right)

    @property
    def accuracy(self) -> float:
        return self.right / len(self.outcomes) if self.outcomes else 0.0

    @property
    def forgetting(self) -> float:
        return max(0, self.best - self.right) / (self.outcomes.maxlen or 1)


class Scores:
    """Prequential scores: every image is predicted first and counted then. Any thread may read them.

    Parameters
    ----------
    window
        Rolling accuracy is over so many last images, of each class and of all classes together. Forgetting stays 0
        until a class has had so many, because the best of a handful of images says nothing.
    """

    def __init__(self, window: int) -> None:
        self._lock = threading.Lock()
        self._window = window
        self._confusion: Counter[tuple[str, str]] = Counter()
        self._windows: dict[str, _Window] = {}
        self._overall = _Window(window)

    def add(self, outcomes: Iterable[tuple[str, str | None]]) -> None:
        """Count images in the order of the stream. Each is a label and the predicted class, or None for no class."""
        with self._lock:
            for label, predicted in outcomes:
                right = label == predicted
                self._confusion[label, predicted or NOTHING] += 1
                self._overall.add(right)
                if label not in self._windows:
                    self._windows[label] = _Window(self._window)
                self._windows[label].add(right)

    def classes(self) -> list[ClassScore]:
        """The scores of every class that was a label, in the order of appearance."""
        images = Counter[str]()
        with self._lock:
            for (label, _), count in self._confusion.items():
                images[label] += count
            return [
                ClassScore(name, images[name], self._confusion[name, name], w.accuracy, w.forgetting, len(w.outcomes))
                for name, w in self._windows.items()
            ]

    def names(self) -> list[str]:
        """Every class that was a label or a prediction, in the order of appearance."""
        with self._lock:
            return list(dict.fromkeys(name for pair in self._confusion for name in pair if name != NOTHING))

    def confusion(self) -> dict[tuple[str, str], int]:
        """How many images had this label and this prediction. NOTHING stands for no prediction."""
        with self._lock:
            return dict(self._confusion)

    @property
    def images(self) -> int:
        """Labelled images so far."""
        return sum(self.confusion().values())

    @property
    def correct(self) -> int:
        """Those of them that were predicted right."""
        return sum(count for (label, predicted), count in self.confusion().items() if label == predicted)

    @property
    def rolling(self) -> float:
        """Rolling accuracy over the last images of any class."""
        with self._lock:
            return self._overall.accuracy

    @property
    def recent(self) -> int:
        """Images that ``rolling`` is over."""
        with self._lock:
            return len(self._overall.outcomes)

    def state(self) -> dict[str, Any]:
        """All that was counted, fit for JSON. ``restored`` makes scores of it."""
        with self._lock:
            return {
                "window": self._window,
                "overall": _packed(self._overall),
                "classes": {name: _packed(w) for name, w in self._windows.items()},
                "confusion": [[*pair, count] for pair, count in self._confusion.items()],
            }

    @classmethod
    def restored(cls, state: Mapping[str, Any], window: int) -> "Scores":
        """Scores that go on where ``state`` was taken.

        Where ``state`` had windows of another size, the outcomes that these held are counted anew.
        """
        scores = cls(window)
        scores._confusion.update({(label, predicted): count for label, predicted, count in state["confusion"]})
        same = state["window"] == window
        scores._overall = _unpacked(state["overall"], window, same)
        scores._windows = {name: _unpacked(w, window, same) for name, w in state["classes"].items()}
        return scores


def _packed(window: _Window) -> list[Any]:
    return ["".join("01"[right] for right in window.outcomes), window.best]


def _unpacked(packed: list[Any], size: int, same: bool) -> _Window:
    window = _Window(size)
    for outcome in packed[0]:
        window.add(outcome == "1")
    if same:
        window.best = packed[1]
    return window
