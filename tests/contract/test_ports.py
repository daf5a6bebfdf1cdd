"""Ports that containers publish, of an engine whose socket is served here as dockerd serves it."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from dockers import free_port
from hosted import hosted_agent

from atoll.containers import ports as module
from atoll.containers.ports import Ports
from atoll.events import PortClosed, PortOpened, PortRefused, Warned
from atoll.guest.messages import Empty

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


class Engine:
    """What an engine's machine has: an agent, and behind it a socket that answers two questions."""

    def __init__(self, agent, path):
        self.path = path
        self.containers = []
        self.running = True
        self._agent = agent
        self._followers = []

    async def agent(self):
        return self._agent

    async def connected(self):
        stream = self._agent.connect(self.path)
        await stream.reply(Empty)
        return stream

    def active(self):
        return self.running

    def shared(self):
        return ()

    async def serve(self, reader, writer):
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # who asked has gone meanwhile
            writer.close()
            return
        if request.startswith(b"GET /events?"):
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n")
            self._followers.append(writer)
            return
        assert request.startswith(b"GET /containers/json ")
        body = json.dumps(self.containers).encode()
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    def become(self, *containers):
        """Other containers run now."""
        self.containers = list(containers)
        for writer in self._followers:
            writer.write(b'{"Type": "container", "Action": "start"}\n')

    def stop(self):
        """The engine ends."""
        self.running = False
        self.cut()

    def cut(self):
        """The stream of events ends."""
        followers, self._followers = self._followers, []
        for writer in followers:
            writer.close()


def container(name, *published, address="127.0.0.1"):
    return {
        "Id": name * 12,
        "Names": [f"/{name}"],
        "Ports": [
            {"IP": "127.0.0.1", "PublicPort": public, "PrivatePort": private, "Type": kind}
            for public, private, kind in published
        ],
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address}}},
    }


@pytest.fixture
async def engine(tmp_path):
    async with hosted_agent() as agent, asyncio.timeout(30):
        engine = Engine(agent, str(tmp_path / "engine.sock"))
        server = await asyncio.start_unix_server(engine.serve, engine.path)
        try:
            yield engine
        finally:
            engine.stop()
            server.close()


@pytest.fixture
async def backend():
    """A server in the container."""

    async def answer(reader, writer):
        writer.write(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def asked(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    answer = await reader.read()
    writer.close()
    return answer


async def settled(ports, count):
    """Wait until so many ports are there; whether each is this host's."""
    while len(ports.listed) != count:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.01)
    return [not port.refused for port in ports.listed]


async def test_ports_come_and_go_with_their_containers(engine, backend):
    told = []
    ports = Ports(engine, "docker", lan=False, emit=told.append)
    try:
        port = free_port()
        engine.become(container("web", (port, backend, "tcp"), (port, 9, "udp")))
        assert await settled(ports, 2) == [True, True]
        assert await asked(port) == b"hello"
        assert ports.names == {"web.atoll.internal": ("127.0.0.1",)}
        engine.become(container("again", (port, backend, "tcp")))
        while [one.publication.container for one in ports.listed] != ["again"]:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        assert await asked(port) == b"hello"
        engine.become()
        assert await settled(ports, 0) == []
        with pytest.raises(ConnectionRefusedError):
            await asked(port)
    finally:
        await ports.close()
    shown = f"127.0.0.1:{port}/tcp"
    assert [(type(one), one.container) for one in told if one.port == shown] == [
        (PortOpened, "web"),
        (PortClosed, "web"),
        (PortOpened, "again"),
        (PortClosed, "again"),
    ]


async def test_a_port_that_is_taken_is_told_of_once_and_had_when_it_is_free(engine, backend, monkeypatch):
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    told = []
    ports = Ports(engine, "docker", lan=False, emit=told.append)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            engine.become(container("web", (port, backend, "tcp")))
            assert await settled(ports, 1) == [False]
            assert "in use" in ports.listed[0].refused
            await asyncio.sleep(0.2)
            assert [type(one) for one in told] == [PortRefused]
        while [bool(one.refused) for one in ports.listed] != [False]:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        assert await asked(port) == b"hello"
    finally:
        await ports.close()


async def test_an_engine_that_goes_takes_its_ports_along_and_brings_them_back(engine, backend, monkeypatch):
    monkeypatch.setattr(module, "_BREATH", 0.01)
    ports = Ports(engine, "docker", lan=False)
    try:
        port = free_port()
        engine.become(container("web", (port, backend, "tcp")))
        await settled(ports, 1)
        engine.cut()  # a supervisor that was killed
        await settled(ports, 0)
        await settled(ports, 1)
        assert await asked(port) == b"hello"
        engine.stop()
        await settled(ports, 0)
        engine.running = True
        ports.rouse()
        await settled(ports, 1)
    finally:
        await ports.close()


async def test_an_error_that_nobody_expected_is_told_of_once_and_does_not_end_it(
    engine, backend, monkeypatch
):
    monkeypatch.setattr(module, "_BREATH", 0.01)
    told, logged, wrong = [], [], True

    def shared():
        if wrong:
            raise RuntimeError("not this time")
        return ()

    engine.shared = shared
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context["exception"]))
    ports = Ports(engine, "docker", lan=False, emit=told.append)
    try:
        port = free_port()
        engine.become(container("web", (port, backend, "tcp")))
        async with asyncio.timeout(10):
            while len(logged) < 3:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
        assert ports.trouble == "RuntimeError: not this time"
        assert [type(one) for one in told] == [Warned]
        wrong = False
        assert await settled(ports, 1) == [True]
        assert ports.trouble == ""
        assert await asked(port) == b"hello"
    finally:
        await ports.close()
    assert {str(error) for error in logged} == {"not this time"}
