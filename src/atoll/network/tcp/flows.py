"""All connections of one guest, without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

from atoll.network.tcp.flow import Flow, Host
from atoll.network.tcp.segment import ACK, FIN, RST, SYN, Template
from atoll.network.wire import ethernet

__all__ = ["Dialling", "Ends", "Flows", "Opener"]

#: Connections that a guest may have at once; each is a descriptor of this process.
MOST_FLOWS: Final = 8192

#: Bytes that a guest may be told to send in all of its flows together.
_ALLOWANCE: Final = 32 << 20

#: Ports from which this network opens connections to guests (RFC 6335, section 6).
_FIRST_PORT: Final = 49152
_PORTS: Final = 65536 - _FIRST_PORT

#: Bytes of the largest packet: with its Ethernet header and virtio's (12 bytes, VIRTIO 1.2, section 5.1.6) it
#: fills 16 pages of the guest's, and a few bytes more would take another one.
_LARGEST: Final = 16 * 4096 - 12 - ethernet.HEADER

#: Ticks of the clock of initial sequence numbers in a second (RFC 6528, section 3).
_ISN_RATE: Final = 250_000

_MASK: Final = (1 << 32) - 1


class Ends(NamedTuple):
    """Whom a guest's connection is between: addresses of 4 or 16 bytes."""

    guest: bytes
    guest_port: int
    other: bytes
    other_port: int

    @property
    def key(self) -> bytes:
        """As they lie in a packet of the guest's, from its source address to its destination port."""
        return self.guest + self.other + self.guest_port.to_bytes(2) + self.other_port.to_bytes(2)


def ends_of(key: bytes) -> Ends:
    """The inverse of ``Ends.key``."""
    size = (len(key) - 4) // 2
    ports = int.from_bytes(key[-4:-2]), int.from_bytes(key[-2:])
    return Ends(key[:size], ports[0], key[size : 2 * size], ports[1])


class Dialling(Host, Protocol):
    """The host's side of what a guest asked for, about to be there."""

    def dial(self, flow: Flow) -> None:
        """Tell ``flow``, now or later: by ``connected``, ``reset`` or ``abandon``."""


class Opener(Protocol):
    """Opens the host's side of connections."""

    def open(self, ends: Ends) -> Dialling | None:
        """Begin to connect to ``ends.other``; None if the guest is to be refused."""


class Flows:
    """The connections of one guest.

    Args:
        transmit: sends frames to the guest.
        opener: for those that the guest asks for.
        macs: of the guest and of the network's end, as frames to the guest begin with.
        mtu: bytes of the largest packet.
        clock: seconds, monotonic.
        secret: 16 bytes, for initial sequence numbers.

    Attributes:
        allowance: see ``Guest``.
        kept: see ``Guest``.
        held: see ``Guest``.
        due: see ``Guest``.
        lazy: see ``Guest``.
        delay: see ``Guest``.
        early: see ``Keeper``.
        most_early: see ``Keeper``.
        table: by key.
    """

    def __init__(
        self,
        transmit: Callable[[list[bytes | memoryview]], None],
        opener: Opener,
        macs: bytes,
        *,
        mtu: int,
        clock: Callable[[], float],
        secret: bytes,
    ) -> None:
        self.transmit = transmit
        self.allowance = _ALLOWANCE
        self.kept = self.held = 0
        self.delay = 0.0
        self.early = self.most_early = 0
        self.due: list[Flow] = []
        self.lazy: list[Flow] = []
        self.table: dict[bytes, Flow] = {}
        self._opener = opener
        self._macs = macs
        self._mtu = mtu
        self._clock = clock
        self._secret = secret
        self._port = int.from_bytes(blake2b(b"port", key=secret, digest_size=2).digest()) % _PORTS

    def forget(self, key: bytes) -> None:
        """See ``Guest``."""
        self.table.pop(key, None)

    def first(
        self,
        key: bytes,
        sequence: int,
        acknowledged: int,
        flags: int,
        window: int,
        options: memoryview,
        size: int,
    ) -> None:
        """A segment of no known flow, with ``size`` bytes of payload (RFC 9293, sections 3.10.7.1 and .2)."""
        ends = ends_of(key)
        if flags & (SYN | RST | ACK | FIN) == SYN:
            host = self._opener.open(ends) if len(self.table) < MOST_FLOWS else None
            if host is not None:
                flow = self._make(ends, host)
                flow.asked(sequence, window, options)
                host.dial(flow)
                return
        if not flags & RST:
            self._refuse(ends, sequence, acknowledged, flags, size)

    def accept(self, host: Host, ends: Ends) -> Flow | None:
        """A connection to the guest, from any port if ``ends.other_port`` is 0; None if there is no room.

        The caller calls ``Flow.open`` when the host's side is ready for it.
        """
        if len(self.table) >= MOST_FLOWS:
            return None
        if not ends.other_port:
            for _ in range(_PORTS):
                self._port = (self._port + 1) % _PORTS
                ends = ends._replace(other_port=_FIRST_PORT + self._port)
                if ends.key not in self.table:
                    break
        return None if ends.key in self.table else self._make(ends, host)

    def acknowledge(self) -> None:
        """All frames that had come have been seen: acknowledge what cannot wait."""
        if self.due:
            due, self.due = self.due, []
            self._transmit([flow.acknowledgement() for flow in due])

    def acknowledge_all(self) -> None:
        """Some milliseconds have passed: acknowledge what could wait."""
        lazy, self.lazy = self.lazy, []
        self._transmit([flow.acknowledgement(late=True) for flow in lazy])

    def tick(self, now: float) -> None:
        """Look at each flow's timers; some times a second, while the link takes what it is given."""
        for flow in tuple(self.table.values()):
            flow.tick(now)

    def abandon(self) -> None:
        """The guest is gone."""
        for flow in tuple(self.table.values()):
            flow.abandon()

    def _transmit(self, heads: list[bytes]) -> None:
        found: list[bytes | memoryview] = [head for head in heads if head]
        if found:
            self.transmit(found)

    def _make(self, ends: Ends, host: Host) -> Flow:
        key, is_6 = ends.key, len(ends.guest) == 16
        flow = self.table[key] = Flow(
            key,
            self._template(ends),
            self,
            host,
            mss=min(self._mtu, _LARGEST) - (60 if is_6 else 40),
            isn=self._isn(key),
            now=self._clock(),
        )
        return flow

    def _template(self, ends: Ends) -> Template:
        kind = ethernet.IPV6 if len(ends.guest) == 16 else ethernet.IPV4
        header = self._macs + kind.to_bytes(2)
        return Template(header, ends.other, ends.guest, ends.other_port, ends.guest_port)

    def _refuse(self, ends: Ends, sequence: int, acknowledged: int, flags: int, size: int) -> None:
        template = self._template(ends)
        if flags & ACK:
            head = template.head(acknowledged, 0, RST, 0)
        else:
            count = size + bool(flags & SYN) + bool(flags & FIN)
            head = template.head(0, (sequence + count) & _MASK, RST | ACK, 0)
        self.transmit([head])

    def _isn(self, key: bytes) -> int:
        """An initial sequence number that nobody can guess (RFC 6528, section 3)."""
        secret = int.from_bytes(blake2b(key, key=self._secret, digest_size=4).digest())
        return (secret + int(self._clock() * _ISN_RATE)) & _MASK
