"""Stream connections of a virtio socket device (Virtio 1.2, 5.10.6), without I/O.

``Flows`` is told what the guest has sent and what became of the sockets of the host, and tells what is to be
sent to the guest. Payload never comes here, only its length. Whatever a guest sends, there are no more flows
than ``most``, no flow has more bytes under way than its window, and no more answers wait than the guest has
been heard: ``crowded`` says when it is to be heard no further.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from atoll.vsock.packets import HOST, STREAM, Header, Op, Shut

__all__ = ["MOST", "SMALL_WINDOW", "WINDOW", "Event", "Flow", "Flows", "Key", "Phase"]

#: Flows of one device at a time.
MOST = 1024

#: Bytes that a guest may send ahead on one flow, and on one of very many.
WINDOW, SMALL_WINDOW = 1 << 18, 1 << 14

#: Bytes of all windows up to which a new one is a large one.
_BUDGET = 1 << 26

#: Answers that may wait for the guest to take them.
_CROWD = 256

#: Ports of the host that its clients come from.
_FIRST_PORT, _PORTS = 1 << 30, 1 << 30

_MASK = 0xFFFFFFFF


class Key(NamedTuple):
    """Which flow it is: a port of the host and one of the guest."""

    host: int
    guest: int


class Phase(Enum):
    """How far a flow is."""

    ASKED = auto()
    OFFERED = auto()
    OPEN = auto()
    OVER = auto()


class Event(Enum):
    """What a packet of the guest means to the host."""

    NOTHING = auto()
    REQUESTED = auto()
    OPENED = auto()
    DATA = auto()
    SHUT = auto()
    CLOSED = auto()
    RESET = auto()


@dataclass(slots=True, eq=False)
class Flow:
    """One connection. Counters are of 32 bits, as in the packets.

    Attributes:
        key: which one.
        phase: how far it is.
        window: bytes that the guest may send ahead.
        guest_sends: the guest has more to send.
        guest_receives: the guest takes more.
        host_sends: the host has more to send.
    """

    key: Key
    phase: Phase
    window: int
    guest_sends: bool = True
    guest_receives: bool = True
    host_sends: bool = True
    received: int = 0
    taken: int = 0
    told: int = 0
    sent: int = 0
    peer_window: int = 0
    peer_taken: int = 0
    telling: bool = False
    asking: bool = False

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for."""
        return max(0, self.peer_window - ((self.sent - self.peer_taken) & _MASK))

    @property
    def room(self) -> int:
        """Bytes that the guest may send still."""
        return self.window - ((self.received - self.taken) & _MASK)


class _Answer(NamedTuple):
    """A packet without payload that is to be sent."""

    key: Key
    op: Op
    flags: int
    flow: Flow | None


