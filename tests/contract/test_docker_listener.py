"""Clients of the Docker socket, the listener, a real agent, and the server behind it: a unix socket's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import socket

import msgspec
import pytest
from answering import answering, hold
from engines import Engine, echo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.containers.demand import Stage
from atoll.containers.listener import Listener, Timing
from atoll.vm.state import StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

DATA = bytes(range(256)) * 12_000
PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"


class Docker:
    """A listener, its engine, and the server in that."""

    def __init__(self, place, listener, engine, seen):
        self.place = place
        self.listener = listener
        self.engine = engine
        self.seen = seen

    async def dial(self):
        return await asyncio.open_unix_connection(self.place)

    async def ask(self, data):
        """Send ``data`` and its end, and return all that comes back."""
        reader, writer = await self.dial()

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        try:
            return (await asyncio.gather(send(), reader.read()))[1]
        finally:
            writer.close()

    async def until(self, condition):
        while not condition():  # noqa: ASYNC110 - only asking again tells
            await asyncio.sleep(0.005)

    async def stage(self, wanted):
        await self.until(lambda: self.listener.demand.stage is wanted)


@contextlib.asynccontextmanager
async def serving(place, serve=echo, **timing):
    """A listener at ``place``, whose engine has a server that does ``serve``."""
    async with answering(serve, f"{place}.engine") as (_, seen):
        engine = Engine(f"{place}.engine")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(place))
        sock.listen(600)
        listener = Listener(sock, engine, Timing(**timing))
        try:
            async with asyncio.timeout(90):
                yield Docker(str(place), listener, engine, seen)
        finally:
            engine.gate.set()
            await listener.close()
    for path in (place, f"{place}.engine"):
        os.unlink(path)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "docker.sock"


async def test_megabytes_pass_both_ways(place):
    async with serving(place) as docker:
        assert await docker.ask(DATA) == DATA
        await docker.until(lambda: not docker.listener.demand.served)
        assert not docker.engine.channel._streams


async def test_hundreds_are_served_at_once_by_one_start(place):
    async with serving(place) as docker:
        answers = await asyncio.gather(*(docker.ask(b"%d" % n * 10_000) for n in range(300)))
        assert answers == [b"%d" % n * 10_000 for n in range(300)]
        assert docker.engine.starts == 1


steps = st.lists(
    st.one_of(st.binary(min_size=1, max_size=200), st.integers(1, 300_000).map(bytes)), max_size=6
)


@given(to_server=steps, to_client=steps, server_ends_first=st.booleans(), vanishes=st.booleans())
@settings(suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_arrives_in_both_directions(
    to_server, to_client, server_ends_first, vanishes, tmp_path_factory
):
    async def send(writer, pieces):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async def attempt():
        received = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            if server_ends_first:
                await send(writer, to_client)
            data = await reader.read()
            if not server_ends_first and not vanishes:
                await send(writer, to_client)
            received.set_result(data)

        async with serving(tmp_path_factory.mktemp("x") / "s", serve) as docker:
            reader, writer = await docker.dial()
            if vanishes and not server_ends_first:  # who says all and closes is heard all the same
                await docker.until(lambda: docker.listener._splices)
                await send(writer, to_server)
                writer.close()
            else:
                _, answer = await asyncio.gather(send(writer, to_server), reader.read())
                assert answer == b"".join(to_client)
                writer.close()
            assert await received == b"".join(to_server)

    asyncio.run(asyncio.wait_for(attempt(), 20))


async def test_each_direction_ends_by_itself(place):
    async def server_first(reader, writer):
        writer.write(b"greeting")
        writer.write_eof()
        ended.set_result(await reader.read())

    ended = asyncio.get_running_loop().create_future()
    async with serving(place, server_first) as docker:
        reader, writer = await docker.dial()
        assert await reader.read() == b"greeting"
        await asyncio.sleep(0.05)
        writer.write(b"late")
        writer.close()
        assert await ended == b"late"


async def test_a_client_that_has_ended_its_input_still_gets_what_follows(place):
    async def answer_late(reader, writer):
        assert await reader.read() == b"input"
        await asyncio.sleep(0.1)
        writer.write(DATA)
        await writer.drain()

    async with serving(place, answer_late) as docker:
        assert await docker.ask(b"input") == DATA


async def test_a_client_that_vanishes_is_noticed_by_the_server(place):
    noticed = asyncio.Event()

    async def follow(reader, writer):
        assert await reader.read() == b""
        noticed.set()

    async with serving(place, follow) as docker:
        _, writer = await docker.dial()
        await docker.until(lambda: docker.seen)
        writer.transport.abort()
        await noticed.wait()
        await docker.until(lambda: not docker.listener.demand.served)


async def test_a_client_that_vanishes_while_it_is_written_to_ends_the_servers_writing(place):
    async def flood(reader, writer):
        try:
            while True:
                writer.write(DATA)
                await writer.drain()
        finally:
            ended.set()

    ended = asyncio.Event()
    async with serving(place, flood) as docker:
        reader, writer = await docker.dial()
        await reader.readexactly(100_000)
        writer.transport.abort()
        await ended.wait()
        await docker.until(lambda: not docker.listener.demand.served)


async def test_a_server_that_neither_reads_nor_ends_loses_a_client_that_is_gone(place, monkeypatch):
    monkeypatch.setattr("atoll.guest.splicing._LINGER", 0.2)
    async with serving(place, hold) as docker:
        _, writer = await docker.dial()
        await docker.until(lambda: docker.seen)
        writer.transport.abort()
        await docker.until(lambda: not docker.listener.demand.served)
        assert not docker.engine.channel._streams


async def test_who_does_not_read_holds_up_the_other_end_and_nobody_else(place):
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        if (await reader.readexactly(1)) == b"e":
            await echo(reader, writer)
            return
        writer.transport.set_write_buffer_limits(high=0)
        while sent < 64 << 20:
            writer.write(DATA)
            sent += len(DATA)
            await writer.drain()

    async with serving(place, flood) as docker:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clients = [await docker.dial() for _ in range(8)]
        for _, writer in clients:
            writer.write(b"f")
        seen = -1
        while seen < sent or not sent:
            seen = sent
            await asyncio.sleep(0.1)
        assert sent < 8 * (6 << 20)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
        assert await docker.ask(b"e" + DATA) == DATA
        for _, writer in clients:
            writer.close()


async def test_a_server_that_does_not_read_holds_its_client_up(place):
    go_on = asyncio.Event()

    async def dawdle(reader, writer):
        await go_on.wait()
        digest = hashlib.sha256()
        while data := await reader.read(65_536):
            digest.update(data)
        writer.write(digest.digest())

    async with serving(place, dawdle) as docker:
        reader, writer = await docker.dial()
        writer.transport.set_write_buffer_limits(high=0)
        sent = hashlib.sha256()
        with contextlib.suppress(TimeoutError):
            for _ in range(40):
                async with asyncio.timeout(0.2):
                    writer.write(DATA)
                    sent.update(DATA)
                    await writer.drain()
            pytest.fail("somebody keeps what the server does not read")
        go_on.set()
        writer.write_eof()
        assert await reader.read() == sent.digest()
        writer.close()


# The engine, on demand.


async def answer_of(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    return msgspec.json.decode(await reader.read())["message"]


async def test_all_who_wait_for_a_start_that_fails_are_told_and_the_next_one_has_it_tried_again(place):
    async with serving(place) as docker:
        docker.engine.gate.clear()
        docker.engine.failure = StateError("no room", hint="make some")
        clients = [await docker.dial() for _ in range(20)]
        for _, writer in clients[:10]:
            writer.write(PING)
        await docker.until(lambda: len(docker.listener.demand.waiting) == 20)
        docker.engine.gate.set()
        for reader, _ in clients[:10]:
            assert await answer_of(reader) == "no room (make some)"
        late, writer = clients[10]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                pytest.fail(f"it was answered before it asked: {await late.read(1)}")
        writer.write(PING[:10])
        await asyncio.sleep(0.01)
        writer.write(PING[10:])
        assert await answer_of(late) == "no room (make some)"
        assert docker.engine.starts == 1
        docker.engine.failure = None
        assert await docker.ask(b"x") == b"x"
        assert docker.engine.starts == 2
        status = docker.listener.status(pid=1, path="x", inherited=False)
        assert (status.stage, status.failure, status.accepted) == (Stage.READY, None, 21)
        for _, writer in clients:
            writer.close()


async def test_a_client_that_sends_much_before_it_is_refused_gets_its_answer(place):
    async with serving(place) as docker:
        docker.engine.failure = StateError("no room")
        reader, writer = await docker.dial()
        writer.write(b"POST /images/load HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(3):
                writer.write(DATA)
                await writer.drain()
        assert await answer_of(reader) == "no room"
        writer.close()


async def test_a_start_that_takes_too_long_is_told_as_such(place, monkeypatch):
    monkeypatch.setattr("atoll.containers.listener._GRACE", 0.0)
    async with serving(place, start=0.1) as docker:
        docker.engine.gate.clear()
        reader, writer = await docker.dial()
        writer.write(PING)
        assert "the engine did not start in time" in await answer_of(reader)
        writer.close()


async def test_who_leaves_while_it_starts_is_forgotten(place):
    async with serving(place) as docker:
        docker.engine.gate.clear()
        _, writer = await docker.dial()
        await docker.until(lambda: docker.listener.demand.waiting)
        writer.transport.abort()
        await docker.until(lambda: not docker.listener.demand.waiting)
        docker.engine.gate.set()
        await docker.stage(Stage.READY)
        assert await docker.ask(b"x") == b"x"
        assert docker.engine.starts == 1


async def test_an_engine_that_dies_ends_its_connections_and_the_next_one_starts_it(place):
    async with serving(place, hold) as docker:
        clients = [await docker.dial() for _ in range(5)]
        await docker.until(lambda: len(docker.seen) == 5)
        docker.engine.child.kill()
        for reader, writer in clients:
            assert await reader.read() == b""
            writer.close()
        again = [await docker.dial() for _ in range(5)]
        await docker.until(lambda: len(docker.seen) == 10)
        assert docker.engine.starts == 2
        for _, writer in again:
            writer.close()


async def test_a_request_that_the_engine_did_not_get_is_refused_although_it_was_sent_ahead(place):
    async with serving(place) as docker:
        docker.engine.path = f"{place}.nothing"
        reader, writer = await docker.dial()
        writer.write(PING)
        assert "No such file" in await answer_of(reader)
        assert docker.engine.dials == 2
        writer.close()


async def test_a_request_that_the_engine_may_have_got_is_not_sent_twice(place):
    async with serving(place) as docker:
        assert await docker.ask(b"x") == b"x"
        os.kill(docker.engine.child.pid, signal.SIGSTOP)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(docker.place)
        sock.sendall(PING)  # before the listener has a turn
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        await docker.until(lambda: docker.engine.dials == 2)
        await asyncio.sleep(0.02)
        docker.engine.child.kill()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert (docker.engine.dials, docker.engine.starts) == (2, 1)
        writer.close()


async def test_who_has_said_nothing_when_the_engine_dies_is_connected_to_the_next(place):
    async with serving(place) as docker:
        assert await docker.ask(b"x") == b"x"
        os.kill(docker.engine.child.pid, signal.SIGSTOP)
        reader, writer = await docker.dial()
        await docker.until(lambda: docker.engine.dials == 2)
        docker.engine.child.kill()
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        assert (docker.engine.dials, docker.engine.starts) == (3, 2)
        writer.close()


async def test_an_idle_engine_is_suspended_but_not_one_at_work(place):
    async with serving(place, idle=0.3) as docker:
        docker.engine.working = True
        reader, writer = await docker.dial()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await asyncio.sleep(0.6)
        writer.close()
        await asyncio.sleep(0.6)
        assert docker.engine.suspends == 0
        docker.engine.working = False
        await docker.stage(Stage.RESTING)
        assert await docker.ask(b"y") == b"y"
        assert (docker.engine.starts, docker.engine.suspends) == (2, 1)


async def test_who_comes_while_it_is_suspended_waits_and_is_served(place):
    async with serving(place, idle=0.01) as docker:
        assert await docker.ask(b"x") == b"x"
        docker.engine.gate.clear()
        await docker.stage(Stage.SUSPENDING)
        asking = asyncio.create_task(docker.ask(b"y"))
        await docker.until(lambda: docker.listener.demand.waiting)
        docker.engine.gate.set()
        assert await asking == b"y"
        assert docker.engine.starts == 2


async def test_connections_under_an_engine_that_always_suspends_are_never_lost(place):
    async with serving(place, idle=0.001) as docker:
        for round_ in range(12):
            answers = await asyncio.gather(*(docker.ask(b"%d" % n) for n in range(5)))
            assert answers == [b"%d" % n for n in range(5)]
            await asyncio.sleep(0.02 * (round_ % 3))


async def test_an_engine_found_running_is_suspended_in_its_time(place):
    async with serving(place, idle=0.1) as docker:
        await docker.stage(Stage.RESTING)
        assert (docker.engine.starts, docker.engine.suspends) == (0, 1)


async def test_the_end_of_the_listener_waits_for_its_clients_for_a_while(place):
    async with serving(place) as docker:
        reader, writer = await docker.dial()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        closing = asyncio.create_task(docker.listener.close(30.0))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await docker.dial()
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        assert not closing.done()
        writer.close()
        await closing


async def test_who_waits_longer_than_the_listener_lives_is_told(place):
    async with serving(place) as docker:
        docker.engine.gate.clear()
        reader, writer = await docker.dial()
        writer.write(PING)
        await docker.until(lambda: docker.listener.demand.waiting)
        await docker.listener.close(0.1)
        assert "was stopped" in await answer_of(reader)
        writer.close()
