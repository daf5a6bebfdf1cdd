"""A guest on a network, from the network's end."""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, Protocol


from atoll.network.tcp.flow import Flow
from atoll.network.tcp.segment import ACK, FIN, RST, SYN, Template
from atoll.network.wire import ethernet
from atoll.network.wire.checksum import checksum, ones_sum

_FAST: Final = struct.Struct(">HBxHxxHxB")
_TCP: Final = struct.Struct(">IIHH")


class Wire(Protocol):
    def transmit(self, parts: list[bytes | memoryview]) -> None: ...


class Station:
    def __init__(
        self,
        mac: bytes,
        own_mac: bytes,
        guest: bytes,
        gateway: bytes,
        mtu: int,
        wire: Wire,
        outside,
        clock,
        secret: bytes,
    ) -> None:
        self.allowance = 32 << 20
        self.due: list[Flow] = []
        self.lazy: list[Flow] = []
        self.flows: dict[bytes, Flow] = {}
        self._wire = wire
        self.transmit = wire.transmit
        self._out_header = mac + own_mac
        self._own_mac = own_mac
        self._guest = guest
        self._gateway = gateway
        self._mtu = mtu
        self._outside = outside
        self._clock = clock
        self._secret = secret
        self.timer = None

    def frame(self, buffer: memoryview, start: int, end: int) -> None:
        if end - start < 54:
            self._other(buffer, start, end)
            return
        kind, version, total, fragment, protocol = _FAST.unpack_from(buffer, start + 12)
        if (
            kind == 0x800
            and version == 0x45
            and protocol == 6
            and not fragment & 0x3FFF
            and 14 + total <= end - start
        ):
            sequence, acknowledged, flags, window = _TCP.unpack_from(buffer, start + 38)
            key = bytes(buffer[start + 26 : start + 38])
            payload = start + 34 + (flags >> 10 & 0x3C)
            stop = start + 14 + total
            if payload > stop or payload < start + 54:
                return
            flow = self.flows.get(key)
            if flow is not None:
                flow.segment(
                    sequence,
                    acknowledged,
                    flags,
                    window,
                    buffer[start + 54 : payload],
                    buffer[payload:stop],
                    self._clock(),
                )
            else:
                self._new(
                    key, sequence, acknowledged, flags, window, buffer[start + 54 : payload], stop - payload
                )
            return
        self._other(buffer, start, end)

    def _new(self, key, sequence, acknowledged, flags, window, options, size):
        template = Template(
            self._out_header + b"\x08\x00", key[4:8], key[:4], key[10] << 8 | key[11], key[8] << 8 | key[9]
        )
        if flags & (SYN | RST | ACK) != SYN:
            if not flags & RST:
                if flags & ACK:
                    self.transmit([template.head(acknowledged, 0, RST, 0)])
                else:
                    self.transmit(
                        [
                            template.head(
                                0, (sequence + size + (flags & (SYN | FIN) > 0)) & 0xFFFFFFFF, RST | ACK, 0
                            )
                        ]
                    )
            return
        if key[:4] != self._guest:
            return
        host = self._outside.dial(self, key[4:8], key[10] << 8 | key[11])
        flow = Flow(template, self, host, mss=self._mtu - 40, isn=self._isn(key), now=self._clock())
        self.flows[key] = flow
        host.on_closed = lambda: self.flows.pop(key, None)
        flow.asked(sequence, window, options)
        host.start(flow)

    def _isn(self, key: bytes) -> int:
        return (
            int.from_bytes(blake2b(key, key=self._secret, digest_size=4).digest())
            + int(self._clock() * 250000)
        ) & 0xFFFFFFFF

    def _other(self, buffer, start, end):
        kind = bytes(buffer[start + 12 : start + 14])
        if kind == b"\x08\x06" and end - start >= 42:
            target = bytes(buffer[start + 38 : start + 42])
            if buffer[start + 21] == 1 and target != self._guest:
                sender = bytes(buffer[start + 22 : start + 32])
                f = self._out_header + b"\x08\x06" + b"\0\1\x08\0\6\4\0\2" + self._own_mac + target + sender
                self.transmit([len(f).to_bytes(4), f])

    def seen(self) -> None:
        if self.due:
            due, self.due = self.due, []
            parts = [head for flow in due if (head := flow.acknowledgement())]
            if parts:
                self.transmit(parts)
        if self.lazy and self.timer is None:
            self.timer = self._outside.later(0.003, self.tick)

    def tick(self):
        self.timer = None
        lazy, self.lazy = self.lazy, []
        parts = [head for flow in lazy if (head := flow.acknowledgement())]
        if parts:
            self.transmit(parts)

    def gone(self):
        raise SystemExit
