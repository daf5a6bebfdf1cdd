"""``atoll run``: one command in a fresh VM.

What happens while the command runs is in ``atoll.cli.session``.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from atoll import runtime
from atoll.cli.options import (
    add_auto_ports_options,
    add_ca_option,
    add_egress_option,
    add_network_option,
    add_publish_option,
    add_vm_options,
    add_vsock_options,
    auto_ports,
    parse_environment,
    resolve,
)
from atoll.cli.output import JsonLines, listener
from atoll.config import Config, NetworkKind
from atoll.errors import UsageError
from atoll.events import Emit
from atoll.image.oci.runconfig import RunConfig
from atoll.vm.network.egress import parse_egress, require_own
from atoll.vm.spawning import Spawned

if TYPE_CHECKING:
    from atoll.sandbox.volumes import Wanted

__all__ = ["configure", "run", "seconds"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "atoll run [OPTIONS] IMAGE|--template NAME|--snapshot NAME [--] [COMMAND [ARGUMENT ...]]"
    add_vm_options(parser)
    parser.add_argument(
        "--cold", action="store_true", default=None, help="boot the VM instead of starting it from a template"
    )
    add_network_option(parser, default=False)
    add_egress_option(parser)
    add_publish_option(parser)
    parser.add_argument(
        "--publish-all", "-P", action="store_true", help="forward a free port to each that the image exposes"
    )
    add_auto_ports_options(parser)
    add_ca_option(parser)
    add_vsock_options(parser)
    parser.add_argument(
        "--vsock-socket", metavar="PATH", help="where programs of the host connect to its virtio socket"
    )
    parser.add_argument(
        "--template", metavar="NAME", help="start from this template of yours; then no IMAGE is named"
    )
    parser.add_argument(
        "--snapshot",
        dest="sandbox_snapshot",
        metavar="NAME",
        help="go on from this snapshot of a sandbox; then no IMAGE is named",
    )
    parser.add_argument(
        "--volume",
        "-v",
        action="append",
        default=[],
        metavar="HOST:GUEST[:ro]",
        help="share a directory of the host; GUEST alone is an empty one of its own",
    )
    parser.add_argument(
        "--entrypoint", metavar="PROGRAM", help="run this instead of the image's entrypoint; '' for none"
    )
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable"
    )
    parser.add_argument("--workdir", "-w", metavar="DIR", help="directory in which the command starts")
    parser.add_argument(
        "--user", "-u", metavar="USER[:GROUP]", help="who runs the command (default the image's)"
    )
    parser.add_argument(
        "--stop-timeout",
        default="10",
        metavar="SECONDS",
        help="time for what an image runs to end when it is asked to (default 10)",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", help="end the command after this time, with status 124"
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--tty", "-t", action="store_true", default=None, help="give the command a terminal"
    )
    terminal.add_argument("--no-tty", "-T", action="store_false", dest="tty", help="give it pipes")
    parser.add_argument("--json", action="store_true", help="print events and output as JSON lines")
    parser.add_argument("--verbose", action="store_true", help="show the stages and their times")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="such as debian, or debian:bookworm")
    parser.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: what the image says, or its shell"
    )


def run(arguments: argparse.Namespace) -> int:
    """Boot, run, remove; the command's exit status, or 128 plus the signal that ended it."""
    config = resolve(arguments).config
    timeout, grace = seconds(arguments.timeout), seconds(arguments.stop_timeout, "stop-timeout")
    environment = parse_environment(arguments.env)
    emit = listener(json=arguments.json, verbose=arguments.verbose, quiet=arguments.quiet)
    vsock, volumes = _vsock(arguments), _volumes(arguments)
    spawned = _spawned(arguments, config, vsock, volumes, emit)
    # The guest boots from here on, while the event loop and all that needs it are loaded.
    import asyncio

    from atoll.cli.session import Session
    from atoll.sandbox.sandbox import Sandbox

    tty = arguments.tty
    if tty is None:
        tty = os.isatty(0) and os.isatty(1) and not arguments.json
    try:
        words, stop = _planned(arguments, spawned)
        box = Sandbox(
            arguments.image or "",
            env=environment,
            workdir=arguments.workdir,
            user=arguments.user,
            network=arguments.network,
            egress=arguments.egress or None,
            auto_ports=auto_ports(arguments),
            auto_ports_deny=arguments.auto_ports_deny,
            volumes=arguments.volume,
            ports=arguments.publish,
            publish_all=arguments.publish_all,
            **vsock,
            config=config,
            on_event=emit,
            spawned=spawned,
        )
    except BaseException:
        spawned.discard()
        raise
    session = Session(
        box=box,
        begin=box.open,
        argv=words,
        tty=bool(tty),
        events=emit if isinstance(emit, JsonLines) else None,
        timeout=timeout,
        stop=stop,
        grace=grace if spawned.run is not None else None,
    )
    return asyncio.run(session.run())


