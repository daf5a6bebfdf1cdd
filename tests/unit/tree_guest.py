"""A guest's end of the channel that holds trees as bytes (sections 2 to 4 and 8 of the protocol)."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import msgspec
from reference_guest import frame

OPEN, REPLY, DATA, RESET, CREDIT = range(2, 7)
CHUNK = 32_768
WINDOW = 1 << 20


class TreeGuest:
    """Sends what is in ``trees`` and keeps what is sent to it in ``written``.

    Attributes:
        trees: bytes of a tree for each path, or a map that is the reason of a RESET.
        written: requests and the bytes that came with them.
        refusal: how ``tree.write`` is refused after so many bytes, as ``(count, map)``.
        resets: streams that the host has reset.
        withhold_end: whether trees that are sent never end.
        end: what is said behind a tree that was written.
    """

    def __init__(self, sock):
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._credit = {}
        self._moved = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._tasks = set()
        self._buffer = b""
        self._incoming = {}
        self.trees = {}
        self.written = []
        self.refusal = None
        self.resets = set()
        self.withhold_end = False
        self.end = {"entries": 0, "bytes": 0}

    async def serve(self):
        self._socket.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while data := await self._loop.sock_recv(self._socket, 1 << 18):
                self._buffer += data
                await self._take_frames()

    async def _take_frames(self):
        at = 0
        while True:
            while self._buffer[at : at + 1] == b"\0":
                at += 1
            if len(self._buffer) - at < 12:
                break
            kind, flags, _, stream, length = struct.unpack_from("<BBHII", self._buffer, at)
            if len(self._buffer) - at < 13 + length:
                break
            await self._on_frame(kind, flags, stream, self._buffer[at + 12 : at + 12 + length])
            at += 13 + length
        self._buffer = self._buffer[at:]

    async def _on_frame(self, kind, flags, stream, payload):
        if kind == 1:
            await self._send(frame(1, 0, payload))
        elif kind == OPEN:
            await self._on_open(stream, msgspec.msgpack.decode(payload))
        elif kind == DATA and stream in self._incoming:
            await self._on_data(stream, payload, end=flags == 1)
        elif kind == CREDIT:
            self._credit[stream] += struct.unpack("<I", payload)[0]
            async with self._moved:
                self._moved.notify_all()
        elif kind == RESET:
            self.resets.add(stream)

    async def _on_open(self, stream, request):
        self._credit[stream] = WINDOW
        if request["method"] == "tree.read":
            tree = self.trees[request["path"]]
            if isinstance(tree, dict):
                await self._send(frame(RESET, stream, msgspec.msgpack.encode(tree)))
                return
            task = asyncio.create_task(self._send_tree(stream, tree))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._incoming[stream] = (request, bytearray())
        await self._send(frame(REPLY, stream, b"\x80"))

    async def _on_data(self, stream, payload, *, end):
        request, data = self._incoming[stream]
        data += payload
        if self.refusal and len(data) >= self.refusal[0]:
            del self._incoming[stream]
            await self._send(frame(RESET, stream, msgspec.msgpack.encode(self.refusal[1])))
        elif end:
            del self._incoming[stream]
            self.written.append((request, bytes(data)))
            end = self.end if isinstance(self.end, bytes) else msgspec.msgpack.encode(self.end)
            await self._send(frame(DATA, stream, end, flags=1))
        elif payload:
            await self._send(frame(CREDIT, stream, struct.pack("<I", len(payload))))

    async def _send_tree(self, stream, tree):
        for at in range(0, len(tree), CHUNK):
            piece = tree[at : at + CHUNK]
            async with self._moved:
                await self._moved.wait_for(lambda: self._credit[stream] >= len(piece))  # noqa: B023
            self._credit[stream] -= len(piece)
            await self._send(frame(DATA, stream, piece))
        if not self.withhold_end:
            await self._send(frame(DATA, stream, b"", flags=1))

    async def _send(self, data):
        async with self._turn:
            with contextlib.suppress(ConnectionError):  # the host is gone
                await self._loop.sock_sendall(self._socket, data)
