"""Where the sockets of other engines are looked for."""

from __future__ import annotations

import hashlib
import json
import socket
from contextlib import ExitStack

import pytest

from atoll import store
from atoll.containers import context
from atoll.containers.migration import sources
from atoll.errors import UsageError
from atoll.paths import Paths


@pytest.fixture
def host(tmp_path):
    """Finds a source on a host on which sockets listen at paths below its home."""
    paths = Paths(data=tmp_path / "data", cache=tmp_path / "cache")
    with ExitStack() as stack:

        def find(name, *sockets, current="", **environment):
            for each in sockets:
                place = tmp_path / each
                place.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(place))
            if current:
                client = tmp_path / "client"
                client.mkdir(exist_ok=True)
                (client / "config.json").write_text(json.dumps({"currentContext": current}))
            given = {key: value.format(tmp_path) for key, value in environment.items()}
            found = sources.find(name.format(tmp_path), paths, tmp_path, tmp_path / "client", given)
            return str(found.relative_to(tmp_path))

        yield find


def make_context(home, name, endpoint):
    place = home / "client/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": endpoint}}}))


@pytest.mark.parametrize(
    ("name", "place", "environment"),
    [
        ("colima", ".colima/default/docker.sock", {}),
        ("colima", ".colima/work/docker.sock", {"COLIMA_PROFILE": "work"}),
        ("colima", "elsewhere/default/docker.sock", {"COLIMA_HOME": "{}/elsewhere"}),
        ("colima", ".config/colima/default/docker.sock", {}),
        ("colima", "xdg/colima/default/docker.sock", {"XDG_CONFIG_HOME": "{}/xdg"}),
        ("orbstack", ".orbstack/run/docker.sock", {}),
        ("docker-desktop", ".docker/desktop/docker.sock", {}),
        ("docker-desktop", ".docker/run/docker.sock", {}),
        ("docker", "mine.sock", {"DOCKER_HOST": "unix://{}/mine.sock"}),
        ("{}/any.sock", "any.sock", {}),
        ("unix://{}/any.sock", "any.sock", {}),
    ],
)
def test_each_is_found_where_it_listens(host, name, place, environment):
    assert host(name, place, **environment) == place


def test_docker_is_what_its_client_uses_or_used_before(host, tmp_path):
    make_context(tmp_path, "work", f"unix://{tmp_path}/work.sock")
    assert host("docker", "work.sock", current="work") == "work.sock"
    store.write_record(tmp_path / "data/docker/former-context.json", context._Former(name="work"))
    make_context(tmp_path, context.NAME, f"unix://{tmp_path}/data/docker.sock")
    own = f"unix://{tmp_path}/data/docker.sock"
    assert host("docker", "data/docker.sock", current=context.NAME, DOCKER_HOST=own) == "work.sock"


def test_atolls_own_socket_and_what_is_no_socket_of_this_host_are_refused(host, tmp_path):
    for name, sockets, code in (
        ("{}/data/docker.sock", ("data/docker.sock",), "usage.own_engine"),
        ("{}/nothing", (), "usage.source"),
        ("ssh://host", (), "usage.source"),
        ("orbstack", (), "usage.source"),
    ):
        with pytest.raises(UsageError) as caught:
            host(name, *sockets)
        assert caught.value.code == code
    with pytest.raises(UsageError, match="no socket of this host"):
        host("docker", DOCKER_HOST="tcp://example.test:2375")
