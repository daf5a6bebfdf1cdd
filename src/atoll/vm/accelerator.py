"""Which accelerator a VM gets, and why; verdicts are kept while nothing changes that could change them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import PreflightError, StoreError
from atoll.events import AcceleratorChosen, Emit, ignore, task
from atoll.hypervisor.model import Accelerator, Architecture
from atoll.hypervisor.port import Hypervisor, VirtualMachine
from atoll.hypervisor.qemu.host import QemuHost
from atoll.hypervisor.qemu.tsc import measure_khz
from atoll.hypervisor.qemu.verdict import Finding, Verdict, examine_device
from atoll.vm.plan import Bootable, Shape, plan

__all__ = ["Candidate", "Chosen", "choose", "examine"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TEST_MEMORY = 256 << 20


class _Known(msgspec.Struct, frozen=True):
    """What was found out about this host since its boot. ``key`` names all that it depends on."""

    SCHEMA: ClassVar[int] = 1

    key: str
    tsc_khz: int | None
    verdict: Verdict | None = None
    schema: int = 1


class Candidate(msgspec.Struct, frozen=True):
    """What a verdict is about.

    Attributes:
        hypervisor: what would run the guest.
        host: its executable.
        files: what the guest would boot; only kernel and initramfs are used for the test.
        identity: changes when ``files`` do.
        architecture: of the guest; ``native`` of the host.
        devices: kernel modules by the device that needs them.
    """

    hypervisor: Hypervisor
    host: QemuHost
    files: Bootable
    identity: str
    architecture: Architecture
    native: str
    devices: dict[str, tuple[str, ...]] = {}


class Chosen(msgspec.Struct, frozen=True):
    """The accelerator, the reason in words, and the rate of the host's TSC where it is known (kHz)."""

    accelerator: Accelerator
    reason: str
    tsc_khz: int | None


def choose(wanted: str, candidate: Candidate, record: Path, emit: Emit = ignore) -> Chosen:
    """The accelerator for a guest.

    Args:
        wanted: ``auto``, ``kvm`` or ``tcg``.
        candidate: what would be run.
        record: file that keeps the verdict.
        emit: told of the choice, and of a boot test if one is made.

    Raises:
        PreflightError: KVM was asked for and cannot be used; the message says why.
    """
    known = _recall(candidate, record)
    if wanted == "tcg":
        chosen = Chosen(Accelerator.TCG, "asked for", known.tsc_khz)
    else:
        verdict = examine(candidate, record, emit)
        if wanted == "kvm" and not verdict.usable:
            message = f"KVM cannot be used: {verdict.reason}"
            hint = verdict.hint or "leave out --accel kvm to run without it"
            raise PreflightError(message, hint=hint)
        accelerator = Accelerator.KVM if verdict.usable else Accelerator.TCG
        reason = verdict.reason if verdict.usable else f"KVM {verdict.finding}: {verdict.reason}"
        chosen = Chosen(accelerator, reason, known.tsc_khz)
    emit(AcceleratorChosen(accelerator=chosen.accelerator, reason=chosen.reason))
    return chosen


def examine(candidate: Candidate, record: Path, emit: Emit = ignore, *, anew: bool = False) -> Verdict:
    """Whether KVM can be used; boot-tested once for each boot of the host, QEMU and kernel, or ``anew``."""
    if candidate.architecture != candidate.native:
        reason = f"{candidate.architecture} guests are emulated on {candidate.native}"
        return Verdict(Finding.FOREIGN, reason)
    verdict = examine_device()  # cheap, and what it finds may have been mended since
    if verdict is not None:
        return verdict
    known = _recall(candidate, record)
    if known.verdict is None or anew:
        with task(emit, "probe", "Testing whether KVM works here"):
            import asyncio  # noqa: PLC0415 - once for each boot of the host

            verdict = asyncio.run(_test(candidate))
        known = _Known(known.key, known.tsc_khz, verdict)
        store.write_record(record, known)
    assert known.verdict is not None
    return known.verdict


def _recall(candidate: Candidate, record: Path) -> _Known:
    if candidate.architecture != candidate.native:  # nothing of the host is tested, and its TSC not seen
        return _Known("", None)
    key = f"{_boot_id()} {candidate.host.identity} {candidate.identity}"
    try:
        known = store.read_record(record, _Known)
    except StoreError:
        known = None
    if known is None or known.key != key:
        known = _Known(key, measure_khz())
        store.write_record(record, known)
    return known


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


async def _test(candidate: Candidate) -> Verdict:
    from atoll.hypervisor.qemu.probe import boot_test  # noqa: PLC0415

    files = Bootable(candidate.files.kernel, candidate.files.initramfs)
    shape = Shape(candidate.architecture, Accelerator.KVM, vcpus=1, memory=_TEST_MEMORY)
    return await boot_test(candidate.hypervisor, plan("atoll-probe", files, shape), _answers)


async def _answers(vm: VirtualMachine) -> None:
    from atoll.guest.channel import Channel  # noqa: PLC0415

    channel = Channel(vm.take_channel())
    try:
        await channel.ready()
    finally:
        channel.close()
