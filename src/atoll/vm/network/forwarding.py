"""The ports and unix sockets of this host that lead to one card, which come and go while it is plugged in."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from atoll.errors import NetworkError
from atoll.hypervisor.model import Forward
from atoll.network.forwards import DatagramForward, Forwarded, StreamForward, listen
from atoll.vm.network.attachment import PortState
from atoll.vm.network.chosen import Chosen
from atoll.vm.network.ports import holder

__all__ = ["Forwards"]

#: Lower ports are for processes with ``CAP_NET_BIND_SERVICE`` (ip-sysctl, ``ip_unprivileged_port_start``).
_PRIVILEGED = 1024

#: Seconds until a port that could not be had is tried again.
_AGAIN = 1.0

#: Makes a socket of this host lead to a port of the guest.
Lead: TypeAlias = Callable[[socket.socket, Forward], StreamForward | DatagramForward]


class _Key(NamedTuple):
    """What there is but once: a place of this host, or where something leads that has any."""

    address: str
    port: int
    protocol: str
    path: str
    guest_port: int

    @classmethod
    def of(cls, forward: Forward) -> _Key:
        """Of a forward."""
        to = 0 if forward.path or forward.host_port else forward.guest_port
        return cls(forward.address, forward.host_port, forward.protocol, forward.path, to)

    def __str__(self) -> str:
        return f"{self.protocol} {self.address} {self.guest_port}"


class _Open:
    """A forward whose port it has."""

    def __init__(self, forward: Forward, sock: socket.socket) -> None:
        self.forward = forward
        self.sock: socket.socket | None = sock
        self.port = 0 if forward.path else int(sock.getsockname()[1])
        self.relay: StreamForward | DatagramForward | None = None

    def begin(self, lead: Lead) -> None:
        """The guest is there."""
        if self.relay is None and self.sock is not None:
            self.relay, self.sock = lead(self.sock, self.forward), None

    def lead_to(self, forward: Forward) -> None:
        """The same place of this host leads elsewhere."""
        if self.relay is not None and forward.guest_port != self.forward.guest_port:
            self.relay.lead_to(forward.guest_port)
        self.forward = forward

    def close(self, *, all_of_it: bool = False) -> None:
        """Give the port back, and with ``all_of_it`` end the connections that came by it."""
        if self.sock is not None:
            self.sock.close()
        if self.relay is not None:
            self.relay.close()
            if all_of_it:
                self.relay.break_off()


class Forwards:
    """What leads to one card.

    Args:
        name: of its VM, for messages.
        owner: of the card; empty if it keeps nothing.
        chosen: which ports were chosen before.
    """

    def __init__(self, name: str, owner: str, chosen: Chosen) -> None:
        self._name = name
        self._owner = owner
        self._chosen = chosen
        self._asked: tuple[Forward, ...] = ()
        self._found: tuple[Forward, ...] = ()
        self._open: dict[_Key, _Open] = {}
        self._automatic: dict[int, _Open] = {}
        self._refused: dict[_Key, NetworkError] = {}
        self._lead: Lead | None = None
        self._again: asyncio.TimerHandle | None = None

    @property
    def states(self) -> tuple[PortState, ...]:
        """Of all of them, in the order in which they were asked for."""
        states = []
        for forward in self._asked:
            key = _Key.of(forward)
            if key in self._refused:
                states.append(PortState(forward, refused=self._refused[key].message))
            elif key in self._open:
                states.append(PortState(forward, self._open[key].port))
        states += [PortState(one.forward, one.port, found=True) for one in self._automatic.values()]
        return tuple(states)

    @property
    def refused(self) -> tuple[str, ...]:
        """Why those cannot be had that cannot be."""
        return tuple(error.message for error in self._refused.values())

    def ask(
        self,
        asked: Iterable[Forward],
        found: Iterable[Forward] | None = None,
        *,
        strict: bool,
        all_of_it: bool = False,
    ) -> None:
        """Have these, and no others.

        Args:
            asked: those that somebody asked for.
            found: those that follow from what the guest does; None for the same as before.
            strict: one that cannot be had is an error, and nothing is changed; else it is tried again later.
            all_of_it: end the connections of those that go.

        Raises:
            NetworkError: ``network.port``.
        """
        wanted = {_Key.of(forward): forward for forward in asked}
        try:
            bound, refused = self._bound(wanted, strict=strict)
        except NetworkError:
            self._follow(self._found)  # one of these may have had to go
            raise
        for key in self._open.keys() - wanted.keys():
            self._open.pop(key).close(all_of_it=all_of_it)
        for key, one in self._open.items():
            one.lead_to(wanted[key])
        self._open |= bound
        self._refused = refused
        self._asked = tuple(wanted.values())
        if self._lead is not None:
            self.begin(self._lead)
        self._follow(self._found if found is None else tuple(found), all_of_it=all_of_it)
        if self._owner:
            chosen = {str(key): one.port for key, one in self._open.items() if key.guest_port}
            self._chosen.keep(self._owner, chosen)
        self._try_later()

    def begin(self, lead: Lead) -> None:
        """The guest is there: ``lead`` makes its ports be reached."""
        self._lead = lead
        for one in (*self._open.values(), *self._automatic.values()):
            one.begin(lead)

    def close(self) -> None:
        """Give all ports back; who is connected stays so. Closing twice is fine."""
        if self._again is not None:
            self._again.cancel()
        for one in (*self._open.values(), *self._automatic.values()):
            one.close()
        self._open.clear()
        self._automatic.clear()
        self._asked = self._found = ()
        self._refused = {}

    def _bound(
        self, wanted: dict[_Key, Forward], *, strict: bool
    ) -> tuple[dict[_Key, _Open], dict[_Key, NetworkError]]:
        """Those of ``wanted`` that are not open, and those that cannot be had."""
        bound: dict[_Key, _Open] = {}
        refused: dict[_Key, NetworkError] = {}
        for key in wanted.keys() - self._open.keys():
            forward = wanted[key]
            self._make_way(key)
            try:
                bound[key] = _Open(forward, self._listening(key, forward))
            except OSError as error:
                refusal = _refusal(self._name, forward, error)
                if strict and key not in self._refused:
                    for one in bound.values():
                        one.close()
                    raise refusal from error
                refused[key] = refusal
        return bound, refused

    def _listening(self, key: _Key, forward: Forward) -> socket.socket:
        """A socket at its place; at the one that was chosen before if that can be. Raises ``OSError``."""
        former = self._chosen.of(self._owner, str(key)) if key.guest_port else 0
        if former:
            with suppress(OSError):
                return listen(_forwarded(replace(forward, host_port=former)))
        return listen(_forwarded(forward))

    def _make_way(self, key: _Key) -> None:
        """What was not asked for gives its port to what is."""
        for guest_port, one in tuple(self._automatic.items()):
            if not key.path and one.port == key.port and one.forward.protocol == key.protocol:
                self._automatic.pop(guest_port).close()

    def _follow(self, found: tuple[Forward, ...], *, all_of_it: bool = False) -> None:
        """Have the same ports as the guest has, or any others where they are taken."""
        self._found = found
        for guest_port in self._automatic.keys() - {forward.guest_port for forward in found}:
            self._automatic.pop(guest_port).close(all_of_it=all_of_it)
        for forward in found:
            if forward.guest_port not in self._automatic and (one := self._somewhere(forward)) is not None:
                self._automatic[forward.guest_port] = one
                if self._lead is not None:
                    one.begin(self._lead)
        if self._owner:
            others = {str(port): one.port for port, one in self._automatic.items() if one.port != port}
            self._chosen.keep_too(f"{self._owner} found", others)

    def _somewhere(self, forward: Forward) -> _Open | None:
        """At its own port, at that which it had before in its place, or at any."""
        former = self._chosen.of(f"{self._owner} found", str(forward.guest_port)) if self._owner else 0
        for port in (forward.host_port, former, 0):
            with suppress(OSError):
                return _Open(forward, listen(_forwarded(replace(forward, host_port=port))))
        return None

    def _try_later(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._refused:
            self._again = asyncio.get_running_loop().call_later(_AGAIN, self._try_again)

    def _try_again(self) -> None:
        self.ask(self._asked, strict=False)


def _forwarded(forward: Forward) -> Forwarded:
    return Forwarded(forward.address, forward.host_port, forward.guest_port, forward.protocol, forward.path)


def _refusal(name: str, forward: Forward, error: OSError) -> NetworkError:
    """Why a port cannot be had."""
    if forward.path:
        return _socket_refusal(name, forward.path, error)
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    port = f"the host's port {address}:{forward.host_port}/{forward.protocol}"
    hint = f"choose another: `atoll edit {name} ports=HOST:GUEST`"
    message = f"{port} cannot be had: {os.strerror(error.errno or 0)}"
    if error.errno == errno.EADDRINUSE:
        who = ""
        with suppress(OSError, ValueError):
            who = holder(forward.address, forward.host_port, forward.protocol)
        message = f"{port} is taken" + (f" by {who}" if who else "")
    elif error.errno == errno.EACCES and forward.host_port < _PRIVILEGED:
        message = f"{port} needs a right that this user does not have"
        hint = f"choose one from 1024 on: `atoll edit {name} ports=HOST:GUEST`"
    elif error.errno == errno.EADDRNOTAVAIL:
        message = f"{port}: this host has no such address"
    return NetworkError(f"{name}: {message}", code="port", hint=hint)


def _socket_refusal(name: str, path: str, error: OSError) -> NetworkError:
    message = f"{name}: the host's socket {path} cannot be had: {os.strerror(error.errno or 0)}"
    hint = "choose another path, in a directory of yours"
    if error.errno == errno.EADDRINUSE:
        message = f"{name}: {path} is there already: a process listens at it, or it is no socket"
        hint = "choose another path, or remove it"
    return NetworkError(message, code="port", hint=hint)
