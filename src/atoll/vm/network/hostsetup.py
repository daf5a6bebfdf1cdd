"""Having this host's own name server ask a network for its names: what is to be done is planned, then done.

systemd-resolved and dnsmasq each send the names of one domain to a server of its own. Where neither answers
this host, nothing is changed: `/etc/resolv.conf` knows no domains, and names written to `/etc/hosts` would
stay behind whatever happens to the machines.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from atoll import store
from atoll.errors import NetworkError
from atoll.network.dns.upstreams import parse_resolvers

__all__ = [
    "DNSMASQ",
    "PORT",
    "RESOLVED",
    "Command",
    "File",
    "Removal",
    "Server",
    "Step",
    "carry_out",
    "installed",
    "plan",
    "script",
    "server_of",
    "undo",
]

#: Of the loopback, where a network answers, unless another is asked for.
PORT: Final = 5553


class Server(msgspec.Struct, frozen=True):
    """A name server of this host that can ask others for one domain.

    Attributes:
        name: for people.
        path: its file that is ours.
        restart: what has it read that.
    """

    name: str
    path: Path
    restart: tuple[str, ...]

    def content(self, domain: str, port: int) -> str:
        """What the file says."""
        if self.path == RESOLVED.path:  # resolved.conf(5)
            return f"[Resolve]\nDNS=127.0.0.1:{port}\nDomains=~{domain}\n"
        return f"server=/{domain}/127.0.0.1#{port}\n"  # dnsmasq(8)


RESOLVED: Final = Server(
    "systemd-resolved",
    Path("/etc/systemd/resolved.conf.d/atoll.conf"),
    ("systemctl", "try-restart", "systemd-resolved.service"),
)
_MANAGED: Final = Server(
    "NetworkManager's dnsmasq",
    Path("/etc/NetworkManager/dnsmasq.d/atoll.conf"),
    ("nmcli", "general", "reload", "dns-full"),
)
DNSMASQ: Final = Server(
    "dnsmasq",
    Path("/etc/dnsmasq.d/atoll.conf"),
    ("systemctl", "try-restart", "dnsmasq.service"),
)
_SERVERS: Final = (RESOLVED, _MANAGED, DNSMASQ)

#: systemd-resolved's own addresses (systemd-resolved.service(8)).
_STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})


class File(msgspec.Struct, frozen=True):
    """A file to write, with its directory."""

    path: Path
    content: str


class Removal(msgspec.Struct, frozen=True):
    """A file to remove, if it is there."""

    path: Path


class Command(msgspec.Struct, frozen=True):
    """A program to run as root."""

    argv: tuple[str, ...]


Step = File | Removal | Command


def server_of(root: Path = Path("/")) -> Server:
    """Which name server answers this host's programs.

    Args:
        root: where the host's files are.

    Raises:
        NetworkError: ``network.resolver``: none of those that can send one domain elsewhere.
    """
    asked = {upstream.address for upstream in parse_resolvers(_read(root / "etc/resolv.conf")).upstreams}
    if (root / "run/systemd/resolve/resolv.conf").exists():
        if asked & _STUBS or "resolve" in _hosts_sources(_read(root / "etc/nsswitch.conf")):
            return RESOLVED
        raise _refusal("systemd-resolved runs, but programs do not ask it: see /etc/resolv.conf")
    if any(address.startswith("127.") or address == "::1" for address in asked):
        if (root / "run/NetworkManager/dnsmasq.pid").exists():
            return _MANAGED
        if any((root / place).exists() for place in ("run/dnsmasq/dnsmasq.pid", "run/dnsmasq.pid")):
            return DNSMASQ
    raise _refusal("this host's names are answered neither by systemd-resolved nor by dnsmasq")


def _hosts_sources(nsswitch: str) -> list[str]:
    """Where the C library looks for names of hosts (nsswitch.conf(5))."""
    for line in nsswitch.splitlines():
        database, colon, sources = line.partition("#")[0].partition(":")
        if colon and database.strip() == "hosts":
            return sources.split()
    return []


def _refusal(message: str) -> NetworkError:
    hint = "install systemd-resolved; `atoll dns install --listen-only` lets another name server ask for them"
    return NetworkError(message, code="resolver", hint=hint)


def plan(server: Server, domain: str, port: int) -> tuple[Step, ...]:
    """What has ``server`` ask port ``port`` of the loopback for all names of ``domain``."""
    return File(server.path, server.content(domain, port)), Command(server.restart)


def installed(root: Path = Path("/")) -> tuple[Server, ...]:
    """Name servers that have a file of ours."""
    return tuple(server for server in _SERVERS if _below(root, server.path).exists())


def undo(servers: Sequence[Server]) -> tuple[Step, ...]:
    """What takes our files from ``servers``."""
    return tuple(step for one in servers for step in (Removal(one.path), Command(one.restart)))


def script(steps: Sequence[Step]) -> str:
    """The same as ``carry_out``, for root's shell."""
    lines = ["set -e"]
    for step in steps:
        match step:
            case File(path, content):
                place, directory = shlex.quote(str(path)), shlex.quote(str(path.parent))
                lines += [f"mkdir -p {directory}", f"printf %s {shlex.quote(content)} > {place}"]
            case Removal(path):
                lines.append(f"rm -f {shlex.quote(str(path))}")
            case Command(argv):
                lines.append(shlex.join(argv))
    return "\n".join(lines) + "\n"


def carry_out(
    steps: Sequence[Step], run: Callable[[tuple[str, ...]], object], root: Path = Path("/")
) -> None:
    """Do what was planned; done twice it is the same.

    Args:
        steps: in this order.
        run: runs a program, and raises if that fails.
        root: where the host's files are.

    Raises:
        StoreError: a file cannot be written.
    """
    for step in steps:
        match step:
            case File(path, content):
                former = os.umask(0o022)  # the name server reads it as a user of its own
                try:
                    store.write_file(_below(root, path), content.encode())
                finally:
                    os.umask(former)
            case Removal(path):
                with store.refusing(_below(root, path)):
                    _below(root, path).unlink(missing_ok=True)
            case Command(argv):
                run(argv)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
