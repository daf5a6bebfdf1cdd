"""The device for AF_VSOCK carries connections both ways, whatever a front-end or a driver does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct

import pytest
from vsock_front import BUFFER, CID, GUEST, SIZE, USER, Front

from atoll import process
from atoll.vsock import program, serving
from atoll.vsock.device import Device
from atoll.vsock.flows import WINDOW
from atoll.vsock.packets import HEADER_SIZE, Op, Shut
from atoll.vsock.session import RECEIVE, TRANSMIT
from atoll.vsock.vhost_user import Request

pytestmark = pytest.mark.usefixtures("no_leftovers")

PORT, GUEST_PORT = 5000, 4242


class Served:
    """A device in this process, its front-end, and a server of the host for one port."""

    def __init__(self, place, front):
        self.front = front
        self.path = str(place / "served")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.told = []
        self.heard = asyncio.Event()
        self.device = Device(front.theirs, CID, serving.dialler({PORT: self.path}), self.tell)

    def tell(self, what):
        self.told.append(what)
        self.heard.set()

    async def accepted(self):
        return (await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self.listener), 5))[0]

    async def opened_by_guest(self, guest=GUEST_PORT):
        await self.front.send(Op.REQUEST, PORT, guest)
        server = await self.accepted()
        header, _ = await self.front.next(Op.RESPONSE)
        assert (header.source_port, header.target_port) == (PORT, guest)
        return server

    async def opened_by_host(self, port=22):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.device.connect(theirs, port)
        host, guest = await self.front.accept()
        assert guest == port
        assert await receive(ours, len(f"OK {host}\n")) == f"OK {host}\n".encode()
        return ours, host

    def close(self):
        self.device.close()
        self.front.close()
        self.listener.close()


@pytest.fixture
async def served(tmp_path):
    front = Front()
    served = Served(tmp_path, front)
    await front.begin()
    yield served
    served.close()


async def receive(sock, count):
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(5):
        while len(data) < count and (piece := await loop.sock_recv(sock, count - len(data))):
            data += piece
    return data


async def told(served):
    await asyncio.wait_for(served.heard.wait(), 5)
    return served.told[0]


@pytest.mark.parametrize("event_idx", [True, False])
async def test_a_guest_reaches_a_server_of_the_host_and_each_side_ends_by_itself(tmp_path, event_idx):
    served = Served(tmp_path, Front(event_idx=event_idx))
    with contextlib.closing(served):
        await served.front.begin()
        with await served.opened_by_guest() as server:
            await served.front.send(Op.RW, PORT, GUEST_PORT, b"question")
            assert await receive(server, 8) == b"question"
            await served.front.send(Op.SHUTDOWN, PORT, GUEST_PORT, flags=Shut.SEND)
            assert await receive(server, 1) == b""
            server.send(b"answer")
            server.shutdown(socket.SHUT_WR)
            assert (await served.front.next(Op.RW))[1] == b"answer"
            assert (await served.front.next())[0].op == Op.SHUTDOWN
            await served.front.send(Op.SHUTDOWN, PORT, GUEST_PORT, flags=Shut.SEND | Shut.RECEIVE)
            assert (await served.front.next())[0].op == Op.RST


async def test_a_client_of_the_host_reaches_the_guest(served):
    client, host = await served.opened_by_host(22)
    with client:
        client.send(b"hello")
        header, payload = await served.front.next(Op.RW)
        assert (header.source_port, header.target_port, payload) == (host, 22, b"hello")
        await served.front.send(Op.RW, host, 22, b"world")
        assert await receive(client, 5) == b"world"


async def test_a_client_that_the_guest_refuses_is_hung_up_on(served):
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        served.device.connect(theirs, 23)
        header, _ = await served.front.next(Op.REQUEST)
        await served.front.send(Op.RST, header.source_port, 23)
        assert await receive(ours, 1) == b""


async def test_only_ports_that_were_opened_are_there(served):
    for port in (PORT + 1, 0, 2**32 - 1):
        await served.front.send(Op.REQUEST, port, GUEST_PORT)
        assert (await served.front.next())[0].op == Op.RST
    served.listener.close()
    await served.front.send(Op.REQUEST, PORT, GUEST_PORT)
    assert (await served.front.next())[0].op == Op.RST


async def test_the_guest_reads_its_cid(served):
    asked = struct.pack("<III", 0, 8, 0) + bytes(8)
    assert (await served.front.ask(Request.GET_CONFIG, asked))[12:] == struct.pack("<Q", CID)


async def test_what_a_slow_server_has_not_read_stays_within_the_window_and_nobody_else_waits(served):
    content = random.Random(1).randbytes(2 * WINDOW)
    with await served.opened_by_guest(1) as slow, await served.opened_by_guest(2) as quick:
        sent, granted = 0, WINDOW
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while sent < granted:
            await served.front.send(Op.RW, PORT, 1, content[sent : sent + 0x3000])
            sent += len(content[sent : sent + 0x3000])
            served.front.collect()
            for header, _ in served.front.taken_from_inbox():
                granted = max(granted, header.taken + header.window) if header.target_port == 1 else granted
        await served.front.send(Op.RW, PORT, 2, b"quick")
        assert await receive(quick, 5) == b"quick"
        assert await receive(slow, sent) == content[:sent]
        assert (await served.front.next(Op.CREDIT_UPDATE))[0].target_port == 1


async def test_more_than_the_window_ends_the_flow(served):
    with await served.opened_by_guest():
        for _ in range(8 * WINDOW // 0x3000):
            await served.front.send(Op.RW, PORT, GUEST_PORT, bytes(0x3000))
        assert (await served.front.next(Op.RST))[0].target_port == GUEST_PORT


async def test_a_lot_arrives_in_the_guest_as_it_was_sent_within_its_credit(served):
    content = random.Random(2).randbytes(1 << 20)
    client, host = await served.opened_by_host()
    with client:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, content))
        digest, count = hashlib.sha256(), 0
        while count < len(content):
            _, payload = await served.front.next(Op.RW)
            assert 0 < len(payload) <= BUFFER - HEADER_SIZE
            digest.update(payload)
            count += len(payload)
            served.front.taken[22] = count
            if count % 0x4000 < len(payload):
                await served.front.send(Op.CREDIT_UPDATE, host, 22)
        await sending
    assert digest.digest() == hashlib.sha256(content).digest()


async def test_a_guest_without_room_gets_nothing_more_and_is_asked(served):
    client, host = await served.opened_by_host()
    with client:
        await served.front.send(Op.CREDIT_UPDATE, host, 22, window=100)
        await asyncio.get_running_loop().sock_sendall(client, bytes(300))
        assert len((await served.front.next(Op.RW))[1]) == 100
        assert (await served.front.next())[0].op == Op.CREDIT_REQUEST
        served.front.taken[22] = 100
        await served.front.send(Op.CREDIT_UPDATE, host, 22, window=100)
        assert len((await served.front.next(Op.RW))[1]) == 100


async def test_two_that_send_take_turns(served):
    (one, _), (two, _) = await served.opened_by_host(1), await served.opened_by_host(2)
    with one, two:
        for client in (one, two):
            client.send(bytes(60_000))
        seen = [(await served.front.next(Op.RW)) for _ in range(10)]
        counts = [sum(len(data) for header, data in seen if header.target_port == port) for port in (1, 2)]
        assert min(counts) > 4000


async def test_connections_outlive_a_pause_of_the_vm_and_no_reset_of_its_driver(served):
    client, host = await served.opened_by_host()
    with client:
        bases = await served.front.stop()
        client.send(b"meanwhile")
        for number, base in zip((RECEIVE, TRANSMIT), bases, strict=True):
            served.front.start_ring(number, base)
        assert (await served.front.next(Op.RW))[1] == b"meanwhile"
        await served.front.stop()
        served.front.tell(Request.SET_VRING_BASE, struct.pack("<II", TRANSMIT, 0))
        assert await receive(client, 1) == b""
        assert host


async def test_a_guest_that_takes_no_answers_is_heard_no_further(served):
    """Its own ring fills, and nothing grows here."""
    heard = 0
    with contextlib.suppress(TimeoutError):
        while heard < 2000:
            async with asyncio.timeout(0.3):
                await served.front.send(Op.RW, PORT, 7, b"stray")
            heard += 1
    assert 200 < heard < 400
    for _ in range(heard):
        assert (await served.front.next())[0].op == Op.RST
    await served.front.send(Op.REQUEST, PORT + 1, 8)
    assert (await served.front.next(Op.RST))[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"short", "the guest broke its transmit queue: a packet that is too short, or is to be written"),
    ],
)
async def test_a_packet_that_is_none_breaks_the_device_until_its_reset(served, data, reason):
    client, _ = await served.opened_by_host()
    with client:
        await served.front.send_raw(data)
        assert await told(served) == reason
        assert await receive(client, 1) == b""
    assert os.eventfd_read(served.front.error) == 1
    await served.front.stop()
    served.front.empty()
    await served.front.begin()
    client, _ = await served.opened_by_host()
    client.close()


async def test_a_descriptor_outside_the_memory_breaks_the_device(served):
    ring = served.front.rings[TRANSMIT]
    ring.add([(GUEST + SIZE, 64, False)])
    os.eventfd_write(served.front.kicks[TRANSMIT], 1)
    assert await told(served) == "the guest broke its transmit queue: a buffer outside the guest's memory"


async def test_a_receive_buffer_without_room_breaks_the_device(tmp_path):
    served = Served(tmp_path, Front(buffers=0))
    with contextlib.closing(served):
        await served.front.begin()
        served.front.rings[RECEIVE].add([(GUEST + 0x10000, HEADER_SIZE - 1, True)])
        await served.front.send(Op.RW, PORT, 1)
        assert "the guest broke its receive queue" in await told(served)


async def test_a_packet_that_says_more_than_it_holds_ends_its_flow_alone(served):
    with await served.opened_by_guest(1) as one, await served.opened_by_guest(2) as two:
        await served.front.send(Op.RW, PORT, 1, b"abc", length=4)
        assert (await served.front.next())[0].op == Op.RST
        assert await receive(one, 1) == b""
        await served.front.send(Op.RW, PORT, 2, b"abcd", length=3)
        assert await receive(two, 3) == b"abc"


@pytest.mark.parametrize(
    "message",
    [
        (Request.SET_VRING_NUM, struct.pack("<II", 2, 16), 0),
        (Request.SET_VRING_KICK, struct.pack("<Q", 0x100), 0),
        (Request.SET_VRING_KICK, struct.pack("<Q", 0), 2),
        (Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GUEST, SIZE, USER, 0), 0),
        (Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GUEST, SIZE, USER, 1 << 62), 1),
        (Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GUEST, SIZE, USER, SIZE), 1),
        (Request.SET_MEM_TABLE, struct.pack("<II4Q", 1, 0, GUEST, SIZE - 1, USER, 1), 1),
    ],
)
async def test_a_front_end_that_breaks_the_protocol_is_left(tmp_path, message):
    served = Served(tmp_path, Front())
    with contextlib.closing(served):
        request, payload, count = message
        memory = os.memfd_create("test-other")
        os.ftruncate(memory, SIZE)
        served.front.tell(request, payload, [memory] * count)
        os.close(memory)
        assert "broke the vhost-user protocol" in await told(served)
        assert served.device.gone.is_set()


async def test_a_front_end_that_leaves_ends_the_device_and_its_connections(served):
    client, _ = await served.opened_by_host()
    with client:
        served.front.sock.close()
        await asyncio.wait_for(served.device.gone.wait(), 5)
        assert await receive(client, 1) == b""


async def test_requests_that_are_not_known_are_refused_where_an_answer_is_wanted(served):
    assert await served.front.ask(77, flags=9) == struct.pack("<Q", 1)
    assert await served.front.ask(Request.SET_OWNER, flags=9) == struct.pack("<Q", 0)


async def test_no_packets_of_any_content_break_more_than_their_device(served):
    dice = random.Random(3)
    with await served.opened_by_guest(1):
        for _ in range(500):
            await served.front.send(
                dice.randrange(10),
                dice.choice([PORT, 1, 2]),
                dice.randrange(3),
                bytes(dice.randrange(200)),
                flags=dice.randrange(8),
                window=dice.choice([0, 1, 1 << 16, 2**32 - 1]),
                length=dice.choice([0, 5, 199, 2**32 - 1]),
                kind=dice.choice([1, 1, 1, 2, 65535]),
            )
            with contextlib.suppress(BlockingIOError):
                served.listener.accept()[0].close()
            served.front.collect()
            served.front.taken_from_inbox()
    assert not served.told
    assert not served.device.gone.is_set()


async def test_no_content_of_the_rings_breaks_more_than_their_device(served):
    """Descriptors, indices and tables are overwritten while connections are open; a reset mends all."""
    dice = random.Random(4)
    for _ in range(60):
        client, _ = await served.opened_by_host()
        with client:
            client.send(bytes(9000))
            for _ in range(dice.randrange(1, 40)):
                place = dice.randrange(0x1000, 0x9000)
                served.front.view[place : place + 2] = dice.randbytes(2)
            for kick in served.front.kicks:
                os.eventfd_write(kick, 1)
            for _ in range(4):
                await asyncio.sleep(0)
        await served.front.stop()
        served.front.empty()
        await served.front.begin()
    assert not served.device.gone.is_set()
    assert served.told
    assert all(reason.startswith("the guest broke its ") for reason in served.told)
    client, _ = await served.opened_by_host()
    client.close()


async def test_the_program_is_the_device_for_those_who_come_by_name_or_are_handed_in(tmp_path):
    front = Front()
    ready_read, ready_write = os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "vsock.sock"))
    listener.listen(8)
    door, their_door = socket.socketpair()
    fds = {"device": front.theirs.fileno(), "ready": ready_write, "listener": listener.fileno()}
    fds["handed"] = their_door.fileno()
    words = program.arguments(cid=CID, ports={}, **fds)
    child = process.spawn(words, pass_fds=tuple(fds.values()))
    front.theirs.close()
    os.close(ready_write)
    try:
        assert await asyncio.to_thread(os.read, ready_read, 1) == b"+"
        await front.begin()
        handed, theirs = socket.socketpair()
        socket.send_fds(door, [b"+"], [theirs.fileno()])
        theirs.close()
        named = socket.socket(socket.AF_UNIX)
        named.connect(str(tmp_path / "vsock.sock"))
        for client in (handed, named):
            with client:
                client.setblocking(False)
                client.send(b"CONN")
                await asyncio.sleep(0.01)
                client.send(b"ECT 99\nbehind")
                host, guest = await front.accept()
                assert await receive(client, len(f"OK {host}\n")) == f"OK {host}\n".encode()
                assert (guest, (await front.next(Op.RW))[1]) == (99, b"behind")
        with socket.socket(socket.AF_UNIX) as wrong:
            wrong.connect(str(tmp_path / "vsock.sock"))
            wrong.setblocking(False)
            wrong.send(b"GET / HTTP/1.1\n")
            with pytest.raises(ConnectionResetError):
                await receive(wrong, 1)
        front.sock.close()
        assert await asyncio.to_thread(child.wait, 5) == 0
    finally:
        child.close()
        os.close(ready_read)
        for sock in (door, their_door, listener):
            sock.close()
        front.close()
