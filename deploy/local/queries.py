"""What the dashboards ask Prometheus, and what it answers: for checks, and for pictures, without a Grafana."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from pipeline.errors import MarketstreamError

FOLDER = Path(__file__).parents[1] / "grafana/dashboards"


class QueryError(MarketstreamError):
    """Prometheus refused a query or could not be reached."""


@dataclass(frozen=True)
class Query:
    """``expr`` is PromQL, the dashboard's variables filled in; ``legend`` names lines, with {{label}} in it."""

    ref: str
    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard. ``spec`` is its JSON."""

    dashboard: str
    title: str
    queries: tuple[Query, ...]
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One series of an answer; ``times`` in seconds since 1970. Points that are no number are left out."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


def read(path: Path) -> dict[str, Any]:
    """A dashboard as its file says, its variables filled in with their defaults."""
    text = path.read_text()
    for variable in json.loads(text)["templating"]["list"]:
        if variable["type"] == "textbox":
            text = text.replace(f"${variable['name']}", variable["query"])
    board: dict[str, Any] = json.loads(text)
    return board


def panels(board: Mapping[str, Any]) -> list[Panel]:
    """The panels of a dashboard, in its order."""
    return [
        Panel(board["title"], spec["title"], tuple(_query(target) for target in spec["targets"]), spec)
        for spec in board["panels"]
    ]


def _query(target: Mapping[str, Any]) -> Query:
    return Query(target["refId"], target["expr"], target.get("legendFormat", ""), target.get("instant", False))


def marks(board: Mapping[str, Any]) -> list[Query]:
    """What the dashboard marks in time, its annotations."""
    return [Query(mark["name"], mark["expr"], mark["titleFormat"]) for mark in board["annotations"]["list"]]


def ask(url: str, query: Query, start: float, end: float, step: float) -> list[Line]:
    """The answer of the Prometheus at ``url``, as Grafana would get it; those without any number are left out.

    Times are in seconds since 1970. Raises QueryError.
    """
    times = {"time": end} if query.instant else {"start": start, "end": end, "step": step}
    address = f"{url}/api/v1/query{'' if query.instant else '_range'}"
    try:
        with urlopen(f"{address}?{urlencode({'query': query.expr, **times})}", timeout=30) as response:
            answer = json.load(response)["data"]["result"]
    except HTTPError as error:
        with error:
            raise QueryError(f"{address}: {json.load(error).get('error')}: {query.expr}") from None
    except OSError as error:
        raise QueryError(f"{address}: {error}") from error
    found = [_line(series["metric"], series.get("values") or [series["value"]]) for series in answer]
    return [line for line in found if line.values]


def _line(labels: Mapping[str, str], points: list[tuple[float, str]]) -> Line:
    numbers = [(time, float(value)) for time, value in points if math.isfinite(float(value))]
    return Line(labels, tuple(time for time, _ in numbers), tuple(value for _, value in numbers))


def name(line: Line, query: Query) -> str:
    """How the legend calls a line."""
    result = query.legend
    for label in sorted(line.labels, key=len, reverse=True):
        result = result.replace("{{" + label + "}}", line.labels[label])
    return result
