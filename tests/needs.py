"""What some tests need from the machine."""

import os
from typing import NoReturn

import pytest

LEFT_OUT = "left out: "


def leave_out(what: str, error: Exception) -> NoReturn:
    """Leave the tests out that need ``what``; the last line of the run says so. With CI=true they fail."""
    if os.environ.get("CI") == "true":
        raise error
    pytest.skip(f"{LEFT_OUT}{what}: {error}")
