"""The control socket between hostile clients and the real agent: whatever one does, the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll import process
from atoll.errors import ChannelError, GuestError
from atoll.guest import wire
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.guest.messages import Empty, ExecOutput, ExecStart, ExecStdin, Offset, Ping, Pong, Request
from atoll.guest.wire import Frame, FrameType, Hello
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture
from atoll.vm import control
from atoll.vm.control import ControlServer
from atoll.vm.state import StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

encode = msgspec.msgpack.encode


class Echo(Request, frozen=True, tag="vm.echo"):
    """Send back what comes."""


class Deaf(Request, frozen=True, tag="vm.deaf"):
    """Read nothing."""


class Broken(Request, frozen=True, tag="vm.broken"):
    """Fail as nobody foresaw."""


class Unheard(Request, frozen=True, tag="vm.unheard"):
    """Ask for what is not there."""


async def echo(_, stream):
    stream.reply(Empty(), end=False)
    while data := await stream.read():
        await stream.write(data)
    await stream.write(b"", end=True)


async def deaf(_, stream):
    stream.reply(Empty(), end=False)
    await asyncio.sleep(60)


async def broken(_, stream):
    raise ZeroDivisionError("nobody foresaw it")


class Switch:
    """A server with the real agent behind it."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [str(agent_path(host_architecture())), "--fd", str(theirs.fileno())]
            self.process = process.spawn(argv, pass_fds=[theirs.fileno()])
        self.guest = Channel(ours)
        self.server = ControlServer({"vm.echo": echo, "vm.deaf": deaf, "vm.broken": broken})
        self.server.channel = self.guest
        self.clients = []

    def connect(self):
        """A client that keeps to the protocol."""
        channel = Channel(self.socket())
        self.clients.append(channel)
        return Agent(channel)

    def socket(self):
        """A bare connection."""
        ours, theirs = socket.socketpair()
        self.server.add(theirs)
        return ours

    async def close(self):
        for client in self.clients:
            client.close()
        await self.server.close()
        self.guest.close()
        await end(self.process)


@contextlib.asynccontextmanager
async def switched():
    switch = Switch()
    try:
        async with asyncio.timeout(90):
            await switch.guest.ready()
            yield switch
    finally:
        await switch.close()


@pytest.fixture
async def switch():
    async with switched() as switch:
        yield switch


async def until(condition):
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - only asking again tells
            await asyncio.sleep(0.01)


async def test_several_clients_use_the_guest_side_by_side(switch):
    agents = [switch.connect() for _ in range(10)]
    await asyncio.gather(*(agent.ping(b"x" * 4000) for agent in agents for _ in range(20)))


async def test_megabytes_pass_in_both_directions_with_credit_from_end_to_end(switch):
    agent = switch.connect()
    data = bytes(range(256)) * 20_000
    execution = agent.start(ExecStart(id="cat", argv=("cat",), stdin=True))

    async def feed():
        await execution.stdin.write(data)
        await execution.stdin.end()

    _, out = await asyncio.gather(feed(), execution.stdout.read_all())
    assert out == data
    execution.release()


async def test_what_is_answered_here_streams_in_both_directions_too(switch):
    switch.connect()
    stream = switch.clients[0].open(Echo())
    await stream.reply(Empty)
    data = b"0123456789" * 300_000

    async def read_all():
        parts = []
        while part := await stream.read():
            parts.append(part)
        return b"".join(parts)

    _, out = await asyncio.gather(stream.write(data, end=True), read_all())
    assert out == data


async def test_streams_that_are_over_are_forgotten(switch):
    agent = switch.connect()
    for _ in range(50):
        await agent.ping()
    assert switch.guest._streams == {}
    assert [client._streams for client in switch.server.clients] == [{}]


async def test_an_unknown_method_is_refused_and_one_that_breaks_is_told_of(switch, capsys):
    switch.connect()
    with pytest.raises(GuestError) as caught:
        await switch.clients[0].call(Unheard(), Empty)
    assert caught.value.code == "guest.unknown_method"
    with pytest.raises(Exception, match="nobody foresaw it"):
        await switch.clients[0].call(Broken(), Empty)
    assert (await switch.clients[0].call(Ping(data=b"on"), Pong)).data == b"on"
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_without_a_guest_requests_are_refused(switch):
    agent = switch.connect()
    switch.server.channel = None
    with pytest.raises(StateError) as caught:
        await agent.ping()
    assert caught.value.code == "state.not_running"


