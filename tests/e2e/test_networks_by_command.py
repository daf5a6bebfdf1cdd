"""What goes wrong with networks is one line and a hint, and leaves nothing behind."""

from __future__ import annotations

import json
import os

import pytest
from command import assert_error

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def network(atoll, tmp_path):
    own = {"ATOLL_DATA_DIR": str(tmp_path / "data"), "ATOLL_CACHE_DIR": str(tmp_path / "cache")}

    def run(*words):
        return atoll(*words, env=own)

    return run


def test_networks_that_cannot_be(network, tmp_path):
    assert network("network", "create", "lab", "--internal").returncode == 0
    assert_error(network("network", "create", "lab"), "store.already_exists", "a network lab already")
    assert_error(network("network", "create", "slirp"), "usage.network", "cannot be called slirp")
    (lab,) = json.loads(network("network", "ls", "--json").stdout)[2:]
    taken = network("network", "create", "other", "--subnet", lab["ipv4"])
    assert_error(taken, "network.subnet", "they are the network lab's")
    assert_error(network("network", "create", "other", "--subnet6", "fd00::/48"), "usage.subnet", "fit size")
    assert_error(network("network", "rm", "other"), "network.unknown", "no network other")
    assert_error(network("network", "rm", "default"), "usage.network", "cannot be removed")
    assert_error(network("network", "connect", "lab", "dev"), "store.missing", "no machine dev")
    assert_error(network("run", "--network=lob", "debian", "true"), "network.unknown", "no network lob")
    assert_error(network("create", "dev", "--network=lob"), "network.unknown", "no network lob")
    assert network("network", "rm", "lab").returncode == 0
    assert os.listdir(tmp_path / "data" / "networks") == [".lock"]
