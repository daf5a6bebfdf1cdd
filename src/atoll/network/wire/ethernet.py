"""Ethernet frames (IEEE 802.3) and what QEMU puts before each on a stream socket.

On a ``stream`` network of QEMU every frame follows its length, four bytes in network order (net/stream.c).
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "ARP",
    "BROADCAST",
    "HEADER",
    "IPV4",
    "IPV6",
    "LARGEST",
    "LENGTH",
    "FramingError",
    "parse_mac",
]

#: EtherTypes (IANA, IEEE 802 Numbers).
IPV4: Final = 0x0800
ARP: Final = 0x0806
IPV6: Final = 0x86DD

#: Bytes of a header: destination, source, EtherType.
HEADER: Final = 14

BROADCAST: Final = b"\xff" * 6

#: The length before a frame.
LENGTH: Final = struct.Struct(">I")

#: Bytes of the longest frame that QEMU sends or takes (net/net.c, NET_BUFSIZE).
LARGEST: Final = 4096 + 65536


class FramingError(Exception):
    """A length before a frame that cannot be: what follows on this stream cannot be told."""


def parse_mac(text: str) -> bytes:
    """The six bytes of ``02:00:00:00:00:01``. Raises ``ValueError``."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise ValueError(f"{text!r} is no Ethernet address")
    return mac
