"""Changing the ports of a card while it is plugged in: what a network's process is asked, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from atoll.guest.messages import Request
from atoll.hypervisor.model import Forward
from atoll.vm.control import Method
from atoll.vm.network.attachment import PortState, Reverse
from atoll.vm.streams import LocalStream

__all__ = ["PortList", "PortsRead", "PortsSet", "Wanted", "port_methods"]


class Wanted(msgspec.Struct, frozen=True):
    """What is to lead to a VM, and from it to this host.

    Attributes:
        forwards: ports of the host that lead to it.
        reverse: ports of the gateway that lead it to the host.
    """

    forwards: tuple[Forward, ...] = ()
    reverse: tuple[Reverse, ...] = ()


class PortsSet(Request, frozen=True, tag="network.ports.set"):
    """Have these ports lead to a card, and no others. All of it is done, or nothing.

    Attributes:
        owner: whose card it is.
        asked: what somebody asked for; None for what there is.
        found: what its programs listen on; None for what there is.
        strict: one that was asked for and cannot be had is an error; else it is tried again later.
        close: end the connections of those that go.
    """

    owner: str
    asked: Wanted | None = None
    found: tuple[Forward, ...] | None = None
    strict: bool = True
    close: bool = False


class PortsRead(Request, frozen=True, tag="network.ports"):
    """Ask which ports lead to a card.

    Attributes:
        owner: whose card it is.
    """

    owner: str


class PortList(msgspec.Struct, frozen=True):
    """The ports that lead to a card, and those that were to."""

    ports: tuple[PortState, ...]


class Ported(Protocol):
    """A card whose ports can be changed."""

    def change_ports(self, change: PortsSet) -> None:
        """Do as ``change`` says. Raises ``NetworkError``: ``network.port``."""

    @property
    def port_states(self) -> tuple[PortState, ...]:
        """Those that lead to it."""


def port_methods(held: Callable[[str], Ported]) -> Mapping[str, Method]:
    """What answers these requests.

    Args:
        held: the card of an owner; raises ``NetworkError``: ``network.card``: it is not plugged in.
    """

    async def answer_set(payload: bytes, stream: LocalStream) -> None:
        change = msgspec.msgpack.decode(payload, type=PortsSet)
        card = held(change.owner)
        card.change_ports(change)
        stream.reply(PortList(card.port_states))

    async def answer_read(payload: bytes, stream: LocalStream) -> None:
        card = held(msgspec.msgpack.decode(payload, type=PortsRead).owner)
        stream.reply(PortList(card.port_states))

    return {"network.ports.set": answer_set, "network.ports": answer_read}
