"""The real Prometheus, for all tests that want one: left out where none can be had, and failing with CI=true."""

from pathlib import Path

import pytest

from deploy.local.prometheus import PrometheusUnavailableError, install
from pipeline.settings import load
from tests.needs import leave_out


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory of prometheus and promtool."""
    try:
        return install(load({}).cache)
    except PrometheusUnavailableError as error:
        leave_out("a real Prometheus", error)
