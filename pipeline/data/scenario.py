"""Scenarios: YAML files that say which images come, in which proportions, at what rate, from which seed.

The same file and seed give the same stream, byte for byte, on any machine: all that is random comes from the
raw 64-bit outputs of Philox generators, which unlike ``permutation`` are the same in every version of numpy.
See ``scenarios/`` for the format; ``pipeline.data.stream`` makes a scenario into a stream.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, Self

import orjson
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.data.datasets import CLASSES, DIGITS, FASHION
from pipeline.errors import ScenarioError

KeyPath = tuple[str | int, ...]

DEEPEST = 20
"""Lists and mappings within each other; a scenario has four."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where data came from: a file, and the line of each key (a path of names and places in lists)."""

    file: str = "scenario"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """The line of a key, or if it is not in the file, of what it would be in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: KeyPath, problem: str) -> ScenarioError:
        """``file:line: key: problem``."""
        key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
        return ScenarioError(f"{self.file}:{self.line(path)}: {key + ': ' if key else ''}{problem}")


def read_yaml(path: Path) -> tuple[object, Origin]:
    """The data of a YAML file, all keys of mappings as text, and where it is from.

    Raises ScenarioError for what is not YAML, for a key that comes twice and for aliases.
    """
    reader = _Reader(str(path))
    try:
        return reader.read(path.read_bytes()), Origin(reader.file, reader.lines)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise reader.error(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}") from None


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self._seen: set[int] = set()

    def error(self, line: int, problem: str) -> ScenarioError:
        return ScenarioError(f"{self.file}:{line}: {problem}")

    def read(self, content: bytes) -> object:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise self.error(content.count(b"\n", 0, error.start) + 1, "expected UTF-8") from None
        try:
            self._loader = yaml.SafeLoader(text)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self.error(line, f"not YAML: character U+{ord(text[error.position]):04X}") from None
        self._check_depth(text)
        node = self._loader.get_single_node()
        return None if node is None else self._plain(node, (), node.start_mark.line + 1)

    def _check_depth(self, text: str) -> None:
        """Composing is recursive, and Python's own limit is no help: some libraries raise it when imported."""
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                mark = event.start_mark
                raise self.error(mark.line + 1 if mark else 1, "nested too deeply")

    def _plain(self, node: yaml.Node, path: KeyPath, line: int) -> object:
        self.lines[path] = line
        if isinstance(node, yaml.ScalarNode):
            try:
                return self._loader.construct_object(node)
            except (ValueError, OverflowError) as error:  # a day or a number that cannot be
                raise self.error(line, f"not YAML: {error}") from None
        if id(node) in self._seen:  # an alias could contain itself
            raise self.error(line, "expected no alias (*) of a mapping or list")
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(line, "expected a name as key")
            if key.value in result:
                raise self.error(line, f"{key.value}: comes twice")
            result[key.value] = self._plain(value, (*path, key.value), line)
        return result


SHIPPED = Path(__file__).parents[2] / "scenarios"
GROUPS = {"digits": DIGITS, "fashion": FASHION, "all": CLASSES}
_MOST_IMAGES = 10_000_000


def _known_class(name: str, names: tuple[str, ...] = CLASSES) -> str:
    if name not in names:
        raise PydanticCustomError("entry", "no such class; did you mean {near}?", {"near": _nearest(name, names)})
    return name


Slug = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Entry = Annotated[str, AfterValidator(partial(_known_class, names=(*CLASSES, *GROUPS)))]
Class = Annotated[str, AfterValidator(_known_class)]
Share = Annotated[int, Field(ge=1, le=100_000)]


