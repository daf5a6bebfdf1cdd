"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from atoll.config import Resolved, load
from atoll.errors import UsageError

__all__ = [
    "NETWORK_KINDS",
    "add_auto_ports_options",
    "add_ca_option",
    "add_egress_option",
    "add_json",
    "add_network_option",
    "add_platform",
    "add_port_options",
    "add_publish_option",
    "add_reverse_option",
    "add_vm_options",
    "auto_ports",
    "parse_environment",
    "resolve",
]

#: What ``--network`` can be beside a network's name.
NETWORK_KINDS = ("own", "slirp", "none")

_VM_OPTIONS = ("cpus", "memory", "accel", "kernel", "boot_timeout", "cold", "ca", "platform", "full")


def add_vm_options(parser: argparse.ArgumentParser) -> None:
    """Size and make of a VM."""
    parser.add_argument("--cpus", metavar="N", help="vCPUs (default 1)")
    parser.add_argument("--memory", "-m", metavar="SIZE", help="memory, such as 512M or 2G (default 512M)")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="accelerator (default auto)")
    parser.add_argument("--kernel", metavar="PATH", help="kernel to boot instead of Debian's cloud kernel")
    add_platform(parser)
    parser.add_argument(
        "--full",
        action="store_true",
        default=None,
        help="for another platform run a whole VM of it, instead of emulating its programs alone",
    )
    parser.add_argument("--boot-timeout", metavar="SECONDS", help="time in which the guest must be up")


def add_network_option(parser: argparse.ArgumentParser, *, default: object) -> None:
    """The network: each value is an option of its own, since what follows may be an image's name.

    The parser knows those that begin so, too, whatever the network's name (``atoll.cli.main``).
    """
    names = ("--network", *(f"--network={kind}" for kind in (*NETWORK_KINDS, "NAME")))
    parser.add_argument(
        *names,
        action=_Network,
        nargs=0,
        default=default,
        dest="network",
        help="give it a network: Atoll's own, QEMU's, or one of `atoll network ls` (default own)",
    )


def add_egress_option(parser: argparse.ArgumentParser) -> None:
    """What may be reached."""
    parser.add_argument(
        "--egress",
        action="append",
        default=[],
        metavar="RULE",
        help="what it may reach: a rule such as 'allow tcp *.example.org:443', or none, registries, open",
    )


def add_ca_option(parser: argparse.ArgumentParser) -> None:
    """Whether it takes over what companies add to their hosts."""
    parser.add_argument(
        "--ca",
        action=argparse.BooleanOptionalAction,
        help="with a network, take over this host's added certificates and its proxies (default yes)",
    )


class _Network(argparse.Action):
    """Whether there is a network, and which."""

    #: Tells the parser (``atoll.cli.main``) that ``OPTION=VALUE`` is an option of its own.
    whole_words = True

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: object,  # noqa: ARG002
        option_string: str | None = None,
    ) -> None:
        _, said, kind = (option_string or "").partition("=")
        setattr(namespace, self.dest, kind if said else True)


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """The flag for programs."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def resolve(arguments: argparse.Namespace) -> Resolved:
    """Settings with the flags given. Raises ``ConfigError``."""
    flags: dict[str, Any] = {name: getattr(arguments, name, None) for name in _VM_OPTIONS}
    return load(flags)


def add_vsock_options(parser: argparse.ArgumentParser) -> None:
    """What is said of a virtio socket."""
    parser.add_argument("--vsock", action="store_true", help="give it a virtio socket (AF_VSOCK)")
    parser.add_argument(
        "--vsock-port",
        action="append",
        default=[],
        metavar="PORT[:PATH]",
        help="let it connect to this port of the host over that: the unix socket PATH serves it",
    )


def add_port_options(parser: argparse.ArgumentParser) -> None:
    """What is said of ports."""
    add_publish_option(parser)
    add_reverse_option(parser)
    add_auto_ports_options(parser)


def add_publish_option(parser: argparse.ArgumentParser) -> None:
    """Ports of this host that lead to the guest."""
    parser.add_argument(
        "--publish",
        "-p",
        action="append",
        default=[],
        metavar="[ADDRESS:]HOST[:GUEST][/udp]",
        help="forward a port, or unix:PATH:GUEST; see `atoll port`",
    )


def add_reverse_option(parser: argparse.ArgumentParser) -> None:
    """Ports that lead from the guest to this host."""
    parser.add_argument(
        "--reverse",
        "-R",
        action="append",
        default=[],
        metavar="PORT[:HOST]",
        help="a port of host.atoll.internal that leads the machine to 127.0.0.1:HOST, or to PORT:unix:PATH",
    )


def add_auto_ports_options(parser: argparse.ArgumentParser) -> None:
    """What is said of ports that programs of the guest listen on."""
    parser.add_argument(
        "--auto-ports",
        action="store_true",
        default=None,
        help="forward each port that a program in it listens on, from 1024 on",
    )
    parser.add_argument(
        "--no-auto-ports", action="store_false", dest="auto_ports", help="forward none of them"
    )
    parser.add_argument(
        "--auto-ports-allow", metavar="PORTS", help="--auto-ports for these alone, as 3000-3999,8080"
    )
    parser.add_argument(
        "--auto-ports-deny", default="", metavar="PORTS", help="--auto-ports, but not for these"
    )


def auto_ports(arguments: argparse.Namespace) -> bool | str:
    """What was said of them: whether, or for which."""
    if arguments.auto_ports is False:
        return False
    allowed: str | None = arguments.auto_ports_allow
    return allowed or bool(arguments.auto_ports or arguments.auto_ports_deny)


def parse_environment(items: Sequence[str]) -> dict[str, str]:
    """Variables from ``NAME=VALUE``, or ``NAME`` to pass on this process's own.

    Raises:
        UsageError: a name is empty, or the variable to pass on is not set.
    """
    variables = {}
    for item in items:
        name, given, value = item.partition("=")
        if not name:
            raise UsageError(f"--env {item}: the name is empty", code="env", hint="write --env NAME=VALUE")
        if not given:
            if name not in os.environ:
                raise UsageError(f"--env {name}: not set here", code="env", hint=f"write --env {name}=VALUE")
            value = os.environ[name]
        variables[name] = value
    return variables


def add_platform(parser: argparse.ArgumentParser) -> None:
    """Add ``--platform`` to a command that is about images."""
    parser.add_argument(
        "--platform", metavar="PLATFORM", help="of the image, as linux/arm64 (default this host's)"
    )
