"""Scenarios: what the file says is what the stream is, and a wrong file is refused with its line."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.datasets import CLASSES, DIGITS, FASHION, Name, Split
from pipeline.data.scenario import SHIPPED, Scenario, load
from pipeline.data.stream import Stream, make_stream
from pipeline.errors import ScenarioError
from pipeline.records.images import encode

GOOD = """\
name: small
about: For tests.
phases:
  - name: first
    images: 32
    classes: {digits: 3, Dress: 1}
  - name: second
    images: 40
    classes: {fashion: 1, 3: 1}
"""
MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)


def splits(*counts: int) -> dict[Name, Split]:
    """Both data sets with so many images of each of the ten classes, in turns; image i begins with i in 4 bytes."""
    labels = np.concatenate([np.full(count, label, np.uint8) for label, count in enumerate(counts)])
    labels = labels[np.argsort(np.arange(len(labels)) * 7919 % len(labels), kind="stable")]
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 0, :4] = np.arange(len(labels), dtype=">u4").view(np.uint8).reshape(-1, 4)
    names: tuple[Name, Name] = ("mnist", "fashion-mnist")
    return {name: Split(name, "train", images, labels) for name in names}


def write(directory: Path, text: str) -> str:
    path = directory / "small.yaml"
    path.write_text(text)
    return str(path)


def stream(made: Stream) -> str:
    """A hash of all bytes of all records."""
    digest = hashlib.sha256()
    for position in range(len(made)):
        record = encode(made.record(position), "images")
        digest.update(repr((record.key, record.headers, record.value)).encode())
    return digest.hexdigest()


@pytest.fixture
def small(tmp_path: Path) -> Scenario:
    return load(write(tmp_path, GOOD))


def test_the_same_file_and_seed_give_the_same_stream_byte_for_byte_on_any_machine(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, GOOD), seed=5)
    assert scenario.digest() == "dba2b1f0df59509b202a1ecdeafa1d9c48177596e4e1818cc20612a4eccd4050"
    assert (
        stream(make_stream(scenario, splits(*[30] * 10)))
        == "68344c4f159f532fe8938e2f4bd490839fb5db0361ed2f7e89b3e586258a708a"
    )


def test_another_seed_gives_another_stream(small: Scenario, tmp_path: Path) -> None:
    other = load(write(tmp_path, GOOD), seed=1)
    assert other.digest() != small.digest()
    assert (make_stream(other, splits(*[30] * 10)).numbers != make_stream(small, splits(*[30] * 10)).numbers).any()


def test_the_digest_knows_what_changes_the_stream_and_nothing_else(small: Scenario, tmp_path: Path) -> None:
    same = GOOD.replace("For tests", "For all").replace("{digits: 3, Dress: 1}", "{Dress: 1, digits: 3}\n    rate: 5")
    assert load(write(tmp_path, same)).digest() == small.digest()
    for old, new in (("Dress: 1", "Dress: 2"), ("images: 32", "images: 36"), ("name: second", "name: third")):
        assert load(write(tmp_path, GOOD.replace(old, new))).digest() != small.digest()


def test_shares_are_exact_in_every_block_of_a_phase(small: Scenario) -> None:
    labels = make_stream(small, splits(*[30] * 10)).labels
    for start in range(0, 32, 4):
        assert Counter(label == "Dress" for label in labels[start : start + 4]) == {False: 3, True: 1}
    for start in range(32, 72, 2):
        assert Counter(label == "3" for label in labels[start : start + 2]) == {False: 1, True: 1}


entries = st.dictionaries(
    st.sampled_from([*CLASSES, "digits", "fashion", "all"]), st.integers(1, 5), min_size=1, max_size=4
)


@settings(max_examples=50)
@given(st.lists(st.tuples(entries, st.integers(1, 60)), min_size=1, max_size=3), st.booleans())
def test_overlapping_classes_never_take_an_image_twice_and_with_repeat_only_once_all_are_used(
    tmp_path_factory: pytest.TempPathFactory, phases: list[tuple[dict[str, int], int]], repeat: bool
) -> None:
    listed = [{"name": f"p{i}", "images": n, "classes": shares} for i, (shares, n) in enumerate(phases)]
    text = yaml.safe_dump({"name": "x", "about": "x", "repeat": repeat, "phases": listed})
    scenario = load(write(tmp_path_factory.mktemp("scenario"), text))
    made = make_stream(scenario, splits(*[3 if repeat else 60 * 3] * 10))
    times = Counter(made.numbers.tolist())
    assert sum(times.values()) == scenario.images
    if not repeat:
        assert max(times.values()) == 1
    elif len(phases) == len(phases[0][0]) == 1:
        pool = {"digits": 30, "fashion": 30, "all": 60}.get(next(iter(phases[0][0])), 3)
        assert max(times.values()) == -(-scenario.images // pool)


def test_repeat_starts_over_in_another_order(tmp_path: Path) -> None:
    text = "name: x\nabout: x\nrepeat: true\nphases:\n  - {name: a, images: 60, classes: {Dress: 1}}\n"
    numbers = make_stream(load(write(tmp_path, text)), splits(*[30] * 10)).numbers
    assert set(numbers[:30]) == set(numbers[30:])
    assert (numbers[:30] != numbers[30:]).any()


def test_records_name_run_phase_and_image_and_agree_with_the_arrays(small: Scenario) -> None:
    data = splits(*[30] * 10)
    made = make_stream(small, data, run="run-7")
    images = made.images(0, len(made))
    assert made.images(30, 35).tolist() == images[30:35].tolist()
    assert [(span.phase.name, span.start, span.stop) for span in made.phases] == [("first", 0, 32), ("second", 32, 72)]
    for position in range(len(made)):
        record = made.record(position)
        assert record.id == f"run-7/{position:08d}"
        assert record.source == ("/small/first" if position < 32 else "/small/second")
        assert record.pixels == images[position].tobytes()
        assert record.time is None
        dataset, part, index = (record.subject or "").split("/")
        split = data["mnist" if dataset == "mnist" else "fashion-mnist"]
        assert part == "train"
        assert record.label == made.labels[position] == split.classes[split.labels[int(index)]]
        assert record.pixels == split.images[int(index)].tobytes()


def test_labelled_is_the_share_of_records_with_a_label(tmp_path: Path) -> None:
    text = GOOD.replace("images: 32", "images: 1600\n    labelled: 0.25").replace("images: 40", "images: 9")
    labels = make_stream(load(write(tmp_path, text)), splits(*[900] * 10)).labels
    assert 320 < sum(label is not None for label in labels[:1600]) < 480
    assert None not in labels[1600:]
    unlabelled = load(write(tmp_path, GOOD.replace("images: 32", "images: 32\n    labelled: 0")))
    assert set(make_stream(unlabelled, splits(*[30] * 10)).labels[:32]) == {None}


def test_a_class_may_be_given_another_label_and_its_images_stay_what_they_are(small: Scenario, tmp_path: Path) -> None:
    renamed = load(write(tmp_path, change("phases:", 'labels: {Dress: "3"}\nphases:')))
    own, other = make_stream(small, splits(*[30] * 10)), make_stream(renamed, splits(*[30] * 10))
    assert own.numbers.tolist() == other.numbers.tolist()
    assert [{"Dress": "3"}.get(str(label), label) for label in own.labels] == list(other.labels)
    assert renamed.digest() != small.digest()


def test_images_are_drawn_from_the_first_ones_of_an_entry_only_in_the_phase_that_says_so(tmp_path: Path) -> None:
    text = change("{digits: 3, Dress: 1}", "{digits: 3, Dress: 1}\n    first: {digits: 24, Dress: 8}")
    scenario, data = load(write(tmp_path, text)), splits(*[30] * 10)
    made = make_stream(scenario, data)
    assert set(made.numbers[:32]) == {*range(24), *(300 + np.flatnonzero(data["fashion-mnist"].labels == 3)[:8])}
    assert scenario.digest() != load(write(tmp_path, GOOD)).digest()


def test_published_is_the_same_micro_batch_again_and_again() -> None:
    scenario = load("published", images=256 * 4)
    made = make_stream(scenario, splits(*[300] * 10))
    first = sorted(made.numbers[:256])
    assert Counter(made.labels)["Dress"] == 0
    assert len(set(first)) == 256
    assert all(sorted(made.numbers[start : start + 256]) == first for start in range(0, len(made), 256))


@pytest.mark.parametrize("images", [1, 31, 32, 33, 72])
def test_a_cut_stream_is_the_beginning_of_the_whole_one(tmp_path: Path, images: int) -> None:
    whole, cut = load(write(tmp_path, GOOD)), load(write(tmp_path, GOOD), images=images)
    assert (cut.images, cut.digest()) == (images, whole.digest())
    data = splits(*[30] * 10)
    assert make_stream(cut, data).numbers.tolist() == make_stream(whole, data).numbers[:images].tolist()
    assert make_stream(cut, data).labels == make_stream(whole, data).labels[:images]


def test_more_images_than_the_file_has_let_the_last_phase_go_on(tmp_path: Path) -> None:
    data = splits(*[90] * 10)
    whole, more = load(write(tmp_path, GOOD)), load(write(tmp_path, GOOD), images=100)
    assert [phase.images for phase in more.phases] == [32, 68]
    assert make_stream(more, data).numbers[:72].tolist() == make_stream(whole, data).numbers.tolist()


def test_more_images_than_exist_are_refused_with_the_line_of_the_class(small: Scenario) -> None:
    with pytest.raises(ScenarioError, match=r"small\.yaml:6: phases\[0\]\.classes\.Dress: its 5 images are used up"):
        make_stream(small, splits(*[5] * 10))


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


WRONG = [
    ("", "1: input should be a valid dictionary"),
    (change("about: For tests.", "about:\tFor\n\ttests."), "2: not YAML: found character"),
    (change("{digits: 3, Dress: 1}", "{digits: 3, Dress: 1"), "7: not YAML: expected ',' or '}'"),
    (change("about: For tests.", "about: For tests.\nname: again"), "3: name: comes twice"),
    (change("Dress: 1", "digits: 1"), "6: digits: comes twice"),
    (change("Dress: 1", "Dres: 1"), "6: phases[0].classes.Dres: no such class; did you mean Dress?"),
    (change("Dress: 1", "ankle boots: 1"), "6: phases[0].classes.ankle boots: no such class; did you mean Ankle boot?"),
    (
        change("Dress: 1", "Dress: 0"),
        "6: phases[0].classes.Dress: input should be greater than or equal to 1, but it is",
    ),
    (change("Dress: 1", "Dress: 1.5"), "6: phases[0].classes.Dress: input should be a valid integer, but it is 1.5"),
    (change("Dress: 1", "Dress: yes"), "6: phases[0].classes.Dress: input should be a valid integer, but it is True"),
    (change("{digits: 3, Dress: 1}", "{}"), "6: phases[0].classes: Dictionary should have at least 1 item"),
    (change("images: 40", "images: -40"), "8: phases[1].images: input should be greater than or equal to 1"),
    (change("    images: 40\n", ""), "7: phases[1].images: missing"),
    (change("images: 40", "image: 40"), "7: phases[1].images: missing"),
    (change("images: 32", "images: 32\n    labeled: 1"), "6: phases[0].labeled: no such key; did you mean labelled?"),
    (change("images: 32", "images: 32\n    labelled: 1.5"), "6: phases[0].labelled: input should be less than"),
    (change("images: 32", "images: 32\n    rate: .inf"), "6: phases[0].rate: input should be a finite number"),
    (change("name: second", "name: first"), "3: phases: two phases have the same name"),
    (change("name: small", "name: Small"), "1: name: string should match pattern"),
    (change("name: small", "name: small\nseed: -1"), "2: seed: input should be greater than or equal to 0"),
    (change("name: small", "name: small\npart: all"), "2: part: input should be 'train' or 'test', but it is 'all'"),
    (change("name: small", "name: 2024-13-45"), "1: not YAML: month must be in 1..12"),
    (change("name: small", "name: !!python/name:os.system x"), "1: not YAML: could not determine a constructor"),
    (change("about: For tests.", "about: &a [*a]"), "2: expected no alias (*) of a mapping or list"),
    (change("name: small", "[name]: small"), "1: expected a name as key"),
    (change("Dress: 1}", "Dress: 1}\n    first: {Dress: 0}"), "7: phases[0].first.Dress: input should be greater than"),
    (change("Dress: 1}", "Dress: 1}\n    first: {Bag: 1}"), "7: phases[0].first: Bag is not among the classes"),
    (change("phases:", "labels: {Dres: '3'}\nphases:"), "3: labels.Dres: no such class; did you mean Dress?"),
    (change("about: For tests.", "about: \x07"), "2: not YAML: character U+0007"),
    (change("about: For tests.", "about: " + "[" * 20_000), "2: nested too deeply"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(write(tmp_path, text))
    assert str(caught.value).partition("small.yaml:")[2].startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: x\nabout: \xe9t\xe9\n")
    with pytest.raises(ScenarioError, match=r"latin\.yaml:2: expected UTF-8"):
        load(str(tmp_path / "latin.yaml"))
    with pytest.raises(ScenarioError, match=r"^mixd: no such scenario; .*\(did you mean mixed\?\)"):
        load("mixd")
    with pytest.raises(ScenarioError, match="images: expected 1 to"):
        load("mixed", images=0)


def test_every_shipped_scenario_says_what_to_watch_and_has_images_enough() -> None:
    data: dict[Name, Split] = {
        "mnist": _empty("mnist", MNIST_TRAIN),
        "fashion-mnist": _empty("fashion-mnist", (6000,) * 10),
    }
    paths = sorted(SHIPPED.glob("*.yaml"))
    assert [path.stem for path in paths] == ["demo", "dress", "mixed", "published-stream", "published", "split"]
    for path in paths:
        assert path.read_text().startswith("# What to watch: ")
        scenario = load(path.stem)
        assert scenario.name == path.stem
        made = make_stream(scenario, data)
        assert len(made) == scenario.images
        assert len(set(made.numbers.tolist())) == (256 if scenario.repeat else len(made))


def _empty(name: Name, counts: tuple[int, ...]) -> Split:
    """Real labels' counts with blank images that take no memory."""
    labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
    return Split(name, "train", np.broadcast_to(np.zeros((28, 28), np.uint8), (len(labels), 28, 28)), labels)


def test_mixed_dress_and_split_have_the_published_proportions() -> None:
    mixed, dress, split = load("mixed"), load("dress"), load("split")
    assert (mixed.images, mixed.phases[0].classes) == (76_800, {"digits": 1, "fashion": 1})
    assert [(phase.images, phase.classes) for phase in dress.phases] == [
        (10_240, {"digits": 1}),
        (25_600, {"digits": 240, "Dress": 16}),
    ]
    assert {phase.images for phase in split.phases} == {7_680}
    assert [tuple(phase.classes) for phase in split.phases] == [CLASSES[i : i + 2] for i in range(0, 20, 2)]
    assert DIGITS + FASHION == CLASSES
