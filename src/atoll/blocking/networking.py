"""Networks for programs without an event loop."""

from __future__ import annotations

import functools
from typing import Any, Self

from atoll import aio
from atoll.blocking.core import Face, blocking, made_from, wait_for, waiting

__all__ = ["Network", "networks"]


class Network(Face):
    """A network of this user, by its name: ``atoll.aio.Network`` with methods that wait."""

    _async: aio.Network
    __init__ = made_from(aio.Network)

    @classmethod
    @functools.wraps(aio.Network.create.__func__)  # type: ignore[attr-defined]
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a network."""
        return cls._of(wait_for(aio.Network.create(*args, **kwargs)))

    info = blocking(aio.Network.info)
    connect = blocking(aio.Network.connect)
    remove = blocking(aio.Network.remove)

    @property
    def name(self) -> str:
        """The network's name."""
        return self._async.name


networks = waiting(aio.networks)
