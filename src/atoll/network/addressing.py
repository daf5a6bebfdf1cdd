"""Which addresses a network has: all that follows from its two prefixes."""

from __future__ import annotations

from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

__all__ = ["Addressing"]

#: Hosts of a network, counted from its prefix: the gateway, its name server, and the first of the machines.
#: They are those of QEMU's own network, so that a guest may be moved from one to the other.
_GATEWAY, _RESOLVER, _FIRST = 2, 3, 15


class Addressing(msgspec.Struct, frozen=True, dict=True):
    """The addresses of one network.

    Attributes:
        ipv4: prefix of 8 to 28 bits.
        ipv6: prefix of 64 bits (RFC 4291, section 2.5.1).
        mac: the gateway's hardware address, 6 bytes; the same for every network.
    """

    ipv4: IPv4Network
    ipv6: IPv6Network
    mac: bytes = b"\x52\x55\x0a\x00\x02\x02"

    def __post_init__(self) -> None:
        assert 8 <= self.ipv4.prefixlen <= 28
        assert self.ipv6.prefixlen == 64

    @cached_property
    def gateway(self) -> IPv4Address:
        """Where packets to the outside go."""
        return self.ipv4[_GATEWAY]

    @cached_property
    def resolver(self) -> IPv4Address:
        """The name server."""
        return self.ipv4[_RESOLVER]

    @cached_property
    def gateway6(self) -> IPv6Address:
        """The gateway's address that others may be told of."""
        return self.ipv6[_GATEWAY]

    @cached_property
    def resolver6(self) -> IPv6Address:
        """The name server's."""
        return self.ipv6[_RESOLVER]

    @cached_property
    def gateways(self) -> frozenset[bytes]:
        """The gateway's addresses."""
        return frozenset({self.gateway.packed, self.gateway6.packed})

    @cached_property
    def resolvers(self) -> frozenset[bytes]:
        """Where guests may ask for names: the gateway answers, too."""
        own = (self.gateway, self.resolver, self.gateway6, self.resolver6)
        return frozenset(address.packed for address in own)

    @property
    def machines(self) -> range:
        """Numbers that machines may have, of ``machine``."""
        return range(min(self.ipv4.num_addresses - 1 - _FIRST, 65536))

    def machine(self, number: int) -> tuple[IPv4Address, IPv6Address]:
        """The addresses of the machine with a number of ``machines``."""
        return self.ipv4[_FIRST + number], self.ipv6[_FIRST + number]
