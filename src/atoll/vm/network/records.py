"""What a network is, and who has which address on it. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv6Address, IPv6Network
from typing import ClassVar

import msgspec

from atoll.errors import NetworkError, StoreError, UsageError
from atoll.network.addressing import Addressing
from atoll.vm.network.attachment import DEFAULT, MTU, SANDBOXES
from atoll.vm.network.planning import LEAST_MTU, parse_subnet, parse_subnet_6

__all__ = [
    "BUILT_IN_IPV4",
    "DOMAIN",
    "Leases",
    "Network",
    "Numbers",
    "autoconfigured",
    "drawn_prefix",
    "new_network",
]

#: To which all names of networks belong. ICANN has set ``internal`` aside for such uses.
DOMAIN = "atoll.internal"

#: The addresses of those that are made at their first use.
BUILT_IN_IPV4 = {DEFAULT: "10.0.2.0/24", SANDBOXES: "10.1.0.0/16"}

#: Seconds for which the process of a network may stay at most when nobody uses it.
_LONGEST = 3600.0


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network.

    Attributes:
        ipv4: prefix.
        ipv6: prefix of 64 bits.
        outside: whether it leads anywhere.
        shared: its guests see one another.
        mtu: bytes of the largest packet.
        linger: seconds for which its process stays when nobody uses it.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    ipv4: str
    ipv6: str
    outside: bool = True
    shared: bool = True
    mtu: int = MTU
    linger: float = 10.0

    @property
    def addressing(self) -> Addressing:
        """Its addresses. Raises ``StoreError``: ``store.corrupt``: they are none."""
        try:
            ipv4, ipv6 = parse_subnet(self.ipv4), parse_subnet_6(self.ipv6)
        except UsageError as error:
            raise StoreError(f"the record of a network is wrong: {error.message}", code="corrupt") from error
        if not LEAST_MTU <= self.mtu <= MTU or not 0 <= self.linger <= _LONGEST:
            raise StoreError("the record of a network is wrong: it has other sizes", code="corrupt")
        return Addressing(ipv4, ipv6)


def new_network(name: str) -> Network:
    """The network that is made at the first use of that name.

    Raises:
        NetworkError: ``network.unknown``: it is none that is made so.
    """
    if name not in BUILT_IN_IPV4:
        hint = f"`atoll network create {name}` makes one"
        raise NetworkError(f"there is no network {name}", code="unknown", hint=hint)
    return Network(ipv4=BUILT_IN_IPV4[name], ipv6=str(drawn_prefix()), shared=name != SANDBOXES)


def drawn_prefix() -> IPv6Network:
    """A prefix of 64 bits that nobody else has: it is random (RFC 4193)."""
    return IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 64))


class Leases(msgspec.Struct, frozen=True, kw_only=True):
    """Which machine has which address.

    Attributes:
        numbers: of ``Addressing.machine``, by the machine's id; who came last is last.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    numbers: dict[str, int] = {}


class Numbers:
    """Which card has which of a network's numbers.

    Args:
        count: how many there are, from 0.
        kept: those that machines keep, by the machine's id.
    """

    def __init__(self, count: int, kept: Mapping[str, int]) -> None:
        self._count = count
        self._kept: dict[str, int] = {}
        for owner, number in kept.items():
            if 0 <= number < count and number not in self._kept.values():
                self._kept[owner] = number
        self._lent: dict[str, int] = {}
        self._last = -1

    @property
    def kept(self) -> dict[str, int]:
        """Those that machines keep; who came last is last."""
        return dict(self._kept)

    def take(self, owner: str, *, keep: bool, wanted: int = -1) -> tuple[int, bool] | None:
        """A number for an owner, and whether it was its own before; None if all are in use.

        Where none is free, the machine loses its that has not been there for the longest time.

        Args:
            owner: of the card.
            keep: it is a machine, which keeps the number.
            wanted: which one it would like.
        """
        number = self._kept.pop(owner, -1)
        known = number >= 0
        if not known:
            found = self._choose(wanted, lowest=keep)
            if found is None:
                return None
            number = found
        if keep:
            self._kept[owner] = number
        else:
            self._last = number
        self._lent[owner] = number
        return number, known or number == wanted

    def release(self, owner: str) -> None:
        """An owner's card is pulled."""
        self._lent.pop(owner, None)

    def forget(self, owner: str) -> bool:
        """A machine is gone for good, and its number another's; whether that is so: its card may be there."""
        return owner not in self._lent and self._kept.pop(owner, None) is not None

    def _choose(self, wanted: int, *, lowest: bool) -> int | None:
        taken = {*self._kept.values(), *self._lent.values()}
        if 0 <= wanted < self._count and wanted not in taken:
            return wanted
        if len(taken) < self._count:
            start = 0 if lowest else self._last + 1
            turns = ((start + step) % self._count for step in range(self._count))
            return next(number for number in turns if number not in taken)
        for owner, number in self._kept.items():
            if owner not in self._lent:
                del self._kept[owner]
                return number
        return None


def autoconfigured(network: IPv6Network, mac: bytes) -> IPv6Address:
    """The address that a guest makes itself of a prefix of 64 bits (RFC 4862; RFC 4291, appendix A)."""
    identifier = bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))
    return network[int.from_bytes(identifier)]
