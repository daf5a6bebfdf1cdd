"""``atoll doctor``: what is present, what is not, and how to mend it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll import process, runtime
from atoll.cli import docker_checks
from atoll.cli.checks import Check, Outcome
from atoll.cli.main import version
from atoll.cli.options import add_json, add_vm_options, resolve
from atoll.cli.output import listener, print_json, size
from atoll.config import Config
from atoll.errors import AtollError
from atoll.events import Emit
from atoll.hypervisor import confinement
from atoll.hypervisor.model import parse_architecture
from atoll.hypervisor.qemu.host import inspect_host
from atoll.image import catalog, emulation, kernel
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.vm import accelerator, serving
from atoll.vm.network import catalog as networks
from atoll.vm.network.catalog import Activity

__all__ = ["configure", "run"]

#: Free space below which builds may fail, bytes.
_ROOM = 2 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_vm_options(parser)
    parser.add_argument("--again", action="store_true", help="boot-test KVM again, whatever is known")
    add_json(parser, "the findings")


def run(arguments: argparse.Namespace) -> int:
    """Check everything; 1 if something that is needed is missing."""
    config = resolve(arguments).config
    emit = listener(quiet=arguments.json)
    checks = [check for examine in _CHECKS for check in _guarded(examine, config)]
    checks.append(_accelerator(config, emit, again=arguments.again))
    if arguments.json:
        print_json(checks)
    else:
        for check in checks:
            print(f"{check.outcome:4}  {check.name:12} {check.finding}")
            if check.fix:
                print(f"{'':18} fix: {check.fix}")
    return int(any(check.outcome is Outcome.FAIL for check in checks))


def _guarded(examine: Callable[[Config], Iterator[Check]], config: Config) -> Iterator[Check]:
    try:
        yield from examine(config)
    except AtollError as error:
        name = examine.__name__.rpartition("check_")[2]
        yield Check(name, Outcome.FAIL, error.message, error.hint)


def _check_atoll(_: Config) -> Iterator[Check]:
    where = f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield Check("atoll", Outcome.OK, f"{version()}, Python {platform.python_version()}, {where}")
    agent = kernel.agent_path(runtime.host_architecture())
    if agent.exists():
        yield Check("agent", Outcome.OK, f"{agent} ({size(agent.stat().st_size)})")
    else:
        yield Check(
            "agent", Outcome.FAIL, f"{agent} is missing", "reinstall atoll, or `make build` in a checkout"
        )


def _check_qemu(config: Config) -> Iterator[Check]:
    host = inspect_host(runtime.host_architecture(), config.cache_dir)
    confined = "confined by seccomp" if host.sandbox else "without its seccomp sandbox"
    yield Check("qemu", Outcome.OK, f"{host.version} at {host.program}, {confined}")


def _check_programs(_: Config) -> Iterator[Check]:
    for program, package, purpose in (
        ("mkfs.erofs", "erofs-utils", "building images"),
        ("mmdebstrap", "mmdebstrap", "building the debian image"),
        ("apt-get", "apt", "fetching Debian's kernel"),
    ):
        path = process.find(program)
        if path:
            yield Check(program, Outcome.OK, path)
        else:
            yield Check(
                program, Outcome.NOTE, f"not installed; needed for {purpose}", f"apt install {package}"
            )
    if process.find("setpriv") is None:
        finding = "not installed; a VM outlives a killed program until its guest notices"
        yield Check("setpriv", Outcome.NOTE, finding, "apt install util-linux")


def _check_platforms(config: Config) -> Iterator[Check]:
    """Only images of another platform need it."""
    native = runtime.host_architecture()
    foreign = parse_architecture(FOREIGN[native])
    platform = PLATFORMS[foreign]
    program = emulation.find(config.paths, foreign, native)
    if program is not None:
        yield Check("emulation", Outcome.OK, f"programs of {platform} run by {program}")
    else:
        error = emulation.missing(foreign)
        yield Check("emulation", Outcome.NOTE, error.message, error.hint)
    try:
        whole = inspect_host(foreign, config.cache_dir)
    except AtollError as error:
        yield Check("emulation", Outcome.NOTE, f"no whole VMs of {platform}: {error.message}", error.hint)
    else:
        yield Check("emulation", Outcome.OK, f"whole VMs of {platform} run by QEMU {whole.version}")


def _check_shares(_: Config) -> Iterator[Check]:
    """Only directories that are shared need it."""
    try:
        daemon = serving.check()
    except AtollError as error:
        yield Check("virtiofsd", Outcome.NOTE, error.message, error.hint)
    else:
        yield Check("virtiofsd", Outcome.OK, daemon.program)


def _check_networks(config: Config) -> Iterator[Check]:
    """A process that is stopped holds up all VMs of its network."""
    listed = networks.listed(config.paths)
    for one in listed:
        if one.problem:
            yield Check("network", Outcome.FAIL, one.problem, one.hint)
    running = [f"{one.name} ({len(one.cards)} VMs)" for one in listed if one.activity is Activity.RUNNING]
    yield Check("networks", Outcome.OK, f"{len(listed)}; in use: {', '.join(running) or 'none'}")


def _check_cgroups(_: Config) -> Iterator[Check]:
    """Sandboxes run without them all the same."""
    found = confinement.survey()
    held = [controller for home in found.homes for controller in home.controllers]
    if held:
        yield Check("cgroups", Outcome.OK, f"{' and '.join(held)} of each sandbox are bounded")
    missing = [f"{controller}: {reason}" for controller, reason in found.refusals]
    if missing or not held:
        finding = "; ".join(missing) or "this system has none"
        yield Check("cgroups", Outcome.NOTE, f"sandboxes are not bounded in all that they take ({finding})")


def _check_memory(config: Config) -> Iterator[Check]:
    available = _available_memory()
    text = f"{size(available)} available, {os.cpu_count()} CPUs"
    if available < config.memory:
        fix = "end other programs, or use --memory"
        yield Check("memory", Outcome.FAIL, f"{text}; a VM asks for {size(config.memory)}", fix)
    else:
        yield Check("memory", Outcome.OK, text)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _check_space(config: Config) -> Iterator[Check]:
    for name, directory in (("data", config.data_dir), ("cache", config.cache_dir)):
        existing = next(path for path in (directory, *directory.parents) if os.path.exists(path))
        free = shutil.disk_usage(existing).free
        if not os.access(existing, os.W_OK | os.X_OK):
            fix = f"make it writable, or set ATOLL_{name.upper()}_DIR"
            yield Check(name, Outcome.FAIL, f"{directory} cannot be written", fix)
        elif free < _ROOM:
            fix = f"free space, or set ATOLL_{name.upper()}_DIR"
            yield Check(name, Outcome.FAIL, f"{directory}: only {size(free)} free", fix)
        else:
            yield Check(name, Outcome.OK, f"{directory}: {size(free)} free")


def _check_images(config: Config) -> Iterator[Check]:
    listed = catalog.installed(config.paths)
    if not listed:
        yield Check("images", Outcome.NOTE, "none yet; built on first use", "atoll image build debian")
    for entry in listed:
        if entry.image is not None:
            manifest = entry.image.manifest
            yield Check("image", Outcome.OK, f"{manifest.name}, {size(manifest.size)}")
        elif entry.error is not None:
            yield Check("image", Outcome.FAIL, entry.error.message, entry.error.hint)


_CHECKS = (
    _check_atoll,
    _check_qemu,
    _check_programs,
    _check_platforms,
    _check_shares,
    _check_networks,
    _check_cgroups,
    _check_memory,
    _check_space,
    _check_images,
    *docker_checks.CHECKS,
)


def _accelerator(config: Config, emit: Emit, *, again: bool) -> Check:
    """The probe's verdict. KVM that cannot be used is no failure: guests run without it, only slower."""
    try:
        candidate = runtime.candidate(config, runtime.host_architecture(), emit)
        verdict = accelerator.examine(candidate, config.paths.verdicts, emit, anew=again)
    except AtollError as error:
        return Check("accelerator", Outcome.FAIL, error.message, error.hint)
    if verdict.usable:
        return Check("accelerator", Outcome.OK, f"kvm: {verdict.reason}")
    reason = f"KVM {verdict.finding}: {verdict.reason}"
    outcome = Outcome.FAIL if config.accel == "kvm" else Outcome.NOTE
    return Check("accelerator", outcome, f"tcg ({reason})", verdict.hint)
