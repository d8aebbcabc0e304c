"""The real Prometheus, for all tests that want one: left out where none can be had, and failing with CI=true."""

import os
from pathlib import Path

import pytest

from deploy.local.prometheus import PrometheusUnavailableError, install
from pipeline.settings import load


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of prometheus and promtool."""
    try:
        return install(load({}).cache)
    except PrometheusUnavailableError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"left out: a real Prometheus: {error}")
