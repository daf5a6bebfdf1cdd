"""What no start can be faster than: QEMU's own start, and its restore of the same template without Atoll."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from dataclasses import dataclass

from atoll import runtime
from atoll.config import Config
from atoll.errors import AtollError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.hypervisor.qemu.host import QemuHost
from atoll.hypervisor.qemu.orders import going_on, orders
from atoll.template import cache
from atoll.template.cache import Template
from atoll.template.key import Recipe, clone_of

#: Seconds for a QEMU to say what it was asked for.
_PATIENCE = 30.0


@dataclass
class Frozen:
    """A template, and what is needed to start from it."""

    host: QemuHost
    recipe: Recipe
    template: Template

    @property
    def machine(self) -> Machine:
        """A clone of it."""
        return clone_of(self.recipe.machine, "bench", self.template.place.ram)


def frozen(config: Config, image: str = "debian") -> Frozen:
    """The template from which sandboxes of ``image`` start, made if it is not here."""
    prepared = runtime.prepare(config, "bench", image)
    recipe = runtime.template_recipe(config, prepared)
    template = cache.find(config.paths, recipe.manifest.name, recipe.manifest.identity)
    template = template or runtime.build_template(config, image)
    if template.manifest.failure:
        raise AtollError(f"no VM starts from a template here: {template.manifest.failure}")
    return Frozen(prepared.base.host, recipe, template)


def version_once(program: str) -> float:
    """Seconds that ``qemu-system-... --version`` takes: the loader's part of each start."""
    began = time.perf_counter()
    subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def restore_once(start: Frozen) -> float:
    """Seconds from QEMU's spawn to its RESUME event: no instruction of the guest is in it."""
    pairs = [socket.socketpair() for _ in range(3)]
    fds = [theirs.fileno() for _, theirs in pairs]
    state = os.open(start.template.place.state, os.O_RDONLY)
    argv = render(
        start.machine, start.host.program, Descriptors(*fds), sandbox=start.host.sandbox, incoming=True
    )
    monitor = pairs[2][0]
    monitor.sendall(orders(*going_on(state, ram_in_file=True)))
    began = time.perf_counter()
    child = subprocess.Popen(
        argv, pass_fds=[*fds, state], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        resumed(monitor)
        return time.perf_counter() - began
    finally:
        child.kill()
        child.wait()
        os.close(state)
        for end in (end for pair in pairs for end in pair):
            end.close()


def resumed(monitor: socket.socket) -> None:
    """Wait until QEMU says on its monitor that the vCPUs run."""
    monitor.setblocking(True)
    monitor.settimeout(_PATIENCE)
    said = b""
    while b'"RESUME"' not in said:
        data = monitor.recv(65_536)
        assert data, "QEMU has ended"
        said = said[-16:] + data
