"""What `atoll docker status` tells of the engine and of the listener at its socket."""

from __future__ import annotations

import pytest

from atoll.cli.docker import _Found, _rows_of_engine, _rows_of_socket
from atoll.containers.demand import Stage
from atoll.containers.engine import EngineStatus
from atoll.containers.listener import Status
from atoll.containers.mounts import Unshared
from atoll.containers.ports import Port
from atoll.containers.publishing import Publication
from atoll.vm.state import Failure

WEB = Publication("tcp", "::1", 80, "172.17.0.2", 8080, "web")


def found(**wishes):
    status = Status(
        pid=7,
        socket="/s",
        inherited=False,
        stage=Stage.READY,
        since=0.0,
        connections=2,
        **{"waiting": 0, "accepted": 3, "idle": 300.0, "closing": False, **wishes},
    )
    return _Found(EngineStatus(phase="running", ready=True), "/s", status, False, "atoll", "DOCKER_HOST")


@pytest.mark.parametrize(
    ("wishes", "row"),
    [
        ({"ports": (Port(WEB, "in use"),)}, ("port", "[::1]:80/tcp of web is refused: in use")),
        ({"failure": Failure("engine", "it did not start")}, ("failed", "it did not start")),
        ({"trouble": "KeyError: x"}, ("ports", "are not followed: KeyError: x")),
    ],
)
def test_a_fault_is_told_of_and_is_one_to_programs(wishes, row):
    assert found(**wishes).faulty
    assert row in list(_rows_of_socket(found(**wishes)))


def test_what_is_no_fault_is_told_of_too():
    whole = found(ports=(Port(WEB),), unshared=(Unshared("/x", "web"),))
    assert not whole.faulty
    assert list(_rows_of_socket(whole)) == [
        ("socket", "/s"),
        ("listener", "process 7, 2 connections"),
        ("context", "atoll (but DOCKER_HOST is set)"),
        ("not shared", str(Unshared("/x", "web"))),
    ]
    assert list(_rows_of_engine(EngineStatus(phase="absent"))) == [("engine", "absent")]
