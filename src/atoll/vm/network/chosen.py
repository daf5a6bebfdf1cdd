"""Which ports of this host were chosen for machines that take any: they get the same again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError

__all__ = ["Chosen"]

#: Ports that are kept in mind; those of the machine that came first are forgotten beyond that.
_MOST = 4096


#: Of one owner, of those that come and go by themselves.
_MOST_OF_ONE = 256


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """By the machine's id and where the port leads."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    ports: dict[str, dict[str, int]] = {}


class Chosen:
    """Ports that were chosen, on disk.

    A record that cannot be read or written costs machines their choice, and no more.

    Args:
        path: of the record.
        log: told in words what is wrong with it.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self._path = path
        self._log = log
        try:
            self._ports = store.read_record(path, _Record).ports
        except StoreError:
            self._ports = {}

    def of(self, owner: str, where: str) -> int:
        """The port that was chosen for ``where``; 0 if none was."""
        return self._ports.get(owner, {}).get(where, 0)

    def keep_too(self, owner: str, ports: dict[str, int]) -> None:
        """Have ``ports`` be among those that were chosen for an owner; the oldest go that are too many."""
        if any(self.of(owner, where) != port for where, port in ports.items()):
            known = {**self._ports.get(owner, {}), **ports}
            self.keep(owner, dict(tuple(known.items())[-_MOST_OF_ONE:]))

    def keep(self, owner: str, ports: dict[str, int]) -> None:
        """Have ``ports``, by where they lead, be all that were chosen for an owner."""
        if self._ports.get(owner, {}) == ports:
            return
        self._ports.pop(owner, None)
        if ports:
            self._ports[owner] = dict(ports)
        while len(self._ports) > 1 and sum(map(len, self._ports.values())) > _MOST:
            del self._ports[next(iter(self._ports))]
        try:
            store.write_record(self._path, _Record(ports=self._ports), parents=False)
        except StoreError as error:
            self._log(f"{error.message}: other ports may be chosen next time")
