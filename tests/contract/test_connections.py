"""Servers of a guest on ports of the host. A hosted agent's guest is this host: the servers are here, too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest
from answering import answering, echo, hold
from hosted import Box, hosted_box
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.errors import ChannelError, GuestError, UsageError
from atoll.guest.messages import Empty, NetConnect
from atoll.vm.control import ControlServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

DATA = bytes(range(256)) * 12_000
AT_ONCE = struct.pack("ii", 1, 0)


@pytest.fixture
async def box():
    async with hosted_box() as box, asyncio.timeout(90):
        yield box


@contextlib.asynccontextmanager
async def serving(serve):
    """A server in the "guest"; its port, and the connections it has had."""
    async with answering(serve) as (server, seen):
        yield server.sockets[0].getsockname()[1], seen


async def dial(exposed):
    return await asyncio.open_connection(exposed.host, exposed.port)


async def ask(exposed, data):
    """Send ``data`` and its end, and return all that comes back."""
    reader, writer = await dial(exposed)

    async def send():
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    try:
        _, answer = await asyncio.gather(send(), reader.read())
        return answer
    finally:
        writer.close()


def break_off(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    writer.transport.abort()


async def until(condition):
    while not condition():  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.005)


async def test_megabytes_pass_both_ways(box):
    async with serving(echo) as (port, _), box.expose(port) as exposed:
        assert exposed.host == "127.0.0.1"
        assert exposed.url == f"http://127.0.0.1:{exposed.port}"
        assert await ask(exposed, DATA) == DATA
    assert not box.channel._streams


async def test_hundreds_are_served_at_once(box):
    async with serving(echo) as (port, _):
        exposed = await box.expose(port)
        answers = await asyncio.gather(*(ask(exposed, b"%d" % n * 10_000) for n in range(300)))
        assert answers == [b"%d" % n * 10_000 for n in range(300)]
        await exposed.close()
        await exposed.close()


async def test_each_direction_ends_by_itself(box):
    ended = asyncio.Event()

    async def server_first(reader, writer):
        writer.write(b"greeting")
        writer.write_eof()
        assert await reader.read() == b"late"
        ended.set()

    async with serving(server_first) as (port, _), box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        assert await reader.read() == b"greeting"
        writer.write(b"late")
        writer.close()
        await ended.wait()


async def test_where_no_server_is_the_client_is_told_at_once(box):
    async with serving(echo) as (port, _):
        pass
    async with box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    with pytest.raises(GuestError) as caught:
        await box._reached().connect(port).reply(Empty)
    assert (caught.value.code, caught.value.errno) == ("guest.os", 111)


async def test_a_server_that_breaks_off_is_one_that_breaks_off_for_the_client(box):
    async def fail(reader, writer):
        writer.write(b"413")
        await reader.readexactly(1)
        break_off(writer)

    async with serving(fail) as (port, _), box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        assert await reader.readexactly(3) == b"413"
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_server_that_breaks_off_after_its_end_is_noticed(box):
    async def fail(reader, writer):
        writer.write_eof()
        await reader.readexactly(1)
        break_off(writer)

    async with serving(fail) as (port, _), box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        assert await reader.read() == b""
        writer.write(b"x")
        await until(lambda: not exposed._relay._connections)
        writer.close()


async def test_a_client_that_vanishes_is_noticed_by_the_server(box):
    reset = asyncio.Event()

    async def wait(reader, writer):
        try:
            await reader.read()
        except ConnectionResetError:
            reset.set()

    async with serving(wait) as (port, seen), box.expose(port) as exposed:
        _, writer = await dial(exposed)
        await until(lambda: seen)
        break_off(writer)
        await reset.wait()
        await until(lambda: not exposed._relay._connections)


async def test_a_server_that_does_not_read_holds_its_client_up(box):
    async def dawdle(reader, writer):
        await go_on.wait()
        await echo(reader, writer)

    go_on = asyncio.Event()
    async with serving(dawdle) as (port, _), box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        writer.transport.set_write_buffer_limits(high=0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                async with asyncio.timeout(0.3):
                    writer.write(DATA)
                    sent += len(DATA)
                    await writer.drain()
        assert sent < 64 << 20
        assert await ask_another(box) == DATA
        go_on.set()
        writer.write_eof()
        assert len(await reader.read()) == sent
        writer.close()


async def ask_another(box):
    async with serving(echo) as (port, _), box.expose(port) as exposed:
        return await ask(exposed, DATA)


async def test_a_client_that_does_not_read_holds_its_server_up(box):
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        while sent < 64 << 20:
            writer.write(DATA)
            sent += len(DATA)
            await writer.drain()

    async with serving(flood) as (port, _), box.expose(port) as exposed:
        reader, writer = await dial(exposed)
        before = -1
        while before < sent or not sent:
            before = sent
            await asyncio.sleep(0.2)
        assert 0 < sent < 64 << 20
        assert await ask_another(box) == DATA
        got = 0
        while data := await reader.read(1 << 20):
            got += len(data)
        assert got == sent >= 64 << 20
        writer.close()


async def test_closing_ends_all_connections_and_the_listener(box):
    async with serving(hold) as (port, seen):
        async with box.expose(port) as exposed:
            clients = [await dial(exposed) for _ in range(20)]
            await until(lambda: len(seen) == 20)
        for reader, writer in clients:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await dial(exposed)
        assert not box.channel._streams


async def test_the_end_of_the_guest_ends_all_connections_and_the_listener(box):
    async with serving(hold) as (port, seen):
        exposed = await box.expose(port)
        reader, writer = await dial(exposed)
        await until(lambda: seen)
        box.channel.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        with pytest.raises(ConnectionRefusedError):
            await dial(exposed)
        writer.close()
    with pytest.raises(ChannelError):
        await box.expose(port)


async def test_a_port_that_is_taken_is_named(box):
    async with box.expose(80) as exposed:
        with pytest.raises(
            UsageError, match=f"127.0.0.1 port {exposed.port}: Address already in use"
        ) as caught:
            await box.expose(80, port=exposed.port)
        assert caught.value.code == "usage.expose"


@pytest.mark.parametrize(
    ("target", "options"),
    [(0, {}), (65536, {}), ("relative", {}), (80, {"port": 65536}), (80, {"host": "192.0.2.1"})],
)
async def test_what_cannot_be_exposed_is_refused(box, target, options):
    with pytest.raises(UsageError) as caught:
        await box.expose(target, **options)
    assert caught.value.code == "usage.expose"


async def test_unix_sockets_are_exposed_and_ipv6_is_listened_on(box, tmp_path):
    path = str(tmp_path / "socket")
    server = await asyncio.start_unix_server(echo_and_close, path)
    async with server, box.expose(path, host="::1") as exposed:
        assert exposed.url == f"http://[::1]:{exposed.port}"
        assert await ask(exposed, b"x") == b"x"


async def echo_and_close(reader, writer):
    await echo(reader, writer)
    writer.close()


async def test_beyond_the_limit_connections_are_refused_and_the_others_go_on(box):
    async with serving(echo) as (port, _):
        streams = [box._reached().connect(port) for _ in range(513)]
        outcomes = await asyncio.gather(*(stream.reply(Empty) for stream in streams), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Empty] * 512 + [GuestError]
        assert outcomes[-1].code == "guest.resource"
        await streams[0].write(b"x", end=True)
        assert await streams[0].read() == b"x"
        for stream in streams:
            stream.cancel()
        async with box.expose(port) as exposed:
            assert await ask(exposed, b"y") == b"y"


@contextlib.asynccontextmanager
async def supervised(box):
    """The same guest behind a supervisor's switch."""
    ours, theirs = socket.socketpair()
    server = ControlServer({})
    server.channel = box.channel
    server.add(theirs)
    client = Box(type(box.channel)(ours))
    try:
        await client.channel.ready()
        yield client, server
    finally:
        client.channel.close()
        await server.close()


