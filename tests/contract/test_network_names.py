"""Names on a network, and what this host is told of them, with the kernel's own stack as the guest."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import dns.asyncquery
import dns.message
import dns.rcode
import pytest
from machines import until
from networks import brief_network, pid_of
from tapguest import tap_guest
from test_network_process import MAC, Socket, connected, order

from atoll import store
from atoll.errors import NetworkError
from atoll.hypervisor.model import Forward
from atoll.machine import naming as machines
from atoll.paths import Paths
from atoll.vm.network import naming
from atoll.vm.network.hostnames import HostListener
from atoll.vm.network.naming import Service

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

COMMANDS = ("ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2")

#: Asks the network's name server as the C library would, with the search domain of guests.
ASK = """
import socket, struct, sys
for kind, name in ((1, "web"), (28, "web"), (1, "host.atoll.internal"), (28, "host.atoll.internal"),
                   (1, "nobody.atoll.internal"), (1, "db.atoll.internal"), (12, "15.2.0.10.in-addr.arpa")):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    q = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\\0"
    s.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + q + struct.pack(">HH", kind, 1), ("10.0.2.3", 53))
    answer = s.recv(999)
    print(name, kind, answer[3] & 15, int.from_bytes(answer[6:8]))
"""


@pytest.fixture
async def place(tmp_path):
    place = Paths(tmp_path, tmp_path).network("default")
    brief_network(place)
    yield place
    await until(lambda: not store.is_held(place.lock))


@contextlib.contextmanager
def card_at(tmp_path, name):
    card = Socket(tmp_path, name)
    try:
        yield card
    finally:
        card.close()


@contextlib.asynccontextmanager
async def plugged(control, tmp_path, name, number, **rest):
    with card_at(tmp_path, f"{name}.sock") as card:
        await control.plug(
            order(card, owner=name, hostname=name, mac=f"{MAC[:-1]}{number}", keep=True, **rest)
        )
        sock = await card.accept()
        with sock:
            yield sock


def by_name(tables):
    return {one.name.removesuffix(".atoll.internal"): one for one in tables.names}


async def gone(control, name):
    while name in by_name((await naming.read_names(control))[1]):  # noqa: ASYNC110 - only asking tells
        await asyncio.sleep(0.02)


async def asked(name, port, *, tcp=False, kind="A"):
    query = dns.message.make_query(name, kind)
    ask = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    answer = await ask(query, "127.0.0.1", port=port, timeout=10)
    return dns.rcode.to_text(answer.rcode()), sorted(str(item) for rr in answer.answer for item in rr)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def test_a_guest_asks_for_names_short_and_whole_there_and_back(place, tmp_path):
    async with (
        connected(place) as control,
        plugged(control, tmp_path, "web", 1, aliases=("db",)) as sock,
    ):
        with tap_guest(COMMANDS, mac=MAC, mtu=65520, sock=sock.dup()) as guest:
            process = guest.start(ASK)
            out, error = await asyncio.to_thread(process.communicate)
    assert out.decode().splitlines() == [
        "web 1 0 1",
        "web 28 0 1",
        "host.atoll.internal 1 0 1",
        "host.atoll.internal 28 0 1",
        "nobody.atoll.internal 1 3 0",
        "db.atoll.internal 1 0 1",
        "15.2.0.10.in-addr.arpa 12 0 1",
    ], error.decode()


async def test_names_are_told_with_their_owners_and_an_alias_goes_with_the_last(place, tmp_path):
    async with connected(place) as control:
        async with plugged(control, tmp_path, "one", 1, aliases=("db",)):  # noqa: SIM117 - one outlives two
            async with plugged(control, tmp_path, "two", 2, aliases=("db",)):
                told, tables = await naming.read_names(control)
                db = by_name(tables)["db"]
                assert (db.alias, db.owners, db.addresses[::2]) == (
                    True,
                    ("one", "two"),
                    ("10.0.2.15", "10.0.2.16"),
                )
                assert {one.address: one.name for one in tables.reverse}["10.0.2.16"] == "two.atoll.internal"
                assert told.upstreams
                await naming.call(control, "two", ("queue",))
                names = by_name((await naming.read_names(control))[1])
                assert (names["db"].owners, names["queue"].owners) == (("one",), ("two",))
        await gone(control, "one")
        assert [*by_name((await naming.read_names(control))[1])] == ["host"]


async def test_services_of_a_machine_have_names_while_somebody_provides_them(place, tmp_path):
    async with connected(place) as control, plugged(control, tmp_path, "docker", 1):
        services = (
            Service(name="web"),
            Service(name="web.docker"),
            Service(name="docker"),
            Service(name="_ x"),
        )
        stream = await naming.provide(control, "docker", services)
        names = by_name((await naming.read_names(control))[1])
        assert names["web"].addresses == names["docker"].addresses == names["web.docker"].addresses
        assert (names["web"].owners, names["docker"].owners) == (("docker (container)",), ("docker",))
        stream.cancel()
        await gone(control, "web")
        with pytest.raises(NetworkError) as caught:
            await naming.provide(control, "nobody", services)
        assert caught.value.code == "network.card"


async def test_a_question_is_answered_with_whose_word_it_is(place):
    query = dns.message.make_query("host.atoll.internal", "A").to_wire()
    (answered,), _ = await machines.answer(place, query)
    assert (answered.origin, answered.upstream) == ("network", "")
    read = dns.message.from_wire(answered.message)
    assert [str(item) for rr in read.answer for item in rr] == ["10.0.2.2"]


async def test_this_host_is_told_where_the_ports_of_a_machine_are_and_nothing_else(place, tmp_path):
    port, other = free_port(), free_port()
    async with (
        connected(place) as control,
        plugged(control, tmp_path, "web", 1, forwards=(Forward(free_port(), 80, "tcp", "0.0.0.0"),)),
        plugged(
            control,
            tmp_path,
            "far",
            2,
            aliases=("db",),
            forwards=(Forward(free_port(), 80, "tcp", "127.0.0.9"),),
        ),
        plugged(control, tmp_path, "none", 3),
    ):
        assert (await naming.listen(control)).listens == ""
        store.write_record(place.resolver, HostListener(port=port))
        assert (await naming.listen(control)).listens == f"127.0.0.1:{port}"
        assert await asked("web.atoll.internal", port) == ("NOERROR", ["127.0.0.1"])
        assert await asked("db.atoll.internal", port, tcp=True) == ("NOERROR", ["127.0.0.9"])
        assert await asked("host.atoll.internal", port, kind="AAAA") == ("NOERROR", ["::1"])
        assert await asked("none.atoll.internal", port) == ("NOERROR", [])
        assert await asked("nobody.atoll.internal", port) == ("NXDOMAIN", [])
        assert await asked("example.com", port) == ("REFUSED", [])
        stream = await naming.provide(control, "none", (Service(name="box.none", host=("127.0.0.7",)),))
        assert await asked("box.none.atoll.internal", port) == ("NOERROR", ["127.0.0.7"])
        stream.cancel()
        with socket.create_server(("127.0.0.1", other)):
            store.write_record(place.resolver, HostListener(port=other))
            told = await naming.listen(control)
            assert (told.listens, bool(told.refused)) == ("", True)
        place.resolver.unlink()
        told = await naming.listen(control)
        assert (told.listens, told.refused) == ("", "")
    assert pid_of(place)
