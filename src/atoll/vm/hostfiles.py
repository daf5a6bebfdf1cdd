"""The files by which a guest knows its own name, and where names are asked for; no program of it has to run.

An image may have none of them, empty ones, or links that lead nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from atoll.errors import AtollError, ChannelError, FileError, FileMissingError, ProtocolError
from atoll.events import Emit, Warned
from atoll.guest.agent import Agent
from atoll.guest.files import Files, as_root

__all__ = ["LOOPBACK", "give_names", "hosts_with", "make_directories"]

#: What a guest calls itself where it has no other address, as Debian has it.
LOOPBACK: Final = "127.0.1.1"

_HOSTNAME: Final = "/etc/hostname"
_HOSTS: Final = "/etc/hosts"
_RESOLV_CONF: Final = "/etc/resolv.conf"

#: Behind the line of a guest's own name, if that has an address which others have, too.
_MARK: Final = "# atoll"

_LOCAL: Final = (
    "127.0.0.1 localhost",
    "::1 localhost ip6-localhost ip6-loopback",
    "ff02::1 ip6-allnodes",
    "ff02::2 ip6-allrouters",
)

#: The line of the guest's own name; of a guest that this one is a copy of it would lead to itself.
_OWN = re.compile(rf"{re.escape(LOOPBACK)}\s+\S+|.*\s{_MARK}", re.ASCII)

#: Bytes of the guest's file that are looked at; of a longer one nothing is changed.
_MOST: Final = 1 << 20


def hosts_with(text: str, name: str, address: str = LOOPBACK) -> str:
    """The content of a hosts(5) that knows ``localhost``, and this guest.

    Args:
        text: what there is of it.
        name: of the guest; a former one is taken out.
        address: of the guest.
    """
    own = f"{address} {name}" if address == LOOPBACK else f"{address} {name} {_MARK}"
    lines = [line for line in text.splitlines() if line == own or _OWN.fullmatch(line) is None]
    known = {word for line in lines for word in line.partition("#")[0].split()[1:]}
    local = () if "localhost" in known else _LOCAL
    return "".join(f"{line}\n" for line in (*local, *lines, *(() if name in known else (own,))))


async def give_names(agent: Agent, vm: str, emit: Emit, *, name: str, address: str = LOOPBACK) -> None:
    """Have a guest know its name, and have a file that says which name servers there are.

    What of it cannot be written is told, and nothing else: a guest works without.

    Args:
        agent: in the guest.
        vm: its name, for messages.
        emit: told of what failed.
        name: what it calls itself.
        address: its own.

    Raises:
        ChannelError: the guest is gone.
    """
    files = as_root(agent)
    try:
        await files.write(_HOSTNAME, f"{name}\n", parents=True)
        before = await _text(files, _HOSTS)
        after = hosts_with(before or "", name, address)
        if after != before:
            await files.write(_HOSTS, after.encode("utf-8", "surrogateescape"))
        if not await files.exists(_RESOLV_CONF):
            await files.write(_RESOLV_CONF, "# no network\n")
    except ChannelError:
        raise
    except AtollError as error:
        emit(Warned(message=f"{vm}: it does not know its own name: {error.message}", hint="see /etc in it"))


async def make_directories(agent: Agent, paths: Sequence[str]) -> None:
    """Make directories where they are missing, with those above them. Raises ``GuestError``."""
    files = as_root(agent)
    for path in paths:
        await files.make_directory(path, parents=True, exist_ok=True)


async def _text(files: Files, path: str) -> str | None:
    try:
        return (await files.read(path, limit=_MOST)).decode("utf-8", "surrogateescape")
    except FileMissingError:
        return None
    except ProtocolError as error:
        if error.code != "protocol.too_large":
            raise
        raise FileError(error.message, reason="invalid", path=path) from error
