"""One TCP connection of a guest, from the network's end (RFC 9293), without any I/O.

The guest talks to a ``Flow``, a ``Flow`` to a socket of this host that goes on with the other end. The link
to the guest keeps the order, and loses nothing if nobody wants it to: no congestion is looked for. But a
guest may drop what it has no memory for; so what it has not acknowledged is kept, and sent again. What comes
behind a segment that was lost on purpose is kept by ``Early``.

The way of a byte to the guest: ``room`` says how much may be read from the host's socket, ``send`` makes
segments of it. From the guest: ``segment`` gives it to an ``Inbox``, and that to the host's socket.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Protocol

from atoll.network.tcp.early import Early
from atoll.network.tcp.inbox import WINDOW, Inbox, Sink
from atoll.network.tcp.outstanding import Outstanding
from atoll.network.tcp.segment import ACK, FIN, PSH, RST, SYN, Template, parse_options, syn_options
from atoll.network.wire.checksum import ones_sum, piece_sum

__all__ = ["Flow", "Guest", "Host", "State"]

_MASK: Final = (1 << 32) - 1
_HALF: Final = 1 << 31

#: Shift of the windows that guests are told (RFC 7323, section 2).
_SHIFT: Final = 7

#: Largest window of a SYN, which is not scaled.
_FIRST_WINDOW: Final = 65535

#: Largest payload for a guest that does not say (RFC 9293, section 3.7.1), and the least that is believed.
_DEFAULT_MSS: Final = 536
_LEAST_MSS: Final = 64

#: Full segments that are acknowledged together, as each acknowledgement interrupts the guest: at first, and
#: at most for one who never had to wait for it.
_ACK_EVERY: Final = 4
_ACK_EVERY_MOST: Final = 16

#: Answers that came soon after what the guest sent, from which on its acknowledgement waits for the answer;
#: and the seconds that are soon. What Linux calls a ping-pong session.
_PATIENCE: Final = 3
_SOON: Final = 0.01

#: Duplicate acknowledgements after which a segment counts as lost (RFC 5681, section 3.2).
_DUPLICATES: Final = 3

#: Segments that are sent again together where any of them may be lost, too.
_AT_ONCE: Final = 8

#: Seconds: the first retransmission's timeout (RFC 6298, section 2), the longest, and when it is given up.
_FIRST_TIMEOUT: Final = 1.0
_LONGEST_TIMEOUT: Final = 16.0
_GIVE_UP: Final = 120.0

#: Seconds without a segment of the guest's after which it is asked whether it is there; between two such
#: questions; and between two about a window that is closed (RFC 9293, section 3.8.6.1).
_IDLE: Final = 600.0
_ASK_EVERY: Final = 30.0
_ASK_FOR_ROOM: Final = 5.0

#: Seconds between two answers to segments without data that are out of the window: two ends of which each
#: takes the other's for such would answer one another for ever.
_ANSWER_EVERY: Final = 0.5

#: Bytes of a guest's that hosts' sides may keep to themselves, in all of its flows.
MOST_HELD: Final = 16 << 20


class State(IntEnum):
    """How far the handshake is; what comes after it is told by which ends have ended."""

    CONNECTING = 0
    SYN_RECEIVED = 1
    SYN_SENT = 2
    OPEN = 3
    CLOSED = 4


class Host(Sink, Protocol):
    """The socket of this host in which a flow goes on. It calls the flow back later, never at once."""

    def end(self) -> None:
        """No more data comes from the guest."""

    def resume(self) -> None:
        """The guest has room: read again."""

    def closed(self, *, reset: bool) -> None:
        """The flow is over; ``reset`` if not because both ends have ended. Called once, whoever began."""


class Guest(Protocol):
    """The link to the guest, and what its flows share.

    Attributes:
        allowance: see ``Allowance``.
        kept: see ``Store``.
        held: bytes of the guest's that hosts' sides keep to themselves.
        due: flows that owe an acknowledgement as soon as all frames that have come are seen.
        lazy: flows that owe one in some milliseconds.
        early: see ``Keeper``.
        most_early: see ``Keeper``.
        delay: seconds that a frame and its answer take at most, beside what a link takes that is not shaped.
    """

    allowance: int
    kept: int
    held: int
    early: int
    most_early: int
    delay: float
    due: list[Flow]
    lazy: list[Flow]

    def transmit(self, parts: list[bytes | memoryview]) -> None:
        """Send frames, each with its length before it, in any number of parts."""

    def forget(self, key: bytes) -> None:
        """The flow of that key is closed."""


class Flow:
    """One connection. All is called on one thread, and nothing here waits.

    Args:
        key: what the link knows it by.
        template: makes its headers.
        guest: the link.
        host: the socket at the other end.
        mss: largest payload that fits a frame of this link, bytes.
        isn: initial sequence number (RFC 6528).
        now: seconds of a monotonic clock.

    Attributes:
        state: see ``State``.
    """

    __slots__ = (
        "_again_at",
        "_answer_at",
        "_asked",
        "_duplicates",
        "_early",
        "_ended",
        "_every",
        "_guest",
        "_guest_ended",
        "_heard",
        "_host",
        "_inbox",
        "_isn",
        "_key",
        "_limit",
        "_link_mss",
        "_mss",
        "_next",
        "_outstanding",
        "_owes",
        "_owes_at_once",
        "_patience",
        "_progress",
        "_recover",
        "_scaled",
        "_shift",
        "_template",
        "_timeout",
        "_told_host",
        "_unusual",
        "_waits",
        "_window",
        "state",
    )

    def __init__(
        self, key: bytes, template: Template, guest: Guest, host: Host, *, mss: int, isn: int, now: float
    ) -> None:
        self.state = State.CONNECTING
        self._key = key
        self._template = template
        self._guest = guest
        self._host = host
        self._link_mss = self._mss = mss
        self._scaled = True
        self._shift = 0
        self._inbox = Inbox(guest, host)
        self._owes = self._owes_at_once = False
        self._every = _ACK_EVERY
        self._patience = _PATIENCE
        self._guest_ended = self._told_host = False
        self._early: Early | None = None
        self._unusual = False  # the guest has ended, or something is missing of what it sent
        # SND.NXT, SND.WND and, in ``_outstanding.first``, SND.UNA of RFC 9293, section 3.3.1.
        self._next = self._isn = isn
        self._window = 0
        self._outstanding = Outstanding(isn, guest)
        self._limit = WINDOW
        self._waits = False
        self._ended = False
        self._duplicates = 0
        self._recover: int | None = None
        self._heard = self._asked = self._progress = self._answer_at = now
        self._timeout = _FIRST_TIMEOUT
        self._again_at = now + _FIRST_TIMEOUT

    # The handshake

    def asked(self, sequence: int, window: int, options: memoryview) -> None:
        """The guest asks for a connection: keep what its SYN says until ``connected``."""
        said = parse_options(options)
        self._mss = max(_LEAST_MSS, min(self._link_mss, said.mss or _DEFAULT_MSS))
        self._scaled = said.shift is not None
        self._shift = said.shift or 0
        self._window = window  # a SYN's is not scaled (RFC 7323, section 2.2)
        self._inbox.begin(sequence)

    def connected(self, now: float) -> None:
        """The host's side of what the guest asked for is there: tell it."""
        self.state = State.SYN_RECEIVED
        self._begin(SYN | ACK, now)

    def open(self, now: float) -> None:
        """Ask the guest for a connection."""
        self.state = State.SYN_SENT
        self._begin(SYN, now)

    def _begin(self, flags: int, now: float) -> None:
        self._start_timer(now)
        self._send_syn(flags)
        self._next = (self._next + 1) & _MASK

    def _send_syn(self, flags: int) -> None:
        acknowledged = self._inbox.next if flags & ACK else 0
        window = self._inbox.offer(_FIRST_WINDOW) if flags & ACK else _FIRST_WINDOW
        options = syn_options(self._link_mss, _SHIFT if self._scaled else None)
        first = self._outstanding.first
        self._guest.transmit([self._template.head(first, acknowledged, flags, window, options=options)])

    def _answered(
        self, sequence: int, acknowledged: int, flags: int, window: int, options: memoryview
    ) -> None:
        """In SYN_SENT (RFC 9293, section 3.10.7.3)."""
        if flags & ACK and acknowledged != self._next:
            if not flags & RST:  # of a connection that this guest remembers, and that is no more
                self._guest.transmit([self._template.head(acknowledged, 0, RST, 0)])
                self._send_syn(SYN)
            return
        if flags & RST:
            self._close(reset=True)
        elif flags & (SYN | ACK) == SYN | ACK:
            self.asked(sequence, window, options)
            self._advance(1)
            self.state = State.OPEN
            self._guest.transmit([self._head(ACK, self._next)])
            self._host.resume()

    # From the guest

    def segment(
        self,
        sequence: int,
        acknowledged: int,
        flags: int,
        window: int,
        options: memoryview,
        payload: memoryview,
        now: float,
    ) -> None:
        """A segment of this connection (RFC 9293, section 3.10.7.4); ``window`` as it was written down."""
        self._heard = now
        if self.state is not State.OPEN and not self._finish_handshake(
            sequence, acknowledged, flags, window, options
        ):
            return
        if flags & (RST | SYN):
            self._refuse(sequence, flags)
            return
        if not flags & ACK:
            return
        ahead = (acknowledged - self._outstanding.first) & _MASK
        if ahead <= (self._next - self._outstanding.first) & _MASK:
            is_bare = not payload and not flags & FIN
            self._take_acknowledgement(ahead, window << self._shift, now, is_bare=is_bare)
        elif ahead < _HALF:
            self._owe(at_once=True)  # it acknowledges what was not sent yet
            return
        if payload or flags & FIN:
            self._take_payload(sequence, payload, fin=bool(flags & FIN))
        elif (sequence - self._inbox.next) & _MASK > self._inbox.fits() and now >= self._answer_at:
            self._answer_at = now + _ANSWER_EVERY
            self._owe(at_once=True)  # a question whether this end is still there
        self._close_if_done()

    def _finish_handshake(
        self, sequence: int, acknowledged: int, flags: int, window: int, options: memoryview
    ) -> bool:
        """Whether there is more to do with this segment."""
        if self.state is State.SYN_SENT:
            self._answered(sequence, acknowledged, flags, window, options)
            return False
        if self.state is not State.SYN_RECEIVED:
            if self.state is State.CONNECTING and flags & RST:
                self._close(reset=True)
            return False
        if flags & SYN and (sequence + 1) & _MASK == self._inbox.next:
            self._send_syn(SYN | ACK)  # it has not seen the answer
            return False
        if flags & (ACK | RST) == ACK and acknowledged == self._next:
            self._advance(1)
            self.state = State.OPEN
            self._host.resume()
        return self.state is State.OPEN or bool(flags & RST)

    def _refuse(self, sequence: int, flags: int) -> None:
        """A reset, or a SYN in the midst of a connection (RFC 5961, sections 3 and 4)."""
        if flags & RST and sequence == self._inbox.next:
            self._close(reset=True)
        elif flags & SYN or (sequence - self._inbox.next) & _MASK < self._inbox.fits():
            self._owe(at_once=True)

    def _take_acknowledgement(self, ahead: int, window: int, now: float, *, is_bare: bool) -> None:
        if ahead:
            self._start_timer(now)
            self._duplicates = 0
            self._limit = min(WINDOW, self._limit + ahead)
            self._advance(ahead)
            if self._recover is not None:
                self._go_on_recovering()
        elif self._outstanding.size and is_bare and window == self._window:  # RFC 5681, section 2
            self._duplicates += 1
            if self._duplicates == _DUPLICATES:
                self._begin_recovery()
        self._window = window
        if not window:
            self._progress = now  # who says that it has no room is there (RFC 9293, section 3.8.6.1)
        if self._waits and self.room() > 0:
            self._waits = False
            self._host.resume()

    def _advance(self, count: int) -> None:
        """The guest has acknowledged ``count`` more; a SYN and a FIN count, and are no bytes of data."""
        data = min(count, self._outstanding.size)
        self._outstanding.acknowledge(data)
        if count > data:
            self._outstanding.first = (self._outstanding.first + count - data) & _MASK

    def _take_payload(self, sequence: int, payload: memoryview, *, fin: bool) -> None:
        inbox = self._inbox
        before = (inbox.next - sequence) & _MASK
        if before:
            if before > _HALF or before > len(payload) or self._guest_ended:
                if before > _HALF and self._guest.most_early:
                    self._keep_early(sequence, payload, fin=fin)
                self._owe(at_once=True)  # a hole, or nothing new
                return
            payload = payload[before:]
        if self._unusual:
            self._take_unusual(payload, fin=fin)
            return
        if len(payload) > inbox.fits():
            payload = payload[: inbox.fits()]
            fin = False
        if payload:
            inbox.take(payload)
        if fin:
            inbox.skip()
            self._guest_ended = self._unusual = True
            self._tell_end()
        self._owe(at_once=self._cannot_wait(len(payload), fin=fin))

    def _cannot_wait(self, size: int, *, fin: bool) -> bool:
        """Whether to acknowledge at once what has come, the last segment with ``size`` bytes of payload."""
        owed = (self._inbox.next - self._inbox.told) & _MASK
        if owed == size < self._mss:
            # Its sender may wait for it, with Nagle's algorithm. But mostly an answer is about to tell it.
            return self._patience < _PATIENCE and not fin
        if owed < self._every * self._mss:
            return False
        self._every = min(_ACK_EVERY_MOST, self._every + 1)
        return True

    def _keep_early(self, sequence: int, payload: memoryview, *, fin: bool) -> None:
        """Keep what came behind a hole, as far as the guest may send it."""
        inbox = self._inbox
        if not self._guest_ended and (sequence - inbox.next) & _MASK <= inbox.fits() - len(payload):
            self._early = self._early or Early(self._guest)
            self._early.keep(sequence, payload, fin=fin)
            self._unusual = True

    def _take_unusual(self, payload: memoryview, *, fin: bool) -> None:
        """Take what follows what was taken before, and then what was kept that follows it."""
        early = self._early
        if self._guest_ended or early is None:
            return
        found: tuple[memoryview | bytes, bool] | None = (payload, fin)
        while found is not None:
            self._unusual = False
            self._take_payload(self._inbox.next, memoryview(found[0]), fin=found[1])
            found = None if self._unusual else early.take(self._inbox.next)
        if self._unusual:  # with its end
            early.clear()
        self._unusual = self._unusual or bool(early)
        self._owe(at_once=True)

    def _tell_end(self) -> None:
        if self._guest_ended and not self._told_host and not self._inbox.waiting:
            self._told_host = True
            self._host.end()

    def _close_if_done(self) -> None:
        if self._ended and self._told_host and self._outstanding.first == self._next:
            head = self.acknowledgement()
            if head:  # nobody acknowledges the guest's end when this is no more
                self._guest.transmit([head])
            self._close(reset=False)

    def drain(self) -> None:
        """The host's socket takes data again."""
        if self.state is State.CLOSED:
            return
        self._inbox.drain()
        self._tell_end()
        if self._inbox.is_wider():
            self._owe(at_once=False)
        self._close_if_done()

    # To the guest

    def room(self) -> int:
        """Bytes that may be read from the host's socket; with none, ``Host.resume`` tells when there are."""
        if self.state is not State.OPEN or self._ended:
            return 0
        room = self._outstanding.room(min(self._window, self._limit))
        if room <= 0:
            self._waits = True
        return room

    def send(self, data: bytes, now: float, *, more: bool = False) -> None:
        """Send the guest what the host's socket had: 1 to ``room`` bytes; there is likely ``more``."""
        if not self._outstanding.size:
            self._start_timer(now)
            if now - self._heard < _SOON:
                self._patience += 1
        self._outstanding.add(data)
        mss, sequence, size = self._mss, self._next, len(data)
        flags = ACK if more else ACK | PSH
        window, acknowledged, head = self._told_window(), self._inbox.next, self._template.head
        parts: list[bytes | memoryview] = []
        view = memoryview(data)
        for start in range(0, size, mss):
            piece = view[start : start + mss]
            length, at = len(piece), (sequence + start) & _MASK
            total = piece_sum(data, start, length)
            parts += (head(at, acknowledged, flags, window, size=length, total=total), piece)
        self._next = (sequence + size) & _MASK
        self._guest.transmit(parts)

    def end(self, now: float) -> None:
        """The host's socket has no more data."""
        if not self._outstanding.size:
            self._start_timer(now)
        self._ended = True
        self._guest.transmit([self._head(FIN | ACK, self._next)])
        self._next = (self._next + 1) & _MASK

    def reset(self) -> None:
        """The host's side broke off, or never was there."""
        if self.state is State.CONNECTING:
            # The answer to a SYN (RFC 9293, section 3.10.7.1).
            self._guest.transmit([self._template.head(0, self._inbox.next, RST | ACK, 0)])
        elif self.state is not State.CLOSED:
            self._guest.transmit([self._template.head(self._next, self._inbox.next, RST | ACK, 0)])
        self._close(reset=True)

    def abandon(self) -> None:
        """The guest is gone: tell the host's side alone."""
        self._close(reset=True)

    @property
    def passed(self) -> tuple[int, int]:
        """Bytes that came from the guest, and that it has acknowledged; both modulo 4 GiB."""
        came = self._inbox.next - self._inbox.first - self._guest_ended
        acknowledged = (self._outstanding.first - self._isn - 1) & _MASK
        if acknowledged == _MASK:
            acknowledged = 0  # not even the SYN is
        elif self._ended and self._outstanding.first == self._next:
            acknowledged -= 1
        return came & _MASK, acknowledged & _MASK

    def hold(self, count: int) -> bool:
        """The host's side keeps so many bytes of the guest's to itself that it took, or less if below 0.

        They count as those do that wait here. Whether there is room for more, in all of its flows.
        """
        self._guest.allowance -= count
        self._guest.held += count
        return self._guest.held <= MOST_HELD

    def _close(self, *, reset: bool) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._inbox.close()
            self._outstanding.clear()
            if self._early is not None:
                self._early.clear()
            self._guest.forget(self._key)
            self._host.closed(reset=reset)

    # What was lost, and who is silent

    def tick(self, now: float) -> None:
        """Look whether time has passed that ends something. Not called while the link takes nothing."""
        if self.state is State.OPEN:
            if now - self._heard > _IDLE:
                self._ask(now, _ASK_EVERY)
            elif self._waits and not self._outstanding.size:
                self._ask(now, _ASK_FOR_ROOM)
        if self._next == self._outstanding.first or self.state in {State.CONNECTING, State.CLOSED}:
            return
        delay = self._guest.delay
        if now - self._progress > _GIVE_UP + delay:
            self.reset()
        elif now > self._again_at + delay:
            self._timeout = min(2 * self._timeout, _LONGEST_TIMEOUT)
            self._again_at = now + self._timeout
            self._send_again()

    def _start_timer(self, now: float) -> None:
        self._progress = now
        self._timeout = _FIRST_TIMEOUT
        self._again_at = now + _FIRST_TIMEOUT

    def _ask(self, now: float, every: float) -> None:
        """Send a number from before, which is answered by one who is there (RFC 9293, section 3.8.4)."""
        if now - self._heard > _IDLE + _GIVE_UP:
            self.reset()
        elif now - self._asked > every:
            self._asked = now
            self._guest.transmit([self._head(ACK, (self._next - 1) & _MASK)])

    def _send_again(self) -> None:
        """What the guest has not acknowledged for too long."""
        if self.state is State.SYN_SENT:
            self._send_syn(SYN)
        elif self.state is State.SYN_RECEIVED:
            self._send_syn(SYN | ACK)
        elif self._outstanding.size:
            self._begin_recovery()
        else:
            self._guest.transmit([self._head(FIN | ACK, self._outstanding.first)])

    def _begin_recovery(self) -> None:
        """Send all again that is not acknowledged, piece by piece; and less at once from here on."""
        self._recover = self._next
        self._limit = self._mss * self._at_once()
        self._send_first_again()

    def _at_once(self) -> int:
        """Segments to be sent again together: with one of many, hardly any loss would be noticed in time."""
        return _AT_ONCE if self._guest.most_early else 1

    def _go_on_recovering(self) -> None:
        left = ((self._recover or 0) - self._outstanding.first) & _MASK
        if not self._outstanding.size or not 0 < left < _HALF:
            self._recover = None
        else:
            self._send_first_again()

    def _send_first_again(self) -> None:
        most = min(self._mss, max(1, self._window))
        parts: list[bytes | memoryview] = []
        at = 0
        for _ in range(self._at_once()):
            piece = self._outstanding.piece(at, min(most, max(1, self._window - at)))
            if not piece:
                break
            sequence = (self._outstanding.first + at) & _MASK
            parts += (self._head(ACK | PSH, sequence, len(piece), ones_sum(piece)), piece)
            at += len(piece)
        self._guest.transmit(parts)

    # Acknowledgements

    def _owe(self, *, at_once: bool) -> None:
        if at_once and not self._owes_at_once:
            self._owes_at_once = True
            self._guest.due.append(self)
        elif not (at_once or self._owes or self._owes_at_once):
            self._owes = True
            self._guest.lazy.append(self)

    def acknowledgement(self, *, late: bool = False) -> bytes:
        """A frame that tells what has come and how much may; empty if the guest knows.

        It is ``late`` if nothing else happened for so long that the guest may have waited for it.
        """
        if not (self._owes or self._owes_at_once) or self.state is not State.OPEN:
            return b""
        if late:
            self._patience = 0
            self._every = max(1, self._every // 2)
        return self._head(ACK, self._next)

    def _told_window(self) -> int:
        """The window as it is written down, in a segment that acknowledges, too."""
        self._owes = self._owes_at_once = False
        return self._inbox.offer() >> _SHIFT if self._scaled else self._inbox.offer(_FIRST_WINDOW)

    def _head(self, flags: int, sequence: int, size: int = 0, total: int = 0) -> bytes:
        window = self._told_window()
        return self._template.head(sequence, self._inbox.next, flags, window, size=size, total=total)
