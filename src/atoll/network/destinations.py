"""Where the packets of guests may go: a decision about addresses alone."""

from __future__ import annotations

from collections.abc import Container
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import msgspec

from atoll.network.addressing import Addressing

__all__ = ["Destinations", "Target"]

#: The host, as its own programs call it.
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


class Target(msgspec.Struct, frozen=True):
    """Where this host is to connect to.

    Attributes:
        address: as text.
        port: 1 to 65535.
        path: of a unix socket, in the place of both; empty for none.
        is_host: it is this host itself, whose port was opened; else it must not be one of its addresses.
    """

    address: str
    port: int
    is_host: bool
    path: str = ""


class Destinations(msgspec.Struct, frozen=True):
    """What leads out of a network.

    Attributes:
        addressing: of the network.
        outside: whether it leads to anywhere but the host's open ports.
        host_ports: ports of the host's own loopback that guests may use at the gateway's address.
        reverse: where other ports of the gateway lead: to a port of that loopback, or to a unix socket.
        trusted: the guest may use the host's other addresses, too.
    """

    addressing: Addressing
    outside: bool = True
    host_ports: Container[int] = frozenset()
    reverse: dict[int, int | str] = {}
    trusted: bool = False

    def target(self, address: bytes, port: int) -> Target | None:
        """Where a guest's packets to an address of 4 or 16 bytes go; None if nowhere.

        This host's loopback, what is on the same link as it, and groups of hosts are nobody's to reach from a
        guest: there is more than the outside there, as the data of a cloud's own service about the host.
        """
        if not port:
            return None
        if address in self.addressing.gateways:
            return self._of_host(port)
        found = ip_address(address)
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            return None
        if not self.outside or self._is_special(found):
            return None
        return Target(str(found), port, is_host=False)

    def _of_host(self, port: int) -> Target | None:
        where = self.reverse.get(port, port if port in self.host_ports else None)
        if isinstance(where, str):
            return Target("", 0, is_host=True, path=where)
        return None if where is None else Target(_LOOPBACK[4], where, is_host=True)

    def _is_special(self, address: IPv4Address | IPv6Address) -> bool:
        own = self.addressing.ipv4 if isinstance(address, IPv4Address) else self.addressing.ipv6
        return (
            address in own
            or address.is_loopback
            or address.is_link_local
            or address.is_multicast
            or address.is_unspecified
            or (isinstance(address, IPv4Address) and address.packed[0] in {0, 255})
        )
