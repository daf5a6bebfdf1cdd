"""The process of a network: how it comes, goes, and is used by whoever has a card to plug in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading

import pytest
from machines import gone, until
from networks import brief_network, pid_of
from outside import needs_root, outside
from tapguest import tap_guest

from atoll import store
from atoll.errors import AtollError, NetworkError, UsageError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import listen
from atoll.network.audit import AuditLog
from atoll.paths import Paths
from atoll.vm.network.attachment import Attachment
from atoll.vm.network.cable import Cable
from atoll.vm.network.policing import read_flows, set_policy
from atoll.vm.network.ports import holder
from atoll.vm.network.reaching import ensure, reach
from atoll.vm.network.requests import NetworkControl, Plug

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

MAC = "02:00:00:00:00:01"


@pytest.fixture
async def place(tmp_path):
    place = Paths(tmp_path, tmp_path).network("default")
    brief_network(place)
    yield place
    await until(lambda: not store.is_held(place.lock), what=place.log.read_text())
    assert not place.control.exists()


@contextlib.asynccontextmanager
async def connected(place):
    await asyncio.to_thread(ensure, place)
    control = NetworkControl(reach(place))
    try:
        async with asyncio.timeout(30):
            yield control
    finally:
        control.close()


class Socket:
    """In the place of a hypervisor's socket, at which a network's process plugs a card in."""

    def __init__(self, directory, name="card.sock"):
        self.path = directory / name
        self._listener = listen(self.path)
        self._listener.setblocking(False)

    async def accept(self):
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return sock

    def close(self):
        self._listener.close()


@pytest.fixture
def card(tmp_path):
    card = Socket(tmp_path)
    yield card
    card.close()


def order(card, **rest):
    return Plug(**{"socket": str(card.path), "owner": "one", "mac": MAC, "hostname": "one", **rest})


async def test_many_who_need_it_at_once_get_one_process_which_ends_when_nobody_does(place):
    failures = []

    def need():
        try:
            ensure(place)
        except AtollError as error:
            failures.append(error)

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not failures
    async with connected(place) as control:
        status = await control.status()
    assert (status.pid, status.cards) == (pid_of(place), ())


async def test_a_process_that_cannot_serve_is_an_error_that_says_why(tmp_path):
    broken = Paths(tmp_path, tmp_path).network("default")
    broken.directory.mkdir(parents=True)
    broken.record.write_text("{}")
    with pytest.raises(NetworkError, match=r"network\.json") as caught:
        await asyncio.to_thread(ensure, broken)
    assert caught.value.code == "network.gone"


async def test_a_machine_keeps_its_address_and_a_card_that_is_pulled_is_told(place, card, tmp_path):
    async with connected(place) as control:
        plugged, stream = await control.plug(order(card, keep=True))
        sock = await card.accept()
        assert (plugged.address, plugged.gateway, plugged.known) == ("10.0.2.15/24", "10.0.2.2", False)
        again, other = await control.plug(order(card, keep=True, fresh=False))
        assert again == plugged
        (listed,) = (await control.status()).cards
        assert (listed.owner, listed.address) == ("one", "10.0.2.15")
        sock.close()
        assert await stream.read() == b""
        assert await other.read() == b""
        assert (await control.status()).cards == ()
        second = Socket(tmp_path, "second.sock")
        plugged, _ = await control.plug(
            order(second, owner="two", mac="02:00:00:00:00:02", hostname="two", keep=True)
        )
        assert plugged.address == "10.0.2.16/24"
        second.close()
    os.kill(pid_of(place), signal.SIGKILL)
    await until(lambda: not store.is_held(place.lock))
    async with connected(place) as control:
        plugged, _ = await control.plug(order(card, keep=True))
        (await card.accept()).close()
        assert (plugged.address, plugged.known) == ("10.0.2.15/24", True)


async def test_a_card_at_which_nobody_listens_and_a_port_that_is_taken_are_errors(place, card, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forward = Forward(taken.getsockname()[1], 80)
        assert f"(process {os.getpid()})" in holder("127.0.0.1", forward.host_port, "tcp")
        async with connected(place) as control:
            with pytest.raises(NetworkError, match=rf"is taken by .* \(process {os.getpid()}\)") as caught:
                await control.plug(order(card, forwards=(forward,)))
            assert caught.value.code == "network.port"
            nobody = Plug(socket=str(tmp_path / "nobody"), owner="one", mac=MAC)
            with pytest.raises(NetworkError) as caught:
                await control.plug(nobody)
            assert caught.value.code == "network.card"
            plugged, _ = await control.plug(order(card, forwards=(forward,), strict=False))
            assert len(plugged.refused) == 1
            (await card.accept()).close()


async def test_a_guest_is_reached_and_reaches_again_when_the_process_was_killed(place, card):
    warned, freed = [], []

    async def free():
        freed.append(True)

    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    opened = server.sockets[0].getsockname()[1]
    attachment = Attachment(
        network=place.directory,
        owner="one",
        hostname="one",
        forwards=(Forward(port, 7000),),
        host_ports=(opened,),
    )

    async def moved(plugged):
        raise AssertionError(plugged)

    cable = Cable(attachment, vm="one", mac=MAC, socket=card.path, emit=warned.append, free=free, moved=moved)
    cable.begin(fresh=True)
    commands = ("ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2")
    async with asyncio.timeout(60):
        for turn in range(2):
            sock = await card.accept()
            with tap_guest(commands, mac=MAC, mtu=65520, sock=sock) as guest:
                assert (await cable.plugged()).address == "10.0.2.15/24"
                assert await _run(guest, _ASK, opened) == "hello"
                assert await _run(guest, _ASK, port) == "refused"
                process = guest.start(_SERVE)
                assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b"from the guest"
                writer.close()
                await asyncio.to_thread(process.communicate)
                if not turn:
                    pid = pid_of(place)
                    os.kill(pid, signal.SIGKILL)
                    await gone(pid)
    await cable.close()
    assert freed
    assert [event.message for event in warned] == [
        "one: its network was started anew; open connections were reset"
    ]
    server.close()
    await server.wait_closed()


_ASK = """
import socket,sys
s=socket.socket()
if s.connect_ex(('10.0.2.2',int(sys.argv[1]))): print('refused')
else: print(s.recv(9).decode())
"""

_SERVE = """
import socket
s=socket.create_server(('',7000)); print('ready',flush=True)
c,_=s.accept(); c.sendall(b'from the guest')
"""


async def _greet(_, writer):
    writer.write(b"hello")
    await writer.drain()
    writer.close()


async def _run(guest, source, *words):
    process = guest.start(source, *words)
    out, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error.decode()
    return out.decode().strip()


@pytest.fixture
def far():
    with outside() as far:
        yield far


@needs_root
async def test_a_policy_is_there_from_the_start_changes_at_once_and_outlives_the_process(place, card, far):
    async def free():
        pass

    async def moved(plugged):
        raise AssertionError(plugged)

    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    opened = server.sockets[0].getsockname()[1]
    attachment = Attachment(
        network=place.directory, owner="one", hostname="one", host_ports=(opened,), egress=("none",)
    )
    cable = Cable(
        attachment, vm="one", mac=MAC, socket=card.path, emit=lambda _: None, free=free, moved=moved
    )
    cable.begin(fresh=True)
    commands = ("ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2")
    async with asyncio.timeout(60):
        sock = await card.accept()
        with tap_guest(commands, mac=MAC, mtu=65520, sock=sock) as guest:
            await cable.plugged()
            assert await _run(guest, _TELL, far.four) == "denied"
            assert await _run(guest, _ASK, opened) == "hello"
            await cable.follow((f"allow {far.net}.0/24", "limit rate 1G"))
            assert await _run(guest, _TELL, far.four) == "1"
            async with connected(place) as control:
                (flow,) = await read_flows(control)
                assert (flow.guest, flow.protocol, flow.address, flow.port, flow.sent) == (
                    *("one", "udp", far.four, 9000),
                    1,
                )
                with pytest.raises(NetworkError) as caught:
                    await set_policy(control, "two", ())
                assert caught.value.code == "network.card"
                with pytest.raises(UsageError):
                    await set_policy(control, "one", ("permit *",))
            with pytest.raises(UsageError):
                await cable.follow(("permit *",))
            await until(lambda: len(list(AuditLog(place.audit).records())) == 4)
            await cable.follow(("none",))
            await until(lambda: len(list(AuditLog(place.audit).records())) == 5)
        found = [type(each).__name__ for each in AuditLog(place.audit).records()]
        assert found == ["Decided", "Decided", "Ended", "Decided", "Ended"]
        pid = pid_of(place)
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        with tap_guest(commands, mac=MAC, mtu=65520, sock=await card.accept()) as guest:
            assert await _run(guest, _TELL, far.four) == "denied"
    await cable.close()
    server.close()
    await server.wait_closed()


_TELL = """
import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.connect((sys.argv[1],9000)); s.settimeout(5)
try: s.send(b'x'); print(len(s.recv(9)))
except OSError as error: print('lost' if isinstance(error, TimeoutError) else 'denied')
"""
