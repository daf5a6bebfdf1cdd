"""Where a VM's network card is plugged in. Pure, and quick to load: every start needs it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from atoll.hypervisor.model import CardNetwork, Forward, Machine, UserNetwork

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "MTU",
    "SANDBOXES",
    "Attachment",
    "PortState",
    "Reverse",
    "elsewhere",
    "with_mac",
]

#: The networks that are made at their first use: of machines, and of sandboxes.
DEFAULT, SANDBOXES = "default", "sandboxes"
BUILT_IN = (DEFAULT, SANDBOXES)

#: Bytes of the largest packet: with its Ethernet header it has to be shorter than 64 KiB.
MTU = 65520


class Reverse(msgspec.Struct, frozen=True):
    """A port of the gateway that leads one VM to this host.

    Attributes:
        port: of the gateway.
        host_port: of this host's loopback; 0 where ``path`` says where.
        path: of a unix socket of this host.
    """

    port: int
    host_port: int = 0
    path: str = ""


class PortState(msgspec.Struct, frozen=True):
    """A port of this host that leads to a guest, or was to.

    Attributes:
        forward: what was asked for.
        port: of this host that it has; 0 if it is none, or a unix socket.
        refused: why it cannot be had now; empty if it can.
        found: nobody asked for it: a program of the guest listens.
    """

    forward: Forward
    port: int = 0
    refused: str = ""
    found: bool = False


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM's card is plugged in.

    Attributes:
        network: directory of the network.
        owner: whose the card is: id of a machine, which keeps its address; empty for a VM that does not stay.
        hostname: what the others on the network call it.
        forwards: ports of the host that lead to it.
        host_ports: ports of this host's loopback that it may use.
        proxy_ports: likewise, those of proxies that it takes over; unless it is held to a policy.
        renew: the guest was on another network: it is told its addresses in any case.
        egress: lines of the policy that it is held to; none for no policy.
        reverse: other ports of the gateway that lead it to this host.
        aliases: what the others call it, too.
        trusted: it may use all ports of this host, at any of its addresses.
    """

    network: Path
    owner: str = ""
    hostname: str = ""
    forwards: tuple[Forward, ...] = ()
    host_ports: tuple[int, ...] = ()
    proxy_ports: tuple[int, ...] = ()
    renew: bool = False
    egress: tuple[str, ...] = ()
    reverse: tuple[Reverse, ...] = ()
    aliases: tuple[str, ...] = ()
    trusted: bool = False


def elsewhere(attachment: Attachment, network: str) -> Attachment:
    """The same on the network of that name; nothing is changed where it is on that."""
    place = attachment.network.parent / network
    if place == attachment.network:
        return attachment
    return msgspec.structs.replace(attachment, network=place, renew=True)


def with_mac(machine: Machine, mac: str, forwards: tuple[Forward, ...] = ()) -> Machine:
    """``machine`` with the same kind of network card, if it has one, of that address.

    ``forwards`` are those of a card behind the hypervisor's own address translation.
    """
    if machine.card is not None:
        return msgspec.structs.replace(machine, card=CardNetwork(mac, machine.card.mtu))
    if machine.network is not None:
        return msgspec.structs.replace(machine, network=UserNetwork(mac, forwards))
    return machine