class Phase(BaseModel):
    """A stretch of the stream with the same proportions throughout.

    Every ``sum(classes.values())`` consecutive images hold exactly that many of each class or group.
    ``labelled`` is the chance of an image to have its label on its record; ``rate`` is in images/s. ``first`` says
    from how many images of an entry, the first in its data set, are drawn; all, where it says nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Slug
    images: int = Field(ge=1, le=_MOST_IMAGES)
    classes: dict[Entry, Share] = Field(min_length=1)
    first: dict[Entry, Share] = Field(default_factory=dict)
    labelled: float = Field(1.0, ge=0, le=1)
    rate: Rate | None = None

    @field_validator("first")
    @classmethod
    def _of_entries(cls, first: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        if strange := set(first).difference(info.data.get("classes", first)):
            raise PydanticCustomError("first", "{entry} is not among the classes", {"entry": min(strange)})
        return first


class Scenario(BaseModel):
    """A whole stream. ``rate`` is in images/s for phases without their own; None: as fast as possible.

    ``labels`` gives classes another label than their own.

    Examples
    --------
    >>> phases = [{"name": "shoes", "images": 300, "classes": {"Sneaker": 2, "Sandal": 1}}]
    >>> scenario = Scenario(name="mine", about="Two shoes.", phases=phases)
    >>> scenario.images, scenario.first(120).images, scenario.digest() == scenario.first(120).digest()
    (300, 120, True)
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Slug
    about: str = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**64)
    rate: Rate | None = None
    repeat: bool = False
    part: Literal["train", "test"] = "train"
    labels: dict[Class, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, strict=False)]

    _origin: Origin = PrivateAttr(default_factory=Origin)
    _digest: str = PrivateAttr("")

    @field_validator("phases")
    @classmethod
    def _distinct_names(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        if len({phase.name for phase in phases}) < len(phases):
            raise PydanticCustomError("names", "two phases have the same name")
        return phases

    @model_validator(mode="after")
    def _take_digest(self) -> Self:
        # Here, and not in digest(): first() leaves it as it is, so that a run can be carried on with more images.
        # What is left out of the file is left out of the hash: it stays what it was before there were such keys.
        content = self.model_dump(include={"name", "seed", "part", "repeat"})
        content |= {"labels": self.labels} if self.labels else {}
        phases = [
            phase.model_dump(exclude={"rate"} | ({"first"} if not phase.first else set())) for phase in self.phases
        ]
        text = orjson.dumps({"version": 1, **content, "phases": phases}, option=orjson.OPT_SORT_KEYS)
        self._digest = hashlib.sha256(text).hexdigest()
        return self

    @property
    def images(self) -> int:
        """How many images the stream has."""
        return sum(phase.images for phase in self.phases)

    def digest(self) -> str:
        """Hash of what determines the stream. It does not depend on where the stream was cut."""
        return self._digest

    def first(self, images: int) -> "Scenario":
        """The first ``images`` images; where there are not so many, the last phase goes on."""
        starts = accumulate((phase.images for phase in self.phases), initial=0)
        *whole, (last, start) = [each for each in zip(self.phases, starts, strict=False) if each[1] < images]
        cut = last.model_copy(update={"images": images - start})
        return self.model_copy(update={"phases": (*(phase for phase, _ in whole), cut)})

    def error(self, path: Iterable[str | int], problem: str) -> ScenarioError:
        """A ScenarioError that names file, line and key."""
        return self._origin.error(tuple(path), problem)


def load(path_or_name: str, seed: int | None = None, images: int | None = None) -> Scenario:
    """Read a scenario: a file, or one of those shipped by its name.

    ``seed`` overrides the file's; ``images`` cuts the stream to its first so many images, or lets the last
    phase go on. Raises ScenarioError, whose text says file, line, key and problem.

    Examples
    --------
    >>> dress = load("dress", images=12_000)
    >>> [(phase.name, phase.images) for phase in dress.phases]
    [('digits', 10240), ('dress', 1760)]
    """
    if images is not None and not 1 <= images <= _MOST_IMAGES:
        raise ScenarioError(f"images: expected 1 to {_MOST_IMAGES:,}, but it is {images}")
    data, origin = read_yaml(_find(path_or_name))
    if isinstance(data, dict) and seed is not None:
        data["seed"] = seed
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error, origin) from None
    scenario._origin = origin
    return scenario if images is None else scenario.first(images)


def _find(path_or_name: str) -> Path:
    shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    if path_or_name in shipped:
        return SHIPPED / f"{path_or_name}.yaml"
    path = Path(path_or_name)
    if not path.is_file():
        raise ScenarioError(
            f"{path_or_name}: no such scenario; give a file or one of {', '.join(shipped)} "
            f"(did you mean {_nearest(path_or_name, shipped)}?)"
        )
    return path


def _first_problem(error: ValidationError, origin: Origin) -> ScenarioError:
    problems = [(_path(details), _problem(details)) for details in error.errors()]
    return origin.error(*min(problems, key=lambda problem: origin.line(problem[0])))


def _path(details: ErrorDetails) -> tuple[str | int, ...]:
    path = details["loc"]
    return path[:-1] if path and path[-1] == "[key]" else path


def _problem(details: ErrorDetails) -> str:
    kind, text, given = details["type"], details["msg"], details["input"]
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        keys = (*Scenario.model_fields, *Phase.model_fields)
        return f"no such key; did you mean {_nearest(str(details['loc'][-1]), keys)}?"
    if isinstance(given, dict | list | tuple) or kind == "entry":
        return text
    return f"{text[0].lower()}{text[1:]}, but it is {given!r}"


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower_case = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0)
    return by_lower_case[near[0]] if near else "?"
