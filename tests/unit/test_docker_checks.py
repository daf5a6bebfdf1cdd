"""What `atoll doctor` finds of `atoll docker`, with nothing there and with what is wrong."""

import asyncio
import socket
import struct

import msgspec
import pytest

from atoll import store
from atoll.cli import docker_checks
from atoll.cli.checks import Outcome
from atoll.cli.doctor import _guarded
from atoll.config import load
from atoll.containers.control import control_server
from atoll.containers.demand import Stage
from atoll.containers.listener import Status
from atoll.containers.mounts import Unshared
from atoll.containers.ports import Port
from atoll.containers.publishing import Publication
from atoll.hypervisor.port import listen
from atoll.image import catalog, recipes
from atoll.image.engine import OPTIONAL, REQUIRED
from atoll.image.kernel import host_architecture
from atoll.image.manifest import ImageManifest
from atoll.image.programs import Program
from atoll.vm.state import Failure


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A user who has nothing yet."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def look(place, **settings):
    """What is found, by name; the last one of each."""
    flags = {"data_dir": place / "data", "cache_dir": place / "cache", **settings}
    config = load(flags, environment={}, files=()).config
    found = [check for examine in docker_checks.CHECKS for check in _guarded(examine, config)]
    assert all(check.fix for check in found if check.outcome is not Outcome.OK)
    return {check.name: check for check in found}


def install(place, name, script="echo Docker version 1.2"):
    program = place / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def make_image(place, names):
    programs = tuple(Program(name, f"/usr/bin/{name}", 1, 0o100755, "0") for name in names)
    reference = recipes.parse("engine")
    where = catalog.directory_of(
        load({"data_dir": place / "data"}).config.paths, reference, host_architecture()
    )
    where.mkdir(parents=True)
    head = bytearray(4096)  # a superblock and no more
    struct.pack_into("<IIIBBHQQ", head, 1024, 0xE0F5E1E2, 0, 0, 12, 0, 36, 5, 1000)
    struct.pack_into("<I", head, 1024 + 36, 1)
    (where / "root.erofs").write_bytes(head)
    manifest = ImageManifest(
        name=str(reference),
        architecture=host_architecture(),
        distribution="debian",
        suite="trixie",
        digest="",
        size=4096,
        created=0.0,
        programs=programs,
    )
    store.write_record(where / "manifest.json", manifest)


def test_where_nothing_is_there_everything_is_a_note_with_what_brings_it(place):
    found = look(place, docker_shares=[])
    assert {check.outcome for check in found.values()} == {Outcome.OK, Outcome.NOTE}
    assert "`atoll docker enable`" in found["client"].fix
    assert "default" in found["context"].finding
    assert "atoll image build" in found["engine-image"].fix
    assert "systemd" in found["systemd"].finding


def test_a_client_is_named_with_its_version_and_what_it_lacks(place):
    install(place, "docker")
    found = look(place)
    assert "Docker version 1.2" in found["client"].finding
    plugins = place / ".docker/cli-plugins"
    plugins.mkdir(parents=True)
    for name in ("docker-buildx", "docker-compose"):
        (plugins / name).write_text("")
        (plugins / name).chmod(0o755)
    assert look(place)["plugins"].outcome is Outcome.OK
    install(place, "docker", "exit 3")
    assert look(place)["client"].outcome is Outcome.FAIL


def test_a_variable_that_goes_before_the_context_is_named_unless_it_means_the_same(place, monkeypatch):
    (place / ".docker").mkdir()
    (place / ".docker/config.json").write_text('{"currentContext": "atoll"}')
    assert look(place)["context"].outcome is Outcome.OK
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    assert "192.0.2.1" in look(place)["context"].finding
    assert "unset DOCKER_HOST" in look(place)["context"].fix
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/data/docker.sock")
    assert look(place)["context"].outcome is Outcome.OK


def test_a_socket_that_others_may_use_or_that_is_none_is_a_failure(place):
    path = place / "data/docker.sock"
    path.parent.mkdir()
    path.touch()
    assert "no socket" in look(place)["socket"].finding
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o660)
        assert (look(place)["socket"].outcome, look(place)["socket"].fix) == ("fail", f"chmod 600 {path}")
        path.chmod(0o600)
        assert look(place)["socket"].outcome is Outcome.OK
    far = place.joinpath(*["long" * 10] * 3)
    assert look(place, data_dir=far)["socket"].outcome is Outcome.FAIL


def test_an_image_that_lacks_a_program_fails_and_one_that_cannot_emulate_is_noted(place):
    make_image(place, REQUIRED[1:])
    found = look(place)["engine-image"]
    assert (found.outcome, REQUIRED[0] in found.finding) == (Outcome.FAIL, True)
    store.remove_tree(place / "data")
    make_image(place, REQUIRED)
    found = look(place)
    assert (found["engine-image"].outcome, found["emulation"].outcome) == (Outcome.OK, Outcome.NOTE)
    assert "qemu-user" in found["emulation"].finding
    store.remove_tree(place / "data")
    make_image(place, (*REQUIRED, *OPTIONAL))
    assert look(place)["emulation"].outcome is Outcome.OK


def test_settings_that_the_engine_would_refuse_are_found_before_it_does(place):
    found = look(place, docker_mirrors=["http://[::1]:5000"])["engine"]
    assert (found.outcome, "::1" in found.finding) == (Outcome.FAIL, True)
    assert look(place, docker_daemon={"hosts": []})["engine"].outcome is Outcome.FAIL


def test_a_directory_that_is_not_there_to_be_shared_is_named(place):
    found = look(place, docker_shares=[str(place / "gone")])["docker-share"]
    assert (found.outcome, str(place / "gone") in found.finding) == (Outcome.NOTE, True)


def test_what_a_listener_says_is_passed_on(place):
    port = Port(Publication("tcp", "127.0.0.1", 80, "172.17.0.2", 80, "web"), "it is taken")
    status = Status(
        pid=7,
        socket="/s",
        inherited=False,
        stage=Stage.READY,
        since=0.0,
        connections=2,
        waiting=0,
        accepted=2,
        idle=0.0,
        closing=False,
        ports=(port,),
        unshared=(Unshared("/tmp/x", "web"),),
    )
    failed = msgspec.structs.replace(status, failure=Failure("boot.root", "it did not boot"))
    found = asyncio.run(_served(place, [status, failed]))
    assert found[0]["listener"].outcome is Outcome.OK
    assert (found[0]["ports"].outcome, "it is taken" in found[0]["ports"].finding) == (Outcome.FAIL, True)
    assert (found[0]["mounts"].outcome, "/tmp/x" in found[0]["mounts"].finding) == (Outcome.NOTE, True)
    assert (found[1]["listener"].outcome, "did not boot" in found[1]["listener"].finding) == ("fail", True)


async def _served(place, statuses):
    """What is found while a control socket answers with each of ``statuses``."""
    (place / "data/docker").mkdir(parents=True)
    answers = iter(statuses)
    server = control_server(lambda: next(answers), lambda _: None)
    control = load({"data_dir": place / "data"}).config.paths.docker.control
    server.listen(listen(control))
    try:
        return [await asyncio.to_thread(look, place) for _ in statuses]
    finally:
        await server.close()
