"""YAML as plain data, with the line that every key came from, so that errors can name it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

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
        """Composing is recursive, and how deep that may go is for others to say: imports raise Python's limit."""
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                mark = event.start_mark
                raise self.error(mark.line + 1 if mark else 1, "nested too deeply")

    def _plain(self, node: yaml.Node, path: KeyPath, line: int) -> object:
        self.lines[path] = line
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if id(node) in self._seen:  # an alias could contain itself
            raise self.error(line, "expected no alias (*) of a mapping or list")
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _scalar(self, node: yaml.ScalarNode, line: int) -> object:
        try:
            return self._loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # a day or a number that cannot be
            raise self.error(line, f"not YAML: {error}") from None

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