async def test_a_supervisor_passes_connections_on(box):
    async with serving(echo) as (port, _), supervised(box) as (client, server):
        async with client.expose(port) as exposed:
            assert await ask(exposed, DATA) == DATA
            answers = await asyncio.gather(*(ask(exposed, b"%d" % n * 10_000) for n in range(100)))
            assert answers == [b"%d" % n * 10_000 for n in range(100)]
        await client.processes()
        assert [connected._streams for connected in server.clients] == [{}]
        assert not box.channel._streams


async def test_a_supervisors_client_that_leaves_leaves_no_connection(box):
    ended = asyncio.Event()

    async def wait(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with serving(wait) as (port, seen), supervised(box) as (client, _):
        exposed = await client.expose(port)
        _, writer = await dial(exposed)
        await until(lambda: seen)
        client.channel.close()
        await ended.wait()
        await exposed.close()
        writer.close()


async def test_what_a_client_says_of_windows_harms_itself_only(box):
    async with serving(echo) as (port, _), supervised(box) as (client, _):
        for window in (0, -1, 1 << 40):
            stream = client.channel.open(NetConnect(port=port, window=window))
            with pytest.raises(GuestError) as caught:
                await stream.reply(Empty)
            assert caught.value.code == "guest.invalid"
        async with client.expose(port) as exposed:
            assert await ask(exposed, b"x") == b"x"


steps = st.lists(
    st.one_of(st.binary(min_size=1, max_size=200), st.integers(1, 300_000).map(bytes)), max_size=6
)


@given(to_server=steps, to_client=steps, server_ends_first=st.booleans())
@settings(suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_arrives_in_both_directions(to_server, to_client, server_ends_first):
    async def attempt():
        received = asyncio.get_running_loop().create_future()

        async def send(writer, pieces):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        async def serve(reader, writer):
            if server_ends_first:
                await send(writer, to_client)
            data = await reader.read()
            if not server_ends_first:
                await send(writer, to_client)
            received.set_result(data)

        async with hosted_box() as box, serving(serve) as (port, _), box.expose(port) as exposed:
            reader, writer = await dial(exposed)
            _, answer = await asyncio.gather(send(writer, to_server), reader.read())
            assert answer == b"".join(to_client)
            assert await received == b"".join(to_server)
            writer.close()

    asyncio.run(asyncio.wait_for(attempt(), 60))
