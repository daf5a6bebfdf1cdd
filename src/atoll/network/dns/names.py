"""The names of a network's machines and services, shared by all that have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from atoll.errors import UsageError
from atoll.network.dns.labels import is_hostname
from atoll.network.dns.message import Rcode, Type

__all__ = ["Address", "Entry", "Found", "Names", "Network", "address_of", "addresses_of_type"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Names that a table has at most.
_MOST = 16_384


class Entry(NamedTuple):
    """One owner's use of a name, which is whole."""

    name: str
    owner: Hashable
    addresses: tuple[Address, ...]


class Found(NamedTuple):
    """What is known of a name: addresses, or the name that an address has; ``zone`` is whose SOA denies."""

    rcode: Rcode
    records: tuple[Address | str, ...]
    zone: str


class Names:
    """Names with the addresses that their owners gave them.

    A name may have several owners: it leads to all their addresses, and goes with the last of them. So an
    alias is nothing but a further name.

    Args:
        domain: to which all names belong that are not whole.
        networks: whose addresses nobody else can name.
    """

    def __init__(self, domain: str = "atoll.internal", networks: Iterable[Network] = ()) -> None:
        self.domain = domain
        self._networks = tuple(networks)
        self._names: dict[str, dict[Hashable, tuple[Address, ...]]] = {}
        self._owned: dict[Hashable, dict[str, None]] = {}
        self._reverse: dict[Address, dict[tuple[Hashable, str], None]] = {}
        self._parents: Counter[str] = Counter()
        #: Changes with each change of the table.
        self.version = 0

    def __iter__(self) -> Iterator[Entry]:
        """All uses of names."""
        for name, owners in self._names.items():
            for owner, addresses in owners.items():
                yield Entry(name, owner, addresses)

    @property
    def reverse(self) -> Iterator[tuple[Address, str]]:
        """Each address with the name that it is called."""
        for address, names in self._reverse.items():
            yield address, next(iter(names))[1]

    def add(self, owner: Hashable, name: str, addresses: Iterable[Address]) -> None:
        """Let a name lead to an owner's addresses, in place of those that this owner gave it before.

        Args:
            owner: who has it.
            name: in the network's domain, or whole if it ends in a dot.
            addresses: in the order in which they are answered. The first name of an address is the one that
                it is called.

        Raises:
            UsageError: ``usage.dns_name``: this is no name, or there are too many.
        """
        whole = self._whole(name)
        if whole is None:
            hint = "use letters, digits and hyphens, at most 63 between two dots"
            raise UsageError(f"{name!r} cannot be the name of a machine", code="dns_name", hint=hint)
        if whole not in self._names and len(self._names) >= _MOST:
            raise UsageError(f"the network has {_MOST} names already", code="dns_name")
        self.remove(owner, name)
        if whole not in self._names:
            self._parents.update(_above(whole))
        given = tuple(addresses)
        self._names.setdefault(whole, {})[owner] = given
        self._owned.setdefault(owner, {})[whole] = None
        for address in given:
            self._reverse.setdefault(address, {})[owner, whole] = None
        self.version += 1

    def remove(self, owner: Hashable, name: str | None = None) -> None:
        """Take one name, or all, from an owner; nothing happens if he has it not."""
        owned = self._owned.get(owner, {})
        whole = [*owned] if name is None else [self._whole(name)]
        for each in whole:
            if each is not None and each in owned:
                self._take(owner, each)

    def lookup(self, name: str, kind: int) -> Found | None:
        """What is known of a name in lower case without a dot at its end; None if others know it.

        Args:
            name: that was asked for. A name of one label is looked for in the network's domain, too.
            kind: type of the records that are wanted.
        """
        if name.endswith(".arpa"):
            return self._called(name, kind)
        inside = name == self.domain or name.endswith("." + self.domain)
        whole = name if inside or "." in name else f"{name}.{self.domain}"
        owners = self._names.get(whole)
        if owners is not None:
            every = dict.fromkeys(address for addresses in owners.values() for address in addresses)
            return Found(Rcode.NOERROR, addresses_of_type(every, kind), self.domain if inside else name)
        if not inside:
            return None
        there = whole == self.domain or whole in self._parents
        return Found(Rcode.NOERROR if there else Rcode.NXDOMAIN, (), self.domain)

    def _called(self, name: str, kind: int) -> Found | None:
        """The name of an address."""
        address = address_of(name)
        if address is None:
            return None
        names = self._reverse.get(address)
        if names is None and not any(address in network for network in self._networks):
            return None
        zone = name.split(".", 1)[1]
        if names is None:
            return Found(Rcode.NXDOMAIN, (), zone)
        called = next(iter(names))[1]
        return Found(Rcode.NOERROR, (called,) if kind in {Type.PTR, Type.ANY} else (), zone)

    def _whole(self, name: str) -> str | None:
        whole = name[:-1].lower() if name.endswith(".") else f"{name.lower()}.{self.domain}"
        return whole if is_hostname(whole) else None

    def _take(self, owner: Hashable, name: str) -> None:
        owners = self._names[name]
        for address in dict.fromkeys(owners.pop(owner)):
            called = self._reverse[address]
            del called[owner, name]
            if not called:
                del self._reverse[address]
        if not owners:
            del self._names[name]
            for above in _above(name):
                self._parents[above] -= 1
                if not self._parents[above]:
                    del self._parents[above]
        del self._owned[owner][name]
        if not self._owned[owner]:
            del self._owned[owner]
        self.version += 1


def addresses_of_type(addresses: Iterable[Address], kind: int) -> tuple[Address, ...]:
    """Those that records of a type can have: A, AAAA or both; none for other types."""
    wanted = {Type.A: (4,), Type.AAAA: (6,), Type.ANY: (4, 6)}
    versions = wanted[Type(kind)] if kind in wanted else ()
    return tuple(address for address in addresses if address.version in versions)


def address_of(name: str) -> Address | None:
    """The address that a name under ``arpa`` stands for, if it stands for a whole one."""
    labels = name.split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return IPv4Address(".".join(reversed(labels[:4])))
        if (
            labels[-2:] == ["ip6", "arpa"]
            and len(labels) == 34
            and all(len(each) == 1 for each in labels[:32])
        ):
            return ip_address(int("".join(reversed(labels[:32])), 16).to_bytes(16))
    except ValueError:
        pass
    return None


def _above(name: str) -> Iterator[str]:
    """The names above a name."""
    while "." in name:
        name = name.split(".", 1)[1]
        yield name
