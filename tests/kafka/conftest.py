"""A connection to the broker, and a topic of its own for each test."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.broker import Broker, connect
from tests.pipeline.broker.conftest import make_topic


@pytest.fixture
def broker(kafka_url: str) -> Iterator[Broker]:
    with closing(connect(kafka_url)) as broker:
        yield broker


@pytest.fixture
def topic(broker: Broker) -> str:
    return make_topic(broker)
