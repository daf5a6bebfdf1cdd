"""``atoll create``: a new machine."""

from __future__ import annotations

import argparse
import os

from atoll.cli.options import (
    add_ca_option,
    add_egress_option,
    add_network_option,
    add_port_options,
    add_vm_options,
    add_vsock_options,
    auto_ports,
    parse_environment,
    resolve,
)
from atoll.cli.output import listener, print_json, settle
from atoll.cli.parts import running
from atoll.errors import UsageError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and dashes")
    root = parser.add_mutually_exclusive_group()
    root.add_argument("--distro", default="debian", metavar="NAME[:SUITE]", help="its root (default debian)")
    root.add_argument("--image", metavar="IMAGE", help="an image by its name")
    root.add_argument("--rootfs", metavar="FILE", help="a tarball of a root, imported first")
    add_vm_options(parser)
    parser.add_argument("--disk", default="16G", metavar="SIZE", help="what it may write (default 16G)")
    parser.add_argument(
        "--init", choices=("systemd", "minimal"), help="process 1 (default systemd where the image has it)"
    )
    parser.add_argument(
        "--user", "-u", default="", metavar="USER", help="who runs commands; made at the first start"
    )
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable"
    )
    parser.add_argument(
        "--workdir", "-w", default="", metavar="DIR", help="directory in which commands start"
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="HOST:GUEST[:ro]",
        help="share a directory of the host",
    )
    parser.add_argument(
        "--here", action="store_true", help="share the current directory, and start commands there"
    )
    add_port_options(parser)
    add_network_option(parser, default=None)
    parser.add_argument("--no-network", action="store_false", dest="network", help="give it no network")
    add_egress_option(parser)
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME", help="have other machines call it so, too"
    )
    add_ca_option(parser)
    add_vsock_options(parser)
    parser.add_argument(
        "--vsock-kernel", action="store_true", help="use the host kernel's virtio socket (/dev/vhost-vsock)"
    )
    parser.add_argument(
        "--restart",
        choices=("no", "on-failure", "always"),
        default="no",
        help="when it ends by itself (default no)",
    )
    parser.add_argument(
        "--ready-probe", metavar="PORT|COMMAND", help="what must work before it counts as running"
    )
    parser.add_argument(
        "--idle-suspend", default="0", metavar="TIME", help="suspend it when it has done nothing for so long"
    )
    parser.add_argument("--start", action="store_true", help="start it, too")
    parser.add_argument("--json", action="store_true", help="print the machine as JSON")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")


def run(arguments: argparse.Namespace) -> int:
    """Make it."""
    config = resolve(arguments).config
    emit = listener(verbose=arguments.verbose, quiet=arguments.json)
    from atoll.cli.listing import describe
    from atoll.machine.creation import Wishes, create, parse_disk
    from atoll.machine.machine import Machine
    from atoll.machine.spec import check_name

    image = arguments.image
    if arguments.rootfs is not None:
        from atoll.cli.image_looking import wanted_platform
        from atoll.image.local.importing import bring
        from atoll.machine import registry

        if registry.exists(config.paths, check_name(arguments.name)):  # before a root is read for nothing
            raise registry.taken(arguments.name)
        image = bring(
            config.paths,
            arguments.rootfs,
            arguments.name,
            platform=wanted_platform(config),
            default=config.default_registry,
            emit=emit,
        ).manifest.name
    mounts, workdir = list(arguments.mount), arguments.workdir
    if arguments.here:
        here = os.getcwd()
        if here == "/":
            raise UsageError(
                "--here: the root cannot be shared", code="mount", hint="change into a directory"
            )
        mounts.append(f"{here}:/workdir")
        workdir = workdir or "/workdir"
    wishes = Wishes(
        distro=arguments.distro,
        image=image,
        disk=parse_disk(arguments.disk),
        init=arguments.init or ("minimal" if arguments.rootfs else ""),
        user=arguments.user,
        env=parse_environment(arguments.env),
        workdir=workdir,
        mounts=tuple(mounts),
        ports=tuple(arguments.publish),
        reverse=tuple(arguments.reverse),
        auto_ports=auto_ports(arguments),
        auto_ports_deny=arguments.auto_ports_deny,
        network=arguments.network,
        egress=tuple(arguments.egress),
        restart=arguments.restart,
        ready_probe=arguments.ready_probe,
        idle_suspend=arguments.idle_suspend,
        vsock="kernel" if arguments.vsock_kernel else arguments.vsock,
        aliases=tuple(arguments.alias),
        vsock_ports=tuple(arguments.vsock_port),
    )
    create(config, arguments.name, wishes, emit)
    machine = Machine(arguments.name, config=config, on_event=emit)
    if arguments.start:
        try:
            running(_start(machine))
        finally:
            settle(emit)
        settle(emit, f"{arguments.name}: running")
    if arguments.json:
        print_json(describe(machine.find()))
    elif not arguments.start:
        print(f"{arguments.name}: created; `atoll start {arguments.name}` starts it")
    return 0


async def _start(machine: object) -> None:
    from atoll.machine.machine import Machine

    assert isinstance(machine, Machine)
    async with machine:
        await machine.start()