@dataclass(slots=True)
class Flows:
    """All flows of a guest.

    Args:
        cid: of the guest.
        most: flows at a time.
    """

    cid: int
    most: int = MOST
    table: dict[Key, Flow] = field(default_factory=dict, init=False)
    _answers: deque[_Answer] = field(default_factory=deque, init=False)
    _granted: int = field(default=0, init=False)
    _next_port: int = field(default_factory=lambda: random.randrange(_PORTS), init=False)

    @property
    def crowded(self) -> bool:
        """Whether the guest is to take answers before it is heard further."""
        return len(self._answers) >= _CROWD

    @property
    def answering(self) -> bool:
        """Whether there are answers that go before any payload."""
        return bool(self._answers)

    # What the host does.

    def ask(self, port: int) -> Flow | None:
        """Ask for a connection to a port of the guest; None if there is too much to do already."""
        if len(self.table) >= self.most or self.crowded:
            return None
        while True:
            self._next_port = (self._next_port + 1) % _PORTS
            key = Key(_FIRST_PORT + self._next_port, port)
            if key not in self.table:
                break
        flow = self._add(key, Phase.ASKED)
        self._answer(flow, Op.REQUEST)
        return flow

    def accept(self, flow: Flow) -> None:
        """Somebody on the host serves the port that the guest asked for."""
        flow.phase = Phase.OPEN
        self._answer(flow, Op.RESPONSE)

    def reset(self, flow: Flow) -> None:
        """End a flow at once."""
        if flow.phase is not Phase.OVER:
            self.forget(flow)
            self._refuse(flow.key)

    def forget(self, flow: Flow) -> None:
        """Know of a flow no more, of which the guest does not either."""
        if flow.phase is not Phase.OVER:
            flow.phase = Phase.OVER
            del self.table[flow.key]
            self._granted -= flow.window

    def clear(self) -> list[Flow]:
        """The guest's driver began anew: forget everything; the flows that there were."""
        flows = list(self.table.values())
        for flow in flows:
            self.forget(flow)
        self._answers.clear()
        return flows

    def took(self, flow: Flow, count: int) -> None:
        """The host took bytes that the guest sent.

        The guest is told each quarter of the smaller window: Linux from 6.1 on never has more under way than
        its own window, whatever it is granted.
        """
        flow.taken = (flow.taken + count) & _MASK
        untold = (flow.taken - flow.told) & _MASK
        if untold >= max(1, min(flow.window, flow.peer_window) // 4) and flow.guest_sends:
            self._tell_credit(flow)

    def end(self, flow: Flow, *, gone: bool) -> None:
        """The host sends no more; with ``gone`` it takes no more either."""
        if flow.phase is Phase.OPEN:
            flow.host_sends = False
            self._answer(flow, Op.SHUTDOWN, Shut.SEND | Shut.RECEIVE if gone else Shut.SEND)

    def header(self, flow: Flow, length: int) -> Header:
        """The header of ``length`` bytes that are sent to the guest now, for which there is credit."""
        flow.sent = (flow.sent + length) & _MASK
        flow.told = flow.taken
        return self._header(flow.key, Op.RW, 0, flow, length)

    def starve(self, flow: Flow) -> None:
        """There is no credit for what the host has to send: ask the guest, once."""
        if not flow.asking:
            flow.asking = True
            self._answer(flow, Op.CREDIT_REQUEST)

    def next_answer(self) -> Header | None:
        """The header of the next packet without payload; the caller sends it."""
        while self._answers:
            answer = self._answers.popleft()
            flow = answer.flow
            if flow is None:
                return self._header(answer.key, answer.op, answer.flags, None, 0)
            if answer.op is Op.CREDIT_UPDATE:
                flow.telling = False
            if flow.phase is Phase.OVER:
                continue
            flow.told = flow.taken
            return self._header(answer.key, answer.op, answer.flags, flow, 0)
        return None

    # What the guest does.

    def hear(self, header: Header) -> tuple[Event, Flow | None]:
        """Take a packet of the guest; what it means, and to which flow.

        With ``DATA`` its payload is to be passed on, and ``took`` to be called as that is done.
        """
        if header.target_cid != HOST or header.source_cid != self.cid:
            return Event.NOTHING, None
        key = Key(header.target_port, header.source_port)
        if header.kind != STREAM:  # 5.10.6.4.2: of what is not known the sender is told
            return self._unwanted(key, header)
        flow = self.table.get(key)
        if flow is None:
            if header.op != Op.REQUEST or len(self.table) >= self.most:
                return self._unwanted(key, header)
            flow = self._add(key, Phase.OFFERED)
            self._note(flow, header)
            return Event.REQUESTED, flow
        self._note(flow, header)
        return self._react(flow, header), flow

    def malformed(self, header: Header) -> tuple[Event, Flow | None]:
        """A packet whose length is not that of its payload: end its flow."""
        key = Key(header.target_port, header.source_port)
        flow = self.table.get(key)
        if flow is None:
            return self._unwanted(key, header)
        self.reset(flow)
        return Event.RESET, flow

    def _react(self, flow: Flow, header: Header) -> Event:  # noqa: PLR0911 - one for each kind of packet
        match header.op:
            case Op.RW if flow.phase is Phase.OPEN and flow.guest_sends:
                if header.length > flow.room:
                    return self._offended(flow)
                flow.received = (flow.received + header.length) & _MASK
                return Event.DATA
            case Op.CREDIT_UPDATE:
                return Event.NOTHING
            case Op.CREDIT_REQUEST if flow.phase is Phase.OPEN:
                self._tell_credit(flow)
                return Event.NOTHING
            case Op.RESPONSE if flow.phase is Phase.ASKED:
                flow.phase = Phase.OPEN
                return Event.OPENED
            case Op.SHUTDOWN if flow.phase is Phase.OPEN:
                return self._shut(flow, header.flags)
            case Op.RST:
                self.forget(flow)
                return Event.RESET
            case _:
                return self._offended(flow)

    def _shut(self, flow: Flow, flags: int) -> Event:
        if flags & Shut.SEND:
            flow.guest_sends = False
        if flags & Shut.RECEIVE:
            flow.guest_receives = False
        if flow.guest_sends or flow.guest_receives:
            return Event.SHUT
        self.reset(flow)  # 5.10.6.5.1: RST acknowledges a whole shutdown
        return Event.CLOSED

    def _offended(self, flow: Flow) -> Event:
        """What was sent must not be sent now."""
        self.reset(flow)
        return Event.RESET

    def _note(self, flow: Flow, header: Header) -> None:
        flow.peer_window, flow.peer_taken = header.window, header.taken
        if flow.credit:
            flow.asking = False

    def _unwanted(self, key: Key, header: Header) -> tuple[Event, Flow | None]:
        if header.op != Op.RST:
            self._refuse(key)
        return Event.NOTHING, None

    def _refuse(self, key: Key) -> None:
        self._answers.append(_Answer(key, Op.RST, 0, None))

    def _add(self, key: Key, phase: Phase) -> Flow:
        window = WINDOW if self._granted + WINDOW <= _BUDGET else SMALL_WINDOW
        self._granted += window
        flow = self.table[key] = Flow(key, phase, window)
        return flow

    def _tell_credit(self, flow: Flow) -> None:
        if not flow.telling:
            flow.telling = True
            self._answer(flow, Op.CREDIT_UPDATE)

    def _answer(self, flow: Flow, op: Op, flags: int = 0) -> None:
        self._answers.append(_Answer(flow.key, op, flags, flow))

    def _header(self, key: Key, op: Op, flags: int, flow: Flow | None, length: int) -> Header:
        window, taken = (flow.window, flow.taken) if flow is not None else (0, 0)
        return Header(HOST, self.cid, key.host, key.guest, length, STREAM, op, flags, window, taken)
