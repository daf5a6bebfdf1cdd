"""The device: packets between a guest's rings and sockets of the host, on the running event loop.

The way of a byte from the guest: ``_hear`` takes a buffer from the transmit ring and sends its payload to the
flow's socket out of the guest's own memory; what that does not take is kept, up to the flow's window. To the
guest: sockets that have something queue up in ``_ready``, and ``_pump`` serves them in turn: it has the
kernel write into the guest's buffers what the socket holds, as far as there are buffers and credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from atoll.vsock.flows import Event, Flow, Flows, Phase
from atoll.vsock.packets import HEADER_SIZE, Header, Op, build, parse
from atoll.vsock.session import RECEIVE, TRANSMIT, Session
from atoll.vsock.vhost_user import MOST_FDS, Assembler, BadMessageError, Message
from atoll.vsock.virtqueue import LONGEST, Chain, split

__all__ = ["Device"]

#: Buffers of the guest that one socket fills before others get a turn, and packets of the guest likewise.
_BURST = 32
_TURN = 64

#: Seconds in which a guest answers a request for a connection.
_PATIENCE = 10.0

_NO_BUFFER = "a receive buffer that is too small, or is to be read"

#: A buffer of the guest, what of it is for payload, and how many bytes that is.
_Buffer: TypeAlias = tuple[Chain, list[memoryview], int]


@dataclass(slots=True, eq=False)
class _Connection:
    """A socket of the host and its flow.

    Attributes:
        greeting: sent to a client when the guest has accepted it.
        backlog: what the guest has sent and the socket has not taken.
        reading: it is watched for something to read.
        ready: it is in the queue of those that have something.
        starved: it has, and the guest has no room for it.
        burst: buffers that it is given at once; it learns how many it needs.
        last: what is in ``backlog`` is all that comes.
        expiry: ends it if the guest does not answer.
    """

    flow: Flow
    sock: socket.socket
    greeting: bytes = b""
    backlog: bytearray = field(default_factory=bytearray)
    reading: bool = False
    writing: bool = False
    ready: bool = False
    starved: bool = False
    burst: int = 1
    last: bool = False
    expiry: asyncio.TimerHandle | None = None


class Device:
    """One device, for one connection of a front-end.

    Args:
        sock: connected to the front-end; owned from here on.
        cid: of the guest.
        dial: connects to what serves a port of the host, or gives None; called for each that a guest asks
            for. What it gives does not block.
        tell: told, in words, when the guest or the front-end has broken the rules.

    Attributes:
        used: set when the guest's driver has begun to use it.
        gone: set when the front-end has closed the connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        cid: int,
        dial: Callable[[int], socket.socket | None],
        tell: Callable[[str], None],
    ) -> None:
        self.used = asyncio.Event()
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._dial = dial
        self._tell = tell
        self._sock = sock
        self._assembler = Assembler()
        self._session = Session(cid, self._on_ring, self._on_reset)
        self._flows = Flows(cid)
        self._connections: dict[Flow, _Connection] = {}
        self._ready: deque[_Connection] = deque()
        self._pumping: asyncio.Handle | None = None
        self._deaf = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_message)

    def connect(self, client: socket.socket, port: int) -> None:
        """Connect a client, whose socket does not block and is owned from here on, to a port of the guest.

        It is told ``OK`` and a port of the host when the guest has accepted, and is closed if it does not.
        """
        flow = self._flows.ask(port) if self._has_room() else None
        if flow is None:
            client.close()
            return
        connection = self._add(flow, client)
        connection.greeting = f"OK {flow.key.host}\n".encode()
        connection.expiry = self._loop.call_later(_PATIENCE, self._break_off, connection)
        self._pump()

    def close(self) -> None:
        """Close everything. Closing twice is fine."""
        if self.gone.is_set():
            return
        self.gone.set()
        self._loop.remove_reader(self._sock.fileno())
        for fd in self._assembler.drop():
            os.close(fd)
        self._session.close()
        self._sock.close()
        self._drop_all()

    # The front-end.

    def _on_message(self) -> None:
        try:
            while not self.gone.is_set():
                wanted = self._assembler.wants
                data, fds, _, _ = socket.recv_fds(self._sock, wanted, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    self.close()
                    return
                message = self._assembler.feed(data, fds)
                if message is not None:
                    self._answer(message)
        except BlockingIOError:
            return
        except (BadMessageError, OSError) as error:
            self._tell(f"the hypervisor broke the vhost-user protocol: {error}")
            self.close()

    def _answer(self, message: Message) -> None:
        answer = self._session.handle(message)
        if answer is not None and self._sock.send(answer) != len(answer):
            raise BadMessageError("answers are not read")
        self._check()

    def _on_ring(self, number: int, begins: bool) -> None:
        kick = self._session.rings[number].kick
        if not begins:
            self._loop.remove_reader(kick)
            return
        self.used.set()
        work = self._on_receive_kick if number == RECEIVE else self._hear
        self._loop.add_reader(kick, self._on_kick, kick, work)
        self._loop.call_soon(work)

    def _on_reset(self) -> None:
        """Another driver knows of none of the flows."""
        self._drop_all()

    def _on_kick(self, kick: int, work: Callable[[], None]) -> None:
        try:
            os.eventfd_read(kick)
        except BlockingIOError:
            return
        except OSError as error:
            self._tell(f"a ring's eventfd cannot be read: {error}")
            self._loop.remove_reader(kick)
            return
        work()

    def _check(self) -> None:
        """Act on a queue that has broken: nothing is heard or sent until the guest resets the device."""
        for name, ring in zip(("receive", "transmit"), self._session.rings, strict=True):
            if ring.queue.broken:
                self._tell(f"the guest broke its {name} queue: {ring.queue.broken}")
                for other in self._session.rings:
                    other.queue.stop()
                    other.queue.broken = ""
                ring.report()
                self._drop_all()

    # To the guest.

    def _on_receive_kick(self) -> None:
        """The guest has offered buffers."""
        self._pump()
        if self._deaf and not self._flows.crowded:
            self._deaf = False
            self._hear()

    def _pump(self) -> None:
        """Send what there is: first answers, then payload, one socket after the other."""
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None
        ring = self._session.rings[RECEIVE]
        queue, turns = ring.queue, _TURN
        self._send_answers()
        while self._ready and turns and not self._flows.answering:
            count = queue.pending()
            if not count:
                if not queue.listen():
                    break
                continue
            queue.mute()
            turns -= 1
            connection = self._ready.popleft()
            connection.ready = False
            self._upload(connection, count)
            self._send_answers()
        ring.signal()
        self._check()
        if self._ready and not turns:
            self._pump_soon()

    def _send_answers(self) -> None:
        ring = self._session.rings[RECEIVE]
        queue = ring.queue
        while self._flows.answering and (queue.pending() or queue.listen()):
            header = self._flows.next_answer()
            chain = queue.peek() if header is not None else None
            if header is None or chain is None:
                break
            if not _write_header(chain, header):
                queue.fail(_NO_BUFFER)
                break
            queue.push(chain.head, HEADER_SIZE)
        ring.signal()

    def _upload(self, connection: _Connection, count: int) -> None:
        """Have up to ``count`` of the guest's buffers filled from one socket."""
        flow = connection.flow
        if flow.phase is not Phase.OPEN or not flow.guest_receives:
            return
        if not flow.credit:
            connection.starved = True
            self._flows.starve(flow)
            return
        chains = self._buffers(min(count, connection.burst), flow.credit)
        if not chains:
            return
        parts = [part for _, payload, _ in chains for part in payload]
        room = sum(size for _, _, size in chains)
        try:
            got = connection.sock.recvmsg_into(parts)[0]
        except BlockingIOError:
            self._watch(connection)
            return
        except OSError:
            got = 0
        if not got:
            self._ended(connection)
            return
        self._give_back(flow, chains, got)
        if got == room:
            connection.burst = min(2 * connection.burst, _BURST)
            self._queue_up(connection)
        else:
            if got * 4 < room:
                connection.burst = max(1, connection.burst // 2)
            self._watch(connection)

    def _buffers(self, count: int, most: int) -> list[_Buffer]:
        """Up to ``count`` of the guest's buffers, for ``most`` bytes at most; none if the queue is broken."""
        queue = self._session.rings[RECEIVE].queue
        found: list[_Buffer] = []
        parts = 0
        for ahead in range(count):
            chain = queue.peek(ahead)
            if chain is None:
                return []
            cut = split(chain.writable, HEADER_SIZE) if not chain.readable else None
            if cut is None or not cut[1]:
                queue.fail(_NO_BUFFER)
                return []
            payload, size = cut[1], sum(map(len, cut[1]))
            if size > most:
                front = split(payload, most)
                payload, size = front[0] if front is not None else [], most
            parts += len(payload)
            if not size or parts > LONGEST:
                break
            found.append((chain, payload, size))
            most -= size
        return found

    def _give_back(self, flow: Flow, chains: list[_Buffer], got: int) -> None:
        """Give buffers to the guest that hold ``got`` bytes."""
        queue = self._session.rings[RECEIVE].queue
        for chain, _, size in chains:
            length = min(size, got)
            _write_header(chain, self._flows.header(flow, length))
            queue.push(chain.head, HEADER_SIZE + length)
            got -= length
            if not got:
                return

    def _ended(self, connection: _Connection) -> None:
        """The host sends no more; one that has closed its socket takes no more either."""
        poll = select.poll()
        poll.register(connection.sock, 0)
        gone = bool(poll.poll(0))
        self._flows.end(connection.flow, gone=gone)

    def _watch(self, connection: _Connection) -> None:
        if not connection.reading:
            connection.reading = True
            self._loop.add_reader(connection.sock.fileno(), self._on_readable, connection)

    def _unwatch(self, connection: _Connection) -> None:
        if connection.reading:
            connection.reading = False
            self._loop.remove_reader(connection.sock.fileno())

    def _on_readable(self, connection: _Connection) -> None:
        """Others may have something as well: they are to be in the queue before it is served."""
        self._unwatch(connection)
        self._queue_up(connection)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._pumping is None:
            self._pumping = self._loop.call_soon(self._pump)

    def _queue_up(self, connection: _Connection) -> None:
        if not connection.ready:
            connection.ready = True
            self._ready.append(connection)

    # From the guest.

    def _hear(self) -> None:
        """Take what the guest has sent, as far as its answers do not pile up."""
        ring = self._session.rings[TRANSMIT]
        queue, turns = ring.queue, _TURN
        queue.mute()
        while turns and not self._deaf:
            if not queue.pending():
                if not queue.listen():
                    break
                queue.mute()
                continue
            chain = queue.peek()
            if chain is None:
                break
            turns -= 1
            self._packet(chain)
            queue.push(chain.head, 0)
            if not turns % 16:
                ring.signal()
            if self._flows.crowded:
                self._send_answers()
                self._deaf = self._flows.crowded
        ring.signal()
        self._pump()
        if not turns:
            self._loop.call_soon(self._hear)

    def _packet(self, chain: Chain) -> None:
        cut = split(chain.readable, HEADER_SIZE) if not chain.writable else None
        if cut is None:
            self._session.rings[TRANSMIT].queue.fail("a packet that is too short, or is to be written")
            return
        front, payload = cut
        header = parse(front[0] if len(front) == 1 else b"".join(front))
        body = split(payload, header.length) if header.op == Op.RW and header.length else ([], [])
        if body is None:
            event, flow = self._flows.malformed(header)
        else:
            event, flow = self._flows.hear(header)
        if flow is not None:
            self._react(event, flow, body[0] if body is not None else [])

    def _react(self, event: Event, flow: Flow, payload: list[memoryview]) -> None:
        if event is Event.REQUESTED:
            self._dialled(flow)
            return
        connection = self._connections.get(flow)
        if connection is None:
            return
        match event:
            case Event.DATA:
                self._deliver(connection, payload)
            case Event.OPENED:
                self._opened(connection)
            case Event.SHUT:
                self._shut(connection)
            case Event.CLOSED | Event.RESET:
                self._finish(connection)
            case _:
                pass
        if connection.starved and flow.credit:
            connection.starved = False
            self._queue_up(connection)

    def _dialled(self, flow: Flow) -> None:
        sock = self._dial(flow.key.host) if self._has_room() else None
        if sock is None:
            self._flows.reset(flow)
            return
        self._flows.accept(flow)
        self._watch(self._add(flow, sock))

    def _opened(self, connection: _Connection) -> None:
        if connection.expiry is not None:
            connection.expiry.cancel()
        try:
            connection.sock.send(connection.greeting)  # the first bytes: a socket has room for them
        except OSError:
            self._break_off(connection)
            return
        self._watch(connection)

    def _deliver(self, connection: _Connection, payload: list[memoryview]) -> None:
        count = 0
        if not connection.backlog:
            try:
                count = connection.sock.sendmsg(payload) if payload else 0
            except BlockingIOError:
                pass
            except OSError:
                self._break_off(connection)
                return
            if count:
                self._flows.took(connection.flow, count)
        for part in payload:
            connection.backlog += part[count:]
            count = max(0, count - len(part))
        if connection.backlog and not connection.writing:
            connection.writing = True
            self._loop.add_writer(connection.sock.fileno(), self._on_writable, connection)

    def _on_writable(self, connection: _Connection) -> None:
        try:
            count = connection.sock.send(connection.backlog)
        except BlockingIOError:
            return
        except OSError:
            self._break_off(connection)
            return
        del connection.backlog[:count]
        if not connection.last:
            self._flows.took(connection.flow, count)
        if not connection.backlog:
            self._stop_writing(connection)
            if connection.last:
                self._close(connection)
                return
            self._shut(connection)
        self._send_answers()
        self._check()

    def _stop_writing(self, connection: _Connection) -> None:
        if connection.writing:
            connection.writing = False
            self._loop.remove_writer(connection.sock.fileno())

    def _shut(self, connection: _Connection) -> None:
        """Pass on to the socket what the guest does no more."""
        flow = connection.flow
        with contextlib.suppress(OSError):  # the other side is gone
            if not flow.guest_sends and not connection.backlog:
                connection.sock.shutdown(socket.SHUT_WR)
            if not flow.guest_receives:
                self._unwatch(connection)
                connection.sock.shutdown(socket.SHUT_RD)

    # Ends.

    def _has_room(self) -> bool:
        """Also those are counted whose last bytes the host has not taken yet."""
        return len(self._connections) < self._flows.most

    def _add(self, flow: Flow, sock: socket.socket) -> _Connection:
        connection = self._connections[flow] = _Connection(flow, sock)
        return connection

    def _break_off(self, connection: _Connection) -> None:
        """The host's side is lost."""
        self._flows.reset(connection.flow)
        self._close(connection)
        self._send_answers()
        self._check()

    def _finish(self, connection: _Connection) -> None:
        """The guest is done with it: what it sent before still goes to the host."""
        connection.last = True
        self._unwatch(connection)
        if not connection.backlog:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection.flow, None) is None:
            return
        if connection.expiry is not None:
            connection.expiry.cancel()
        self._unwatch(connection)
        self._stop_writing(connection)
        if connection.ready:
            self._ready.remove(connection)
        connection.sock.close()

    def _drop_all(self) -> None:
        self._deaf = False
        self._flows.clear()
        for connection in tuple(self._connections.values()):
            self._close(connection)


def _write_header(chain: Chain, header: Header) -> bool:
    """Write a header to the beginning of a buffer; False if it does not fit there."""
    if chain.readable:
        return False
    data = build(header)
    first = chain.writable[0]
    if len(first) >= HEADER_SIZE:
        first[:HEADER_SIZE] = data
        return True
    cut = split(chain.writable, HEADER_SIZE)
    if cut is None:
        return False
    for part in cut[0]:
        part[:] = data[: len(part)]
        data = data[len(part) :]
    return True
