"""What users write about ports. Pure."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Address, IPv6Address

from atoll.errors import UsageError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import SUN_PATH
from atoll.vm.autoports import SPAN, span
from atoll.vm.network.attachment import Reverse

__all__ = ["parse_forwards", "parse_reverse", "show_forward", "show_reverse"]

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
