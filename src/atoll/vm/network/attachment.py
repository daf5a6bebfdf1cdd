"""Where a VM's network card is plugged in. Pure, and quick to load: every start needs it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from atoll.hypervisor.model import CardNetwork, Forward, Machine, UserNetwork

__all__ = ["DEFAULT", "MTU", "SANDBOXES", "Attachment", "with_mac"]

#: The networks that are made at their first use: of machines, and of sandboxes.
DEFAULT, SANDBOXES = "default", "sandboxes"

#: Bytes of the largest packet: with its Ethernet header it has to be shorter than 64 KiB.
MTU = 65520


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM's card is plugged in.

    Attributes:
        network: directory of the network.
        owner: whose the card is: id of a machine, which keeps its address; empty for a VM that does not stay.
        hostname: what the others on the network call it.
        forwards: ports of the host that lead to it.
        host_ports: ports of this host's loopback that it may use.
        aliases: what the others call it, too.
        trusted: it may use all ports of this host, at any of its addresses.
    """

    network: Path
    owner: str = ""
    hostname: str = ""
    forwards: tuple[Forward, ...] = ()
    host_ports: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()
    trusted: bool = False


def with_mac(machine: Machine, mac: str, forwards: tuple[Forward, ...] = ()) -> Machine:
    """``machine`` with the same kind of network card, if it has one, of that address.

    ``forwards`` are those of a card behind the hypervisor's own address translation.
    """
    if machine.card is not None:
        return msgspec.structs.replace(machine, card=CardNetwork(mac, machine.card.mtu))
    if machine.network is not None:
        return msgspec.structs.replace(machine, network=UserNetwork(mac, forwards))
    return machine
