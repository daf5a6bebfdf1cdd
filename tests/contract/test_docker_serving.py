"""The listener of the Docker socket as a process: one at a time, taken over from, ended in order."""

# ruff: noqa: ASYNC220, ASYNC221 - what is waited for so is another process's

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machines import gone, kill_all_at, until

from atoll import store
from atoll.config import load
from atoll.containers import launching
from atoll.containers.demand import Stage
from atoll.containers.listener import Timing
from atoll.errors import ChannelError, ConfigError
from atoll.paths import user_config

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

HERE = str(Path(__file__).parent)
ECHOING, BROKEN = "engines:EchoingEngine", "engines:BrokenEngine"
PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE)
    yield load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    kill_all_at(tmp_path)


async def running(config, backend=ECHOING, **timing):
    async with asyncio.timeout(60):
        return await launching.running(config, Timing(**timing), backend=backend)


async def ended(config):
    """End the listener, and see that nothing is left of it but its log and its lock."""
    place = config.paths.docker
    async with asyncio.timeout(60):
        assert await launching.stop(place, grace=0.0)
    assert not place.socket.exists()
    assert sorted(path.name for path in place.directory.iterdir()) == ["listener.lock", "listener.log"]


async def dial(config):
    return await asyncio.open_unix_connection(config.paths.docker.socket)


async def ask(config, data):
    async with asyncio.timeout(60):
        reader, writer = await dial(config)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


async def test_it_is_summoned_serves_says_what_it_does_and_ends(config):
    place = config.paths.docker
    assert await launching.status(place) is None
    first = await running(config, idle=120.0)
    assert (first.stage, first.accepted, first.inherited, first.idle) == (Stage.UNKNOWN, 0, False, 120.0)
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700
    assert os.getsid(first.pid) != os.getsid(0)
    assert await ask(config, b"x" * 100_000) == b"x" * 100_000
    again = await running(config)
    assert (again.pid, again.stage, again.accepted) == (first.pid, Stage.READY, 1)
    await ended(config)
    assert "the engine is ready after" in place.log.read_text()
    assert not await launching.stop(place)
    assert await launching.status(place) is None


async def test_a_killed_one_is_taken_over_from(config):
    first = await running(config)
    reader, writer = await dial(config)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    os.kill(first.pid, signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    await gone(first.pid)
    assert config.paths.docker.socket.exists()
    with pytest.raises(ConnectionRefusedError):
        await dial(config)
    second = await running(config)
    assert second.pid != first.pid
    assert await ask(config, b"y") == b"y"
    await ended(config)


async def test_of_two_that_race_one_listens_and_both_are_told_of_it(config):
    found = await asyncio.gather(*(running(config) for _ in range(4)))
    assert len({status.pid for status in found}) == 1
    command = launching.program(config, Timing(), backend=ECHOING)
    late = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert late.returncode == 75
    told = late.stderr.decode()
    assert f"error[state.listening]: process {found[0].pid} listens at {config.paths.docker.socket}" in told
    assert await ask(config, b"x") == b"x"
    await ended(config)


async def test_one_in_the_foreground_ends_in_order_with_its_clients(config):
    command = launching.program(config, Timing(), backend=ECHOING)
    with subprocess.Popen(command, stderr=subprocess.PIPE) as listener:
        await until(config.paths.docker.socket.exists)
        reader, writer = await dial(config)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        listener.send_signal(signal.SIGTERM)
        await until(lambda: not config.paths.docker.socket.exists())
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        assert listener.poll() is None
        writer.close()
        await writer.wait_closed()
        told = listener.stderr.read().decode()
        assert listener.wait(30) == 0
    assert "listening at" in told
    assert not store.is_held(config.paths.docker.lock)


async def test_who_is_there_when_engine_and_listener_end_has_his_end_from_the_engine(config):
    await running(config)
    reader, writer = await dial(config)

    async def end():
        await until(lambda: not config.paths.docker.socket.exists())
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        writer.close()
        await writer.wait_closed()

    async with asyncio.timeout(60):
        assert await launching.stop(config.paths.docker, grace=1000.0, meanwhile=end)
    assert not store.is_held(config.paths.docker.lock)


async def test_an_engine_that_does_not_start_is_what_the_client_and_the_status_say(config):
    await running(config, BROKEN)
    answer = await ask(config, PING)
    assert b'{"message":"dockerd is missing (build it)"}' in answer
    status = await launching.status(config.paths.docker)
    assert (status.stage, status.failure.code, status.failure.message) == (
        Stage.UNKNOWN,
        "channel",
        "dockerd is missing",
    )
    assert time.time() - 60 < status.failed <= time.time()
    await ended(config)


async def test_the_settings_are_looked_at_again_before_each_start(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    await running(config, "")
    user_config().parent.mkdir(parents=True)
    for wrong in ("many", "lots"):  # with a right one it would start
        user_config().write_text(f'[docker]\ncpus = "{wrong}"\n')
        assert f"docker_cpus = '{wrong}'".encode() in await ask(config, PING)
    await ended(config)


def passing(descriptor, command):
    """The command, as a service manager runs it."""
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-c", script, str(descriptor), *command]


async def test_it_takes_the_socket_that_a_service_manager_holds(config, tmp_path):
    path = tmp_path / "held.sock"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen(10)
        asking = asyncio.create_task(asyncio.open_unix_connection(path))
        command = launching.program(config, Timing(), backend=ECHOING)
        with subprocess.Popen(passing(held.fileno(), command), pass_fds=[held.fileno()]) as listener:
            reader, writer = await asking
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            status = await launching.status(config.paths.docker)
            assert (status.pid, status.inherited, status.socket) == (listener.pid, True, str(path))
            writer.close()
            await writer.wait_closed()
            listener.send_signal(signal.SIGTERM)
            assert listener.wait(30) == 0
    assert path.exists(), "it is the service manager's"
    assert not config.paths.docker.socket.exists()


async def test_what_is_passed_must_be_a_listening_socket(config):
    command = launching.program(config, Timing(), backend=ECHOING)
    done = subprocess.run(passing(0, command), capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert b"error[usage.activation]" in done.stderr


async def test_one_whose_directory_is_removed_ends(config, tmp_path):
    found = await running(config)
    store.remove_tree(tmp_path / "docker")
    await gone(found.pid)


async def test_a_path_that_is_too_long_is_refused_with_what_to_do(tmp_path):
    long = load({"data_dir": tmp_path / ("x" * 100)}, environment={}, files=()).config
    with pytest.raises(ConfigError, match="of at most 107 bytes") as caught:
        await launching.running(long, Timing())
    assert (caught.value.code, caught.value.hint) == (
        "config.socket",
        "set ATOLL_DATA_DIR to a shorter path",
    )
    assert not (tmp_path / ("x" * 100)).exists()


async def test_what_lies_in_the_way_is_not_removed(config):
    place = config.paths.docker
    place.socket.write_text("precious")
    with pytest.raises(ChannelError):
        await launching.Control(await asyncio.to_thread(launching.spawn, config, Timing())).status()
    assert "is no socket" in place.log.read_text()
    assert place.socket.read_text() == "precious"
