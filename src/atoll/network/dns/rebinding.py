"""Addresses that no name of the outside may have, lest a page from there speaks to the inside."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from atoll.network.dns.names import Network

__all__ = ["ALWAYS", "Forbidden"]

#: This host, the link, and "this network", which hosts take for themselves.
ALWAYS: tuple[Network, ...] = tuple(
    ip_network(each)
    for each in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/128", "::1/128", "fe80::/10")
)

#: Prefixes of 96 bits before an address of IPv4: mapped (RFC 4291), and translated (RFC 6052).
_EMBEDDING = {bytes(10) + b"\xff\xff", b"\0\x64\xff\x9b" + bytes(8), bytes(12)}


class Forbidden:
    """Says whether an address of 4 or 16 bytes is in one of some networks, also where it is embedded."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._masks: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for network in networks:
            masked = int(network.netmask), int(network.network_address)
            self._masks[len(network.netmask.packed)].append(masked)

    def __call__(self, address: bytes) -> bool:
        """Whether it may not be given."""
        value = int.from_bytes(address)
        for mask, network in self._masks[len(address)]:
            if value & mask == network:
                return True
        return len(address) == 16 and address[:12] in _EMBEDDING and self(address[12:])
