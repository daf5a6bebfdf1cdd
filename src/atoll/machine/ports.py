"""What users write about ports, and what of it a machine can have. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from msgspec.structs import replace

from atoll.errors import UsageError
from atoll.hypervisor.model import Forward, UserNetwork
from atoll.hypervisor.port import SUN_PATH
from atoll.machine.spec import MachineSpec
from atoll.vm.autoports import SPAN, span
from atoll.vm.bootplan import BootPlan
from atoll.vm.network.attachment import Reverse

__all__ = [
    "MOST",
    "check",
    "parse_forwards",
    "parse_reverse",
    "plain",
    "ported",
    "show_forward",
    "show_reverse",
    "with_ports",
    "without_ports",
]

#: Ports of the host that a machine may have.
MOST = 1024

_LOOPBACK = "127.0.0.1"
_UNIX = "unix:"

#: Of the gateway: its name server.
_DNS = 53

_FORWARD = re.compile(rf"(?:(\d+\.[\d.]+|\[[0-9a-fA-F:.]+\]):)?{SPAN}(?::{SPAN})?(?:/(tcp|udp))?", re.ASCII)
_SOCKET = re.compile(rf"unix:(.+?)(?::{SPAN})?", re.ASCII | re.DOTALL)
_REVERSE = re.compile(r"(\d{1,5})(?::(?:(\d{1,5})|unix:(.+)))?", re.ASCII | re.DOTALL)


def parse_forwards(text: str, *, partly: bool = False) -> tuple[Forward, ...]:
    """``[ADDRESS:]HOST[:GUEST][/udp]`` or ``unix:PATH:GUEST``, where ports may be ranges of one length.

    Args:
        text: what the user wrote.
        partly: what is wanted is one of those that there are: where no port of the guest is named it is 0.

    Raises:
        UsageError: ``usage.port``.
    """
    found = _SOCKET.fullmatch(text)
    if found is not None:
        guest = span(found[2], found[3])
        if (guest is None and (found[2] or not partly)) or (guest is not None and guest.length != 1):
            raise _malformed(text)
        return (Forward(0, guest.first if guest is not None else 0, path=_path(found[1])),)
    found = _FORWARD.fullmatch(text)
    host = span(found[2], found[3], least=0) if found is not None else None
    if found is None or host is None:
        raise _malformed(text)
    guest = span(found[4], found[5]) if found[4] else host
    if guest is None or guest.length != host.length or not guest.first:
        raise _malformed(text)
    address = _address(text, found[1] or _LOOPBACK)
    hide = partly and not found[4]
    return tuple(
        Forward(host.first + step, 0 if hide else guest.first + step, found[6] or "tcp", address)
        for step in range(host.length)
    )


def parse_reverse(text: str) -> Reverse:
    """``PORT[:HOST]`` or ``PORT:unix:PATH``. Raises ``UsageError``: ``usage.port``."""
    found = _REVERSE.fullmatch(text)
    port = span(found[1], None) if found is not None else None
    host = span(found[2], None) if found is not None and found[2] else port
    if found is None or port is None or host is None:
        hint = "write PORT, PORT:HOST or PORT:unix:PATH, as 5432 or 8000:unix:/run/app.sock"
        raise UsageError(f"{text}: no way to this host", code="port", hint=hint)
    if port.first == _DNS:
        hint = "choose another port of the gateway, as 5353:53"
        raise UsageError(f"{text}: the network's name server answers there", code="port", hint=hint)
    if found[3]:
        return Reverse(port.first, path=_path(found[3]))
    return Reverse(port.first, host.first)


def _address(text: str, word: str) -> str:
    try:
        return str(IPv6Address(word[1:-1]) if word.startswith("[") else IPv4Address(word))
    except ValueError as error:
        raise _malformed(text) from error


def _path(path: str) -> str:
    full = os.path.abspath(os.path.expanduser(path))
    if "\0" in full or len(os.fsencode(full)) > SUN_PATH:
        hint = f"use a path of {SUN_PATH} bytes at most"
        raise UsageError(f"{full!r} is too long for a socket", code="port", hint=hint)
    return full


def _malformed(text: str) -> UsageError:
    hint = "write HOST:GUEST, as 8080:80, 0.0.0.0:8080:80, [::1]:8080:80, 8000-8010:9000-9010 or 53:53/udp"
    return UsageError(f"{text}: no port to forward", code="port", hint=hint)


def show_forward(forward: Forward) -> str:
    """As ``parse_forwards`` takes it."""
    if forward.path:
        return f"{_UNIX}{forward.path}:{forward.guest_port}"
    shown = f"[{forward.address}]" if ":" in forward.address else forward.address
    address = "" if forward.address == _LOOPBACK else f"{shown}:"
    protocol = "/udp" if forward.protocol == "udp" else ""
    return f"{address}{forward.host_port}:{forward.guest_port}{protocol}"


def show_reverse(reverse: Reverse) -> str:
    """As ``parse_reverse`` takes it."""
    if reverse.path:
        return f"{reverse.port}:{_UNIX}{reverse.path}"
    return f"{reverse.port}:{reverse.host_port}"


def with_ports(spec: MachineSpec, forwards: Iterable[Forward], reverse: Iterable[Reverse]) -> MachineSpec:
    """``spec`` with more ports. Raises ``UsageError``: as ``check``."""
    more = replace(spec, forwards=(*spec.forwards, *forwards), reverse=(*spec.reverse, *reverse))
    check(more)
    return more


def without_ports(spec: MachineSpec, forwards: Iterable[Forward], reverse: Iterable[Reverse]) -> MachineSpec:
    """``spec`` without some of its ports.

    Args:
        spec: of the machine.
        forwards: those that go; one whose port of the guest is 0 is any with that port of the host.
        reverse: likewise, by the port of the gateway alone.

    Raises:
        UsageError: ``usage.port``: it has no such port.
    """
    gone, shut = tuple(forwards), {one.port for one in reverse}
    for one in gone:
        if not any(_is(known, one) for known in spec.forwards):
            raise _none_such(show_forward(one).removesuffix(":0"), map(show_forward, spec.forwards))
    for port in shut - {one.port for one in spec.reverse}:
        raise _none_such(str(port), map(show_reverse, spec.reverse))
    return replace(
        spec,
        forwards=tuple(known for known in spec.forwards if not any(_is(known, one) for one in gone)),
        reverse=tuple(known for known in spec.reverse if known.port not in shut),
    )


def _is(known: Forward, wanted: Forward) -> bool:
    return _place(known) == _place(wanted) and wanted.guest_port in {0, known.guest_port}


def _place(forward: Forward) -> tuple[object, ...]:
    return (forward.address, forward.host_port, forward.protocol, forward.path)


def _none_such(what: str, known: Iterable[str]) -> UsageError:
    listed = ", ".join(known) or "it has none"
    return UsageError(f"{what} is none of its ports", code="port", hint=f"its ports: {listed}")


def check(spec: MachineSpec) -> None:
    """See that a machine can have the ports that its record names.

    Raises:
        UsageError: ``usage.port``: they are too many, two are the same, or its network does not have such.
    """
    if len(spec.forwards) + len(spec.reverse) > MOST:
        hint = "name fewer, or reach the machine another way: machines have addresses of their own"
        raise UsageError(f"a machine has at most {MOST} ports", code="port", hint=hint)
    places: set[tuple[object, ...]] = set()
    for forward in spec.forwards:
        guest = forward.guest_port if not forward.host_port and not forward.path else 0
        place = (*_place(forward), guest)
        if place in places:
            hint = "a port of the host leads to one port; take the other away first"
            raise UsageError(f"{show_forward(forward)}: that is forwarded already", code="port", hint=hint)
        places.add(place)
    if len({one.port for one in spec.reverse}) != len(spec.reverse):
        raise UsageError("a port of the gateway is opened twice", code="port", hint="name each port once")
    if (spec.forwards or spec.reverse) and not spec.network:
        raise UsageError("ports need a network", code="port", hint="leave out -p, or give it a network")
    if spec.slirp and (spec.reverse or plain(spec.forwards) != spec.forwards):
        message = "QEMU's user network has ports of IPv4 addresses alone, each with its number"
        raise UsageError(message, code="port", hint="use Atoll's own network: --network=own")


def plain(forwards: tuple[Forward, ...]) -> tuple[Forward, ...]:
    """Those that the hypervisor's own address translation can do, too."""
    return tuple(one for one in forwards if one.host_port and not one.path and ":" not in one.address)


def ported(plan: BootPlan, spec: MachineSpec) -> BootPlan:
    """``plan`` with the ports that the record of the machine names now, which are the same while it runs.

    They are no part of the VM: one that goes on from where it was, whenever that was, has those of now.
    """
    attachment, network = plan.attachment, plan.machine.network
    if attachment is not None:
        attachment = replace(attachment, forwards=spec.forwards, reverse=spec.reverse)
    machine = plan.machine
    if network is not None:
        machine = replace(machine, network=UserNetwork(network.mac, plain(spec.forwards)))
    return replace(plan, machine=machine, attachment=attachment, auto_ports=spec.auto_ports)