async def test_what_a_client_runs_ends_when_it_goes_away_and_what_others_run_does_not(switch):
    leaver, other = switch.connect(), switch.connect()
    started = [
        leaver.start(ExecStart(id="mine", argv=("sleep", "60"))),
        other.start(ExecStart(id="theirs", argv=("sleep", "60"))),
    ]
    for execution in started:
        await execution.started()
    switch.clients[0].close()

    async def only_theirs():
        return [found.id for found in await other.executions()] == ["theirs"]

    await until(only_theirs)
    for execution in started:
        execution.close()


async def test_a_client_that_wanted_to_start_what_another_runs_does_not_end_it_by_leaving(switch):
    owner, copy = switch.connect(), switch.connect()
    execution = owner.start(ExecStart(id="same", argv=("sleep", "60")))
    await execution.started()
    stream = switch.clients[1].open(ExecStart(id="same", argv=("sleep", "60")), end=True)
    with pytest.raises(GuestError) as caught:
        await stream.reply(Empty)
    assert caught.value.code == "guest.exists"
    switch.clients[1].close()
    await asyncio.sleep(0.1)
    assert [(found.id, found.running) for found in await owner.executions()] == [("same", True)]
    execution.release()
    assert copy is not owner


async def test_a_client_that_reads_nothing_stalls_nobody_and_leaves_no_command(switch):
    hoarder = switch.socket()
    hoarder.setblocking(False)
    frames = [wire.resync_preamble(), wire.encode(FrameType.HELLO, 0, Hello(1, 1, b"n" * 16).encode())]
    for number in range(8):
        request = ExecStart(id=f"yes-{number}", argv=("yes",))
        frames.append(wire.encode(FrameType.OPEN, 100 * number + 1, encode(request), end=True))
        output = ExecOutput(id=f"yes-{number}", fd=1, offset=0)
        frames.append(wire.encode(FrameType.OPEN, 100 * number + 2, encode(output), end=True))
    hoarder.sendall(b"".join(frames))
    agent = switch.connect()
    for _ in range(50):
        async with asyncio.timeout(30):
            await agent.ping()

    async def all_run():
        return len(await agent.executions()) == 8

    await until(all_run)
    hoarder.close()

    async def none_runs():
        return not await agent.executions()

    await until(none_runs)


async def test_a_client_that_takes_megabytes_on_credit_and_reads_none_is_cut_off(switch, monkeypatch):
    monkeypatch.setattr(control, "_MOST_PENDING", 1 << 20)
    hoarder = switch.socket()
    hoarder.setblocking(False)
    frames = []
    for number in range(4):
        request = ExecStart(id=f"yes-{number}", argv=("yes",))
        frames.append(wire.encode(FrameType.OPEN, 100 * number + 1, encode(request), end=True))
        output = ExecOutput(id=f"yes-{number}", fd=1, offset=0)
        frames.append(wire.encode(FrameType.OPEN, 100 * number + 2, encode(output), end=True))
    hoarder.sendall(b"".join(frames))

    async def cut_off():
        return not switch.server.clients

    await until(cut_off)
    agent = switch.connect()

    async def none_runs():
        return not await agent.executions()

    await until(none_runs)
    hoarder.close()


async def test_input_that_no_command_reads_holds_back_its_sender_only(switch):
    agent, other = switch.connect(), switch.connect()
    execution = agent.start(ExecStart(id="deaf", argv=("sleep", "60"), stdin=True))
    await execution.started()
    writing = asyncio.create_task(execution.stdin.write(bytes(5_000_000)))
    for _ in range(50):
        async with asyncio.timeout(30):
            await other.ping()
    assert not writing.done()
    writing.cancel()
    execution.release()


def opened(number, request):
    return wire.encode(FrameType.OPEN, number, encode(request))


OFFENCES = {
    "a reply": wire.encode(FrameType.REPLY, 1, b"\x80"),
    "a header that is none": b"\x09" * 20,
    "a mark that is none": wire.encode(FrameType.DATA, 1, b"x")[:-1] + b"\x11",
    "a hello that is none": wire.encode(FrameType.HELLO, 0, b"x" * 24),
    "stream zero": opened(0, Ping()),
    "a stream twice": opened(1, Echo()) + opened(1, Echo()),
    "no request": wire.encode(FrameType.OPEN, 1, b"\xc1"),
    "a request without a method": wire.encode(FrameType.OPEN, 1, b"\x80"),
    "a request of maps in maps": wire.encode(FrameType.OPEN, 1, b"\x81\xa1x" * 9000 + b"\xc0"),
    "credit of three bytes": opened(1, Echo()) + wire.encode(FrameType.CREDIT, 1, b"abc"),
    "credit for nothing": opened(1, ExecOutput(id="none", fd=1))
    + wire.encode(FrameType.CREDIT, 1, struct.pack("<I", 0xFFFFFFFF)),
    "more than the window to the guest": opened(1, ExecStart(id="x", argv=("sleep", "9"), stdin=True))
    + opened(2, ExecStdin(id="x"))
    + wire.encode(FrameType.DATA, 2, bytes(32_768)) * 80,
    "more than the window to here": opened(1, Deaf()) + wire.encode(FrameType.DATA, 1, bytes(32_768)) * 40,
}


