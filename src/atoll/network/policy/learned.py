"""Which names a guest was told to be at which addresses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final

__all__ = ["LearnedNames"]

#: Addresses that one guest may know, and names of one of them; the oldest make room.
MOST_ADDRESSES: Final = 4096
MOST_NAMES: Final = 32

#: Seconds for which an answer counts at least, and at most: programs go on with an address that they asked
#: for at their start, whatever its time to live was.
_LEAST, _MOST = 3600, 86_400


class LearnedNames:
    """What the guests of one network were told; fed by the name server's ``Learned``."""

    def __init__(self) -> None:
        self._guests: dict[Hashable, OrderedDict[bytes, OrderedDict[str, float]]] = {}

    def learn(self, guest: Hashable, name: str, addresses: Iterable[bytes], seconds: int, now: float) -> None:
        """A guest is about to be told that ``name`` is at ``addresses`` of 4 or 16 bytes, for ``seconds``."""
        known = self._guests.setdefault(guest, OrderedDict())
        until = now + min(max(seconds, _LEAST), _MOST)
        for address in addresses:
            names = known.setdefault(address, OrderedDict())
            known.move_to_end(address)
            names[name] = max(until, names.get(name, 0.0))
            names.move_to_end(name)
            if len(names) > MOST_NAMES:
                names.popitem(last=False)
        while len(known) > MOST_ADDRESSES:
            known.popitem(last=False)

    def names(self, guest: Hashable, address: bytes, now: float) -> tuple[str, ...]:
        """What the guest was told to be at an address, the latest last; what has expired is forgotten."""
        known = self._guests.get(guest)
        names = known.get(address) if known is not None else None
        if known is None or names is None:
            return ()
        for name in [name for name, until in names.items() if until <= now]:
            del names[name]
        if not names:
            del known[address]
        return tuple(names)

    def forget(self, guest: Hashable) -> None:
        """A guest is gone."""
        self._guests.pop(guest, None)
