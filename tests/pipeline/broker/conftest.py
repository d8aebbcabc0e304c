"""The brokers that the contract suite runs against: one fixture NAME_url each, and its NAME below."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.broker import Broker, Topic, connect


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/stream.db"


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = connect(url)
    yield broker
    broker.close()


@pytest.fixture
def topic(broker: Broker) -> str:
    """A new topic of one partition."""
    return make_topic(broker)


def make_topic(broker: Broker, partitions: int = 1, retention: int | None = None) -> str:
    """A new topic under a name that no other test has."""
    name = f"test-{uuid.uuid4()}"
    broker.ensure_topics([Topic(name, partitions, retention)])
    return name