def _planned(arguments: argparse.Namespace, spawned: Spawned) -> tuple[tuple[str, ...], int | None]:
    """What is run, and the signal that asks it to end; None for whichever this process gets.

    Raises:
        ImageError: ``image.command``: there is nothing to run; ``image.config``: that is no signal.
    """
    from atoll.image.oci.command import stop_signal_of, words_of

    said = tuple(arguments.argv)
    if arguments.template is not None or arguments.sandbox_snapshot is not None:
        # What stands where the image would is the command's first word.
        said = tuple(word for word in (arguments.image, *said) if word is not None)
    run = spawned.run or RunConfig()
    words = words_of(run, said, arguments.entrypoint, spawned.shell)
    return words, stop_signal_of(run) if run.stop_signal else None


def _spawned(
    arguments: argparse.Namespace,
    config: Config,
    vsock: dict[str, Any],
    volumes: Wanted | None,
    emit: Emit,
) -> Spawned:
    """The VM, on its way up."""
    name = runtime.new_name()
    wish, lan = runtime.named_network(config, arguments.network)
    fixed: dict[str, object] = {
        option: getattr(arguments, option)
        for option in ("cpus", "accel", "kernel", "cold", "platform", "full")
    }
    network = runtime.choose_network(config, wish=wish)
    fixed["network"] = None if network is NetworkKind.NONE or lan else network
    fixed["volumes"] = volumes.shares if volumes is not None and volumes.shares else None
    egress = parse_egress(arguments.egress)
    if arguments.sandbox_snapshot is not None:
        from atoll.sandbox import reviving, warm

        warm.refuse_beside_snapshot({**fixed, "memory": arguments.memory, "template": arguments.template})
        return reviving.launch(
            config, name, arguments.sandbox_snapshot, lan=lan, egress=egress or None, emit=emit
        ).spawned
    if arguments.template is not None:
        from atoll.sandbox import warm

        warm.refuse_what_it_fixes(fixed)
        memory = config.memory if arguments.memory is not None else None
        return warm.launch(config, name, arguments.template, memory, lan=lan, egress=egress, emit=emit)
    if arguments.image is None:
        hint = "such as `atoll run debian`; `atoll image ls` lists those that are here"
        raise UsageError("no image is named", code="arguments", hint=hint)
    require_own(egress, network)
    special: dict[str, Any] = {}
    if vsock or volumes is not None:
        from atoll.sandbox.volumes import shaping
        from atoll.sandbox.vsock import parse

        special = shaping(parse(**vsock) if vsock else None, volumes)
    return runtime.launch(
        config, name, arguments.image, network=network, lan=lan, egress=egress, emit=emit, **special
    )


def _volumes(arguments: argparse.Namespace) -> Wanted | None:
    """What is said of volumes; None by default. Raises ``UsageError``: ``usage.mount``."""
    if not arguments.volume:
        return None
    for text in arguments.volume:
        if not {"/", ":"} & set(text):
            hint = "write HOST:GUEST; the stages are shown by --verbose"
            raise UsageError(f"-v {text}: no volume", code="mount", hint=hint)
    from atoll.sandbox.volumes import parse

    return parse(arguments.volume)


def _vsock(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is said of a virtio socket, for ``Sandbox``; nothing by default. Raises ``UsageError``."""
    if not (arguments.vsock or arguments.vsock_port or arguments.vsock_socket):
        return {}
    from atoll.machine.spec import parse_vsock
    from atoll.sandbox.vsock import parse

    opened = parse_vsock(True, arguments.vsock_port, named=True)
    assert opened is not None
    wanted: dict[str, Any] = {
        "vsock": arguments.vsock_socket or True,
        "vsock_ports": {one.port: one.path for one in opened.ports},
    }
    parse(**wanted, template=arguments.template, snapshot=arguments.sandbox_snapshot)
    return wanted


def seconds(text: str | None, option: str = "timeout") -> float | None:
    """The limit for a command. Raises ``UsageError``."""
    if text is None:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UsageError(
            f"--{option} {text}: no time", code="timeout", hint="write seconds, such as 30 or 0.5"
        )
    return limit
