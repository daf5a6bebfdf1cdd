"""Addresses of machines: those given to them for good, and those lent to whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from ipaddress import IPv4Address, IPv6Address

import msgspec

__all__ = ["Lease", "Lender", "Loan", "Pool"]

#: Seconds for which an address is kept for a client to which it was offered.
_OFFERED = 60.0

#: Seconds for which an address is not lent after a client found it in use.
_DECLINED = 600.0

#: Addresses that may be lent on one link at once, so that one machine cannot take all of a network.
_PER_LINK = 16

#: Addresses of the largest pool.
_MOST = 4096


class Lease(msgspec.Struct, frozen=True):
    """What belongs to the interface with a hardware address of 6 bytes, for as long as its machine exists."""

    mac: bytes
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    hostname: str = ""


class Loan(msgspec.Struct, frozen=True):
    """An address, as a whole number, that was lent to a hardware address until a time in seconds."""

    mac: bytes
    address: int
    until: float


class _Loan:
    """An address that a client has, had, or found in use."""

    __slots__ = ("address", "link", "mac", "until")

    def __init__(self, address: int, mac: bytes, link: Hashable, until: float) -> None:
        self.address = address
        self.mac = mac
        self.link = link
        self.until = until


class Pool:
    """Lends addresses, as whole numbers from ``first`` to ``last``, in the order in which clients come.

    A client gets the address that it had before unless that was needed for another.

    Args:
        first: lowest address.
        last: highest address, at most 4,095 above it.
        reserved: addresses in between that are never lent; asked each time.
    """

    def __init__(self, first: int, last: int, reserved: Container[int] = ()) -> None:
        if not 0 <= last - first < _MOST:
            raise ValueError(f"a pool has 1 to {_MOST} addresses")
        self._addresses = range(first, last + 1)
        self._reserved = reserved
        self._by_address: dict[int, _Loan] = {}
        self._by_mac: dict[bytes, _Loan] = {}
        self._by_link: dict[Hashable, set[_Loan]] = {}

    def __contains__(self, address: int) -> bool:
        return address in self._addresses and address not in self._reserved

    def __len__(self) -> int:
        """Addresses that are lent, or remembered."""
        return len(self._by_address)

    def offer(self, mac: bytes, link: Hashable, now: float, wanted: int = 0) -> int | None:
        """The address that a client can have, kept for it for a minute; None if there is none.

        Args:
            mac: the client's.
            link: where it is; others on it share a limit of 16.
            now: seconds.
            wanted: address that it would like.
        """
        loan = self._loan(mac, link, now, wanted)
        if loan is None:
            return None
        loan.until = max(loan.until, now + _OFFERED)
        return loan.address

    def lend(self, mac: bytes, link: Hashable, now: float, seconds: float, wanted: int) -> bool:
        """Lend a client the address ``wanted``; False if it is not this client's and not free."""
        known = self._by_mac.get(mac)
        if wanted not in self or (known is not None and known.address != wanted):
            return False
        loan = self._loan(mac, link, now, wanted)
        if loan is None or loan.address != wanted:
            return False
        loan.until = now + seconds
        return True

    def release(self, mac: bytes, link: Hashable, address: int, now: float) -> bool:
        """Take an address back that a client does not need any more; whether it had it."""
        loan = self._by_address.get(address)
        if loan is None or (loan.mac, loan.link) != (mac, link):
            return False
        loan.until = now
        return True

    def decline(self, mac: bytes, link: Hashable, address: int, now: float) -> bool:
        """Lend nobody an address for ten minutes that a client found in use; whether the client had it."""
        if not self.release(mac, link, address, now):
            return False
        loan = self._by_address[address]
        del self._by_mac[mac]
        loan.mac = b""
        loan.until = now + _DECLINED
        return True

    def drop(self, address: int) -> None:
        """Forget who has an address: it was given to another for good."""
        if loan := self._by_address.get(address):
            self._remove(loan)

    def loans(self, now: float) -> tuple[Loan, ...]:
        """What is lent, for ``restore`` in another process."""
        lent = (loan for loan in self._by_address.values() if loan.mac and loan.until > now)
        return tuple(Loan(loan.mac, loan.address, loan.until) for loan in lent)

    def restore(self, loans: Iterable[Loan]) -> None:
        """Take over what was lent before; what does not fit is passed over."""
        for loan in loans:
            if loan.address in self and loan.address not in self._by_address and loan.mac not in self._by_mac:
                self._insert(_Loan(loan.address, loan.mac, None, loan.until))

    def forget(self, link: Hashable) -> None:
        """A link is gone: its clients' addresses are free, and remembered for when they return elsewhere."""
        for loan in self._by_link.pop(link, ()):
            loan.link = None
            loan.until = 0.0
            self._by_link.setdefault(None, set()).add(loan)

    def _loan(self, mac: bytes, link: Hashable, now: float, wanted: int) -> _Loan | None:
        known = self._by_mac.get(mac)
        if known is not None and known.link == link:
            return known
        if known is not None and known.until > now and known.link is not None:
            return None  # somebody else's hardware address
        if sum(loan.until > now for loan in self._by_link.get(link, ())) >= _PER_LINK:
            return None
        address = known.address if known is not None else self._choose(now, wanted)
        if address is None:
            return None
        self.drop(address)
        return self._insert(_Loan(address, mac, link, max(now, known.until) if known else now))

    def _choose(self, now: float, wanted: int) -> int | None:
        if wanted in self and self._free(wanted, now):
            return wanted
        for address in self._addresses:
            if address not in self._by_address and address not in self._reserved:
                return address
        loans = [loan for loan in self._by_address.values() if loan.until <= now and loan.address in self]
        return min(loans, key=lambda loan: loan.until).address if loans else None

    def _free(self, address: int, now: float) -> bool:
        loan = self._by_address.get(address)
        return loan is None or loan.until <= now

    def _insert(self, loan: _Loan) -> _Loan:
        self._by_address[loan.address] = loan
        self._by_mac[loan.mac] = loan
        self._by_link.setdefault(loan.link, set()).add(loan)
        return loan

    def _remove(self, loan: _Loan) -> None:
        del self._by_address[loan.address]
        if self._by_mac.get(loan.mac) is loan:
            del self._by_mac[loan.mac]
        others = self._by_link.get(loan.link, set())
        others.discard(loan)
        if not others:
            self._by_link.pop(loan.link, None)


