"""``atoll ssh``, ``ssh-config`` and ``ssh-proxy``."""

from __future__ import annotations

import argparse
from typing import NoReturn

from atoll import process
from atoll.cli.parts import Part, running
from atoll.config import load
from atoll.machine import registry, ssh
from atoll.machine.machine import Machine
from atoll.vm.state import Phase, StateError

__all__ = ["config", "connect", "proxy"]


def _configure_connect(parser: argparse.ArgumentParser) -> None:
    parser.usage = "atoll ssh NAME [--] [SSH ARGUMENT ...]"
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="passed on to ssh")


def _run_connect(arguments: argparse.Namespace) -> NoReturn:
    paths = load().config.paths
    machine = registry.find(paths, arguments.machine)
    if machine.state.phase is not Phase.RUNNING and not machine.state.held:  # that ends by itself
        message = f"{machine.name} is {machine.state.phase}: it cannot be reached"
        paused = machine.state.phase is Phase.PAUSED
        hint = (
            f"`atoll resume {machine.name}` lets it go on"
            if paused
            else f"`atoll start {machine.name}` starts it"
        )
        raise StateError(message, code="not_running", hint=hint)
    program = process.require("ssh", hint="apt install openssh-client")
    ssh.ensure_keys(paths, machine.name)
    rest = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
    settings = ssh.options(paths, machine.spec.user or "root").items()
    words = [word for name, value in settings for word in ("-o", f"{name}={value}")]
    process.become([program, *words, f"{machine.name}{ssh.DOMAIN}", *rest])


def _configure_config(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print the block of ssh's configuration with which `ssh NAME.atoll` works."
    parser.add_argument("--install", action="store_true", help="write it, and include it in ~/.ssh/config")


def _run_config(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    block = ssh.config_block(paths)
    if not arguments.install:
        print(block, end="")
        return 0
    print(f"{ssh.install(paths, block)}: includes it now; try `ssh NAME{ssh.DOMAIN}`")
    return 0


def _configure_proxy(parser: argparse.ArgumentParser) -> None:
    parser.description = "Connect stdin and stdout to an SSH server in a machine; for ssh's ProxyCommand."
    parser.add_argument("host", metavar="NAME[.atoll]")


def _run_proxy(arguments: argparse.Namespace) -> int:
    from atoll.cli.session import Session

    settings = load().config
    name = ssh.machine_of(arguments.host)
    ssh.ensure_keys(settings.paths, registry.find(settings.paths, name).name)
    machine = Machine(name, config=settings)
    argv, variables = ssh.server_command(machine, settings.paths)
    machine.prefer(env=variables, workdir="/", user="root")
    session = Session(box=machine, begin=machine.connect, argv=argv, tty=False, events=None, timeout=None)
    return running(session.run())


connect = Part(_configure_connect, _run_connect)
config = Part(_configure_config, _run_config)
proxy = Part(_configure_proxy, _run_proxy)
