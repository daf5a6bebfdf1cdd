"""Follows the host's files of name settings; the only module here that reads any."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from atoll.network.dns.upstreams import Hosts, Resolvers, parse_hosts, parse_resolvers

__all__ = ["HostFiles"]

#: Bytes of a file that are read at most.
_MOST = 4 << 20

_T = TypeVar("_T")


class _Followed(Generic[_T]):
    """A file, and what was read of it when it last was another one."""

    def __init__(self, path: Path, parse: Callable[[str], _T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, ...] = ()
        self.content = parse("")

    def refresh(self) -> bool:
        """Read the file if it changed; whether its content did. A file that is away stays as it was."""
        try:
            status = os.stat(self._path)
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return False
            with open(self._path, "rb") as file:
                text = file.read(_MOST).decode("utf-8", "replace")
        except OSError:
            return False
        self._seen = seen
        content = self._parse(text)
        changed = content != self.content
        self.content = content
        return changed


class HostFiles:
    """What the host's resolver goes by, as it is now.

    Args:
        resolvers: the file of name servers.
        hosts: the file of names.
    """

    def __init__(self, resolvers: Path = Path("/etc/resolv.conf"), hosts: Path = Path("/etc/hosts")) -> None:
        self._resolvers = _Followed(resolvers, parse_resolvers)
        self._hosts = _Followed(hosts, parse_hosts)
        self.refresh()

    @property
    def resolvers(self) -> Resolvers:
        """Whom the host asks."""
        return self._resolvers.content

    @property
    def hosts(self) -> Hosts:
        """What it knows without asking."""
        return self._hosts.content

    def refresh(self) -> bool:
        """Look whether the files changed, and read those that did; whether anything is different now.

        It costs two calls of stat where nothing is, so that it can be called often.
        """
        resolvers, hosts = self._resolvers.refresh(), self._hosts.refresh()
        return resolvers or hosts
