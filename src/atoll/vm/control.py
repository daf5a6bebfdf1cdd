"""The supervisor's control socket: a switch between clients and the guest's agent.

Clients speak the agent protocol. Requests whose method begins with ``vm.`` are answered here; all others are
passed on to the guest, frame by frame, under another stream number, with credit running from end to end: no
stream is buffered here beyond what its receiver has given credit for (docs/reference/control-protocol.md).

The way of a byte from the guest: ``Channel`` hands it to the ``Relay`` of its stream, that to the
``Client``, and that to the client's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from atoll.errors import AtollError, ChannelError, GuestError, ProtocolError
from atoll.guest import wire
from atoll.guest.channel import Channel
from atoll.guest.messages import ExecRelease, Refusal
from atoll.guest.wire import Frame, FrameType, Hello
from atoll.vm.state import StateError
from atoll.vm.streams import CREDIT, LocalStream, Relay, refusal_of

__all__ = ["ControlServer", "Method"]

_READ_SIZE = 262_144
_GATHER = 64

#: A client that has not read so many bytes is cut off: it gave credit for more than it takes.
_MOST_PENDING = 64 << 20

#: Streams that a client may have open.
_MOST_STREAMS = 4096

#: Seconds for which a client that was just let in, and has asked nothing but how things are, is waited for.
_FRESH = 2.0

#: The request by which a client finds out whether its supervisor is there.
_GREETING = "vm.status"

_encode = msgspec.msgpack.Encoder().encode


class _Opened(msgspec.Struct):
    """What of a request matters here."""

    method: str
    id: str = ""
    window: object = None

    @property
    def stream_window(self) -> int:
        """With how many bytes its stream begins; what the guest will refuse does not matter."""
        if self.method != "net.connect" or not isinstance(self.window, int):
            return wire.WINDOW
        return max(0, min(self.window, wire.WINDOW))


_decode_opened = msgspec.msgpack.Decoder(_Opened).decode

Method = Callable[[bytes, LocalStream], Awaitable[None]]


class ControlServer:
    """Serves the control socket on the running event loop.

    Args:
        methods: what is answered here, by the request's method.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods
        self.clients: set[Client] = set()
        self._channel: Channel | None = None
        self._listener: socket.socket | None = None
        self._loop = asyncio.get_running_loop()

    def listen(self, listener: socket.socket) -> None:
        """Accept clients from ``listener``; owned from here on."""
        listener.setblocking(False)
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def add(self, sock: socket.socket) -> Client:
        """Serve a client that is connected already."""
        client = Client(self, sock)
        self.clients.add(client)
        return client

    @property
    def busy(self) -> bool:
        """Whether a client waits for an answer, or is just about to ask."""
        return any(client.waits for client in self.clients)

    @property
    def channel(self) -> Channel | None:
        """The guest's channel, while there is a guest."""
        return self._channel

    @channel.setter
    def channel(self, channel: Channel | None) -> None:
        self._channel = channel
        for client in tuple(self.clients):
            client.guest_changed()

    async def close(self) -> None:
        """Stop accepting, let what is queued for clients leave, and let go of them."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for client in tuple(self.clients):
            await client.flushed()
            client.close()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            self.add(sock)


class Client:
    """One connection to the control socket."""

    def __init__(self, server: ControlServer, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.Decoder()
        self._buffer = bytearray(_READ_SIZE)
        self._out: deque[bytes] = deque()
        self._pending = 0
        self._corked = False
        self._due = False
        self._waiting = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._streams: dict[int, Relay | LocalStream] = {}
        self._executions: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._asked = False
        self._since = self._loop.time()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, kind: FrameType, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Queue a frame for the client."""
        if self._closed:
            return
        frame = wire.encode(kind, stream, payload, end=end)
        self._out.append(frame)
        self._pending += len(frame)
        if self._pending > _MOST_PENDING:
            self.close()
        elif not self._corked and not self._due:
            self._due = True  # with what else comes at once from the guest: each write wakes the client
            self._drained.clear()
            self._loop.call_soon(self._flush_due)

    def _flush_due(self) -> None:
        self._due = False
        if not self._closed:
            self._flush()

    @property
    def waits(self) -> bool:
        """Whether a request of the client is unanswered, or its first one is to be expected."""
        if not self._asked and self._loop.time() - self._since < _FRESH:
            return True
        return any(
            isinstance(stream, LocalStream) and not stream.answered and not stream.patient
            for stream in self._streams.values()
        )

    def forget(self, stream: int) -> None:
        """A stream is over."""
        self._streams.pop(stream, None)

    def disown(self, execution: str) -> None:
        """An execution that the client wanted to start is not its own."""
        self._executions.discard(execution)

    def guest_changed(self) -> None:
        """Another guest, or none, answers from now on: executions of the former are gone."""
        self._executions.clear()

    async def flushed(self) -> None:
        """Wait until the client has taken what is queued, at most a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._drained.wait()

    def close(self) -> None:
        """Let go of the client; what it runs in the guest ends."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._drained.set()
        self._server.clients.discard(self)
        self._drop_streams()
        channel = self._server.channel
        if channel is not None:
            for execution in self._executions:
                channel.post(ExecRelease(id=execution))
        for task in tuple(self._tasks):
            task.cancel()

    def _drop_streams(self) -> None:
        streams, self._streams = self._streams, {}
        gone = _encode(Refusal(code="cancelled", message="the client is gone"))
        for stream in streams.values():
            stream.reset(gone)

    def _on_readable(self) -> None:
        try:
            count = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()
            return
        channel = self._server.channel
        self._corked = True
        try:
            with channel.corked() if channel is not None else contextlib.nullcontext():
                for frame in self._decoder.feed(memoryview(self._buffer)[:count]):
                    self._on_frame(frame)
                    if self._closed:
                        return  # it was cut off: what follows must not open anything
        except Exception as error:  # noqa: BLE001 - whatever one client does, the others are served
            if not isinstance(error, ProtocolError):
                traceback.print_exception(error)
            self.close()
            return
        finally:
            self._corked = False
        if not self._closed:
            self._flush()
            if channel is not None and channel.congested:
                self._hold_back(channel)

    def _hold_back(self, channel: Channel) -> None:
        """Read no more until the guest's link takes more."""
        self._loop.remove_reader(self._socket.fileno())

        async def go_on() -> None:
            await channel.room()
            if not self._closed:
                self._loop.add_reader(self._socket.fileno(), self._on_readable)

        self._start(go_on())

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_frame(self, frame: Frame) -> None:
        if frame.type is FrameType.HELLO:
            self._on_hello(frame)
        elif frame.type is FrameType.OPEN:
            self._on_open(frame)
        elif frame.type is FrameType.REPLY:
            raise ProtocolError("a client has nothing to reply to")
        elif (stream := self._streams.get(frame.stream)) is not None:
            if frame.type is FrameType.DATA:
                stream.data(frame.payload, end=frame.end)
            elif frame.type is FrameType.CREDIT:
                if len(frame.payload) != CREDIT.size:
                    raise ProtocolError("malformed CREDIT")
                stream.credit(*CREDIT.unpack(frame.payload))
            else:
                del self._streams[frame.stream]
                stream.reset(frame.payload)

    def _on_hello(self, frame: Frame) -> None:
        hello = Hello.decode(frame.payload)
        if hello is None:
            raise ProtocolError("malformed HELLO")
        self._drop_streams()
        version = wire.VERSION if hello.lowest <= wire.VERSION <= hello.highest else 0
        self.send(FrameType.HELLO, 0, Hello(version, version, hello.nonce).encode())

    def _on_open(self, frame: Frame) -> None:
        if not frame.stream or frame.stream in self._streams:
            raise ProtocolError(f"stream {frame.stream} cannot be opened")
        if len(self._streams) >= _MOST_STREAMS:
            error = GuestError("too many streams are open", reason="resource")
            self.send(FrameType.RESET, frame.stream, _encode(refusal_of(error)))
            return
        try:
            opened = _decode_opened(frame.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("malformed request") from None
        self._asked = self._asked or opened.method != _GREETING
        if opened.method in self._server.methods or opened.method.startswith("vm."):
            self._serve(frame, opened.method)
        else:
            self._relay(frame, opened)

    def _relay(self, frame: Frame, opened: _Opened) -> None:
        channel = self._server.channel
        if channel is None:
            error = StateError(
                "the machine is not running", code="not_running", hint="`atoll start` starts it"
            )
            self.send(FrameType.RESET, frame.stream, _encode(refusal_of(error)))
            return
        starts = ""
        if opened.method == "exec.start":
            starts = opened.id if opened.id not in self._executions else ""
            self._executions.add(opened.id)
        elif opened.method == "exec.release":
            self._executions.discard(opened.id)
        elif opened.method == "exec.detach":
            for client in self._server.clients:
                client.disown(opened.id)
        relay = self._streams[frame.stream] = Relay(self, channel, frame.stream, starts=starts)
        try:
            relay.open(frame.payload, end=frame.end, window=opened.stream_window)
        except ChannelError as error:
            relay.on_failure(error)

    def _serve(self, frame: Frame, method: str) -> None:
        stream = self._streams[frame.stream] = LocalStream(self, frame.stream)
        if frame.end:
            stream.data(b"", end=True)

        async def work() -> None:
            serve = self._server.methods.get(method, _refuse)
            try:
                await serve(frame.payload, stream)
            except AtollError as error:
                stream.fail(error)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                stream.fail(GuestError(str(error), reason="invalid"))
            except Exception as error:  # noqa: BLE001 - whoever asked must be told
                traceback.print_exception(error)
                message = f"{type(error).__name__}: {error}"
                stream.fail(AtollError(message, hint="`atoll logs --source supervisor` has the details"))
            finally:
                self.forget(frame.stream)

        stream.task = self._start(work())

    def _flush(self) -> None:
        try:
            while self._out:
                batch = [self._out[index] for index in range(min(_GATHER, len(self._out)))]
                self._sent(self._socket.sendmsg(batch))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._out and not self._waiting:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._waiting and not self._out:
            self._loop.remove_writer(self._socket.fileno())
        self._waiting = bool(self._out)
        if self._out:
            self._drained.clear()
        else:
            self._drained.set()

    def _sent(self, count: int) -> None:
        self._pending -= count
        while count:
            first = self._out[0]
            if count < len(first):
                self._out[0] = first[count:]
                return
            count -= len(first)
            self._out.popleft()


async def _refuse(_: bytes, stream: LocalStream) -> None:
    stream.fail(GuestError("there is no such method", reason="unknown_method"))
