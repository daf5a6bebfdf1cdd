"""What all tests share."""

import os
from pathlib import Path

import pytest

from atoll.paths import Paths


@pytest.fixture(scope="session")
def paths():
    """Kernel bundles and images, kept between runs."""
    place = Path(os.environ.get("ATOLL_TEST_DIR") or f"/var/tmp/atoll-test-{os.getuid()}")
    return Paths(data=place / "data", cache=place / "cache")
