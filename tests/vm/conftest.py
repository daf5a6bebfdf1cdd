"""A machine with a real guest, for a module of tests, and where it is."""

from __future__ import annotations

import pytest
from guests import running_machine

from atoll.config import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory of the module's own."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def own_config(data, paths):
    """Settings with that directory, and the kernels of all tests."""
    return load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config


@pytest.fixture(scope="module")
def dev(data, paths):
    """The machine."""
    with running_machine(data, paths, disk="256M", memory="256M", cpus=1) as machine:
        yield machine