@pytest.mark.parametrize("offence", OFFENCES)
async def test_a_client_that_breaks_the_protocol_is_cut_off_and_the_others_are_served(switch, offence):
    agent = switch.connect()
    await agent.ping()
    sock = switch.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(sock, OFFENCES[offence])

    async def alone():
        return len(switch.server.clients) == 1

    await until(alone)
    await agent.ping()
    sock.close()


METHODS = ["ping", "exec.start", "exec.output", "exec.stdin", "exec.release", "exec.list", "vm.echo", "vm.no"]
requests = st.fixed_dictionaries(
    {"method": st.sampled_from(METHODS)},
    optional={
        "id": st.sampled_from(["a", "b", ""]),
        "argv": st.just(["true"]),
        "fd": st.integers(0, 3),
        "offset": st.integers(0, 5),
        "data": st.binary(max_size=20),
    },
)
frames = st.builds(
    Frame,
    st.sampled_from(list(FrameType)),
    st.integers(0, 5),
    st.one_of(
        requests.map(encode),
        st.binary(max_size=40),
        st.integers(0, 1 << 21).map(struct.Struct("<I").pack),
        st.just(Hello(1, 1, b"n" * 16).encode()),
    ),
    st.booleans(),
)


@given(st.lists(st.lists(frames, max_size=25), min_size=1, max_size=3), st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_whatever_frames_clients_send_the_server_and_the_others_go_on(clients, data):
    async def afflict(switch, closing):
        agent = switch.connect()
        for sent in clients:
            raw = b"".join(wire.encode(*frame[:3], end=frame.end) for frame in sent)
            cut = data.draw(st.integers(0, len(raw)))
            sock = switch.socket()
            closing.callback(sock.close)
            sock.setblocking(False)
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(sock, raw[:cut])
                await asyncio.sleep(0)
                await asyncio.get_running_loop().sock_sendall(sock, raw[cut:])
        async with asyncio.timeout(30):
            await agent.ping(b"still here")

    async def attempt():
        async with switched() as switch:
            with contextlib.ExitStack() as closing:
                await afflict(switch, closing)
            agent = switch.connect()

            async def alone():
                await agent.ping()
                return len(switch.server.clients) == 2 and not await agent.executions()

            await until(alone)
            assert not switch.guest.broken
            assert switch.guest._resyncs == 0, "a client brought the guest's link out of step"

    asyncio.run(attempt())


async def test_a_client_of_another_version_is_told_so(switch):
    sock = switch.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, wire.encode(FrameType.HELLO, 0, Hello(2, 9, b"n" * 16).encode()))
    decoder = wire.Decoder()
    frame = next(iter(decoder.feed(await loop.sock_recv(sock, 1000))))
    assert (frame.type, Hello.decode(frame.payload)) == (FrameType.HELLO, Hello(0, 0, b"n" * 16))
    sock.close()


async def test_streams_end_when_the_guest_does_and_clients_stay(switch):
    agent = switch.connect()
    execution = agent.start(ExecStart(id="x", argv=("sleep", "60")))
    await execution.started()
    stream = switch.clients[0].open(ExecOutput(id="x", fd=1), end=True)
    await stream.reply(Offset)
    switch.process.kill()
    with pytest.raises(ChannelError) as caught:
        await stream.read()
    assert caught.value.code == "channel.gone"
    execution.close()
    assert not switch.clients[0].broken


async def test_a_link_that_was_brought_in_step_again_is_no_end_for_a_client(switch):
    agent = switch.connect()
    execution = agent.start(
        ExecStart(id="x", argv=("sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done"))
    )
    await execution.started()
    out = await execution.stdout.read()
    switch.guest.resync()
    out += await execution.stdout.read_all()
    assert out == b"1\n2\n3\n4\n5\n6\n"
    assert (await execution.wait()).code == 0
    execution.release()

    async def released():
        return not await agent.executions()

    await until(released)


async def test_a_release_that_is_lost_with_the_link_is_sent_again(switch):
    agent = switch.connect()
    for number in range(5):
        execution = agent.start(ExecStart(id=f"x{number}", argv=("sleep", "60")))
        await execution.started()
        execution.release()
        for _ in range(number):
            await asyncio.sleep(0)
        switch.guest.resync()

    async def released():
        return not await agent.executions()

    await until(released)