class Lender:
    """Who has which address of one kind: base of the servers that clients ask for theirs.

    Args:
        kind: takes the address of that kind out of a lease.
        reserved: addresses that are never lent.
        ends: lowest and highest address that is lent to unknown clients; None lends none.
        leases: addresses that are given; others can be added and removed.

    ``pool`` is what it lends from; None if it lends nothing.

    Raises:
        ValueError: the pool is empty or too large.
    """

    def __init__(
        self,
        kind: Callable[[Lease], IPv4Address | IPv6Address | None],
        reserved: Iterable[int],
        ends: tuple[IPv4Address, IPv4Address] | tuple[IPv6Address, IPv6Address] | None,
        leases: Iterable[Lease],
    ) -> None:
        self._kind = kind
        self._given: dict[bytes, Lease] = {}
        self._reserved = set(reserved)
        self.pool = Pool(int(ends[0]), int(ends[1]), self._reserved) if ends else None
        for lease in leases:
            self.add(lease)

    def add(self, lease: Lease) -> None:
        """Give an address, in place of what the same hardware address had."""
        self.remove(lease.mac)
        self._given[lease.mac] = lease
        address = self._kind(lease)
        if address is not None:
            self._reserved.add(int(address))
            if self.pool is not None:
                self.pool.drop(int(address))

    def remove(self, mac: bytes) -> None:
        """Take back what was given."""
        lease = self._given.pop(mac, None)
        address = None if lease is None else self._kind(lease)
        if address is not None:
            self._reserved.discard(int(address))

    def forget(self, link: Hashable) -> None:
        """A link is gone: what was lent on it is free."""
        if self.pool is not None:
            self.pool.forget(link)
