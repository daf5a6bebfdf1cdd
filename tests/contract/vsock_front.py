"""QEMU's part and the guest's, for tests: a vhost-user front-end with a virtio-vsock driver in its memory."""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import socket
import struct

from rings import GuestRing

from atoll.vsock.packets import HEADER_SIZE, HOST, STREAM, Header, Op, build, parse
from atoll.vsock.session import RECEIVE, TRANSMIT
from atoll.vsock.vhost_user import Features, Request

CID = 3
SIZE, GUEST, USER = 1 << 20, 1 << 30, 1 << 40
WINDOW, BUFFER = 1 << 16, 4096

_QUEUE = 16
_RECEIVED, _SENT = 0x10000, 0x40000
_PIECE = 0x4000


class Front:
    """A front-end; its driver keeps a window for each flow and offers its buffers again by itself."""

    def __init__(self, *, event_idx=True, buffers=_QUEUE):
        self.sock, self.theirs = socket.socketpair()
        self.sock.settimeout(5)
        self._memory = os.memfd_create("test-memory")
        os.ftruncate(self._memory, SIZE)
        self.view = memoryview(mmap.mmap(self._memory, SIZE))
        self.rings = (GuestRing(self.view, 0x1000, _QUEUE), GuestRing(self.view, 0x2000, _QUEUE))
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.error = os.eventfd(0, os.EFD_NONBLOCK)
        self.features = Features.VERSION_1 | Features.INDIRECT | (Features.EVENT_IDX if event_idx else 0)
        self._buffers = buffers
        self._places = {}
        self._inbox = []
        self.taken = {}

    def close(self):
        self.sock.close()
        self.rings, self.view = (), None  # a mapping keeps its file open
        for fd in (self._memory, *self.kicks, *self.calls, self.error):
            os.close(fd)

    # vhost-user.

    def tell(self, request, payload=b"", fds=(), *, flags=1):
        data = struct.pack("<III", request, flags, len(payload)) + payload
        self.sock.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        )

    async def ask(self, request, payload=b"", fds=(), *, flags=1):
        self.tell(request, payload, fds, flags=flags)
        return await asyncio.to_thread(self._reply, request)

    def _reply(self, request):
        number, flags, size = struct.unpack("<III", self.sock.recv(12, socket.MSG_WAITALL))
        assert (number, flags) == (request, 5)
        return self.sock.recv(size, socket.MSG_WAITALL)

    def share(self):
        region = struct.pack("<II", 1, 0) + struct.pack("<QQQQ", GUEST, SIZE, USER, 0)
        self.tell(Request.SET_MEM_TABLE, region, [self._memory])

    async def begin(self, base=0):
        """As QEMU does when the guest's driver is ready."""
        offered = int.from_bytes(await self.ask(Request.GET_FEATURES), "little")
        assert offered & self.features == self.features
        self.tell(Request.SET_FEATURES, struct.pack("<Q", self.features | Features.PROTOCOL))
        self.share()
        for number in (RECEIVE, TRANSMIT):
            self.start_ring(number, base)
        assert await self.ask(Request.GET_QUEUE_NUM) == struct.pack("<Q", 2)
        for _ in range(self._buffers):
            self._offer()
        self._kick(RECEIVE)

    def start_ring(self, number, base):
        ring = self.rings[number].addresses(USER)
        self.tell(Request.SET_VRING_NUM, struct.pack("<II", number, _QUEUE))
        self.tell(Request.SET_VRING_BASE, struct.pack("<II", number, base))
        addresses = struct.pack("<IIQQQQ", number, 0, ring.descriptors, ring.used, ring.available, 0)
        self.tell(Request.SET_VRING_ADDR, addresses)
        self.tell(Request.SET_VRING_CALL, struct.pack("<Q", number), [self.calls[number]])
        self.tell(Request.SET_VRING_ERR, struct.pack("<Q", number), [self.error])
        self.tell(Request.SET_VRING_KICK, struct.pack("<Q", number), [self.kicks[number]])

    async def stop(self):
        """As QEMU does when the VM is paused; where the rings were."""
        bases = []
        for number in (RECEIVE, TRANSMIT):
            reply = await self.ask(Request.GET_VRING_BASE, struct.pack("<II", number, 0))
            bases.append(struct.unpack("<II", reply)[1])
        return bases

    # The driver.

    def _offer(self, place=None):
        """Offer a buffer of which the header is a part of its own, as older kernels do."""
        ring = self.rings[RECEIVE]
        if place is None:
            place = _RECEIVED + BUFFER * len(self._places)
        number = ring.free.pop()
        entries = [
            (GUEST + place, HEADER_SIZE, 3, 1),
            (GUEST + place + HEADER_SIZE, BUFFER - HEADER_SIZE, 2, 0),
        ]
        table = 0x8000 + 32 * number
        for entry, values in enumerate(entries):
            struct.pack_into("<QIHH", self.view, table + 16 * entry, *values)
        ring.describe(number, GUEST + table, 32, 4)
        ring.offer(number)
        self._places[number] = place

    def _kick(self, number):
        os.eventfd_write(self.kicks[number], 1)

    async def next(self, wanted=None):
        """The next packet to the guest: its header and payload; with ``wanted`` only of that kind."""
        async with asyncio.timeout(5):
            while True:
                while self._inbox:
                    header, payload = self._inbox.pop(0)
                    if wanted is None or header.op == wanted:
                        return header, payload
                self.collect()
                if not self._inbox:
                    await asyncio.sleep(0.001)

    def collect(self):
        """Take what the device has filled, and offer those buffers again."""
        filled = [(self._places.pop(head), written) for head, written in self.rings[RECEIVE].returned()]
        for place, written in filled:
            data = bytes(self.view[place : place + written])
            self._inbox.append((parse(data), data[HEADER_SIZE:]))
            self._offer(place)
        self._kick(RECEIVE)

    def taken_from_inbox(self):
        """What has been collected so far."""
        found, self._inbox = self._inbox, []
        return found

    def empty(self):
        """As a driver that begins anew: rings without anything in them."""
        self.view[0x1000:0x4000] = bytes(0x3000)
        self.rings = (GuestRing(self.view, 0x1000, _QUEUE), GuestRing(self.view, 0x2000, _QUEUE))
        self._places.clear()
        self._inbox.clear()

    async def send(self, op, host, guest, payload=b"", *, flags=0, window=WINDOW, **others):
        """Send a packet of the guest, once there is a buffer for it."""
        header = Header(
            CID, HOST, guest, host, len(payload), STREAM, op, flags, window, self.taken.get(guest, 0)
        )
        await self.send_raw(build(header._replace(**others)) + payload)

    async def send_raw(self, data):
        ring = self.rings[TRANSMIT]
        async with asyncio.timeout(5):
            while len(ring.free) < 2:
                ring.returned()
                if len(ring.free) < 2:
                    await asyncio.sleep(0.001)
        place = _SENT + _PIECE * (ring.offered % 8)
        self.view[place : place + len(data)] = data
        cut = min(HEADER_SIZE, len(data) - 1)
        ring.add([(GUEST + place, cut, False), (GUEST + place + cut, len(data) - cut, False)])
        self._kick(TRANSMIT)

    async def accept(self):
        """Accept the host's request; its ports, as (host, guest)."""
        header, _ = await self.next(Op.REQUEST)
        await self.send(Op.RESPONSE, header.source_port, header.target_port)
        return header.source_port, header.target_port
