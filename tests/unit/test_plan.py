"""From what is wanted to the machine that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import PreflightError
from atoll.hypervisor.model import Accelerator, Architecture, Disk, Machine
from atoll.vm.plan import Bootable, Shape, check_memory, plan, smallest_memory

MIB = 1 << 20

FILES = Bootable(
    kernel=Path("/k/vmlinux"),
    initramfs=Path("/k/initramfs"),
    modules=Path("/k/modules.erofs"),
    root=Path("/i/root.erofs"),
)
TCG = Shape(Architecture.X86_64, Accelerator.TCG, vcpus=2, memory=512 * MIB, tsc_khz=2_500_000)
KVM = Shape(Architecture.X86_64, Accelerator.KVM, vcpus=2, memory=512 * MIB, tsc_khz=2_500_000)
ARM = Shape(Architecture.AARCH64, Accelerator.TCG, vcpus=1, memory=512 * MIB)

#: What keeps a guest that does nothing from waking up.
STILL = ("nowatchdog", "sysctl.vm.compaction_proactiveness=0", "sysctl.vm.stat_interval=20")


def test_a_sandbox_under_tcg():
    assert plan("box", FILES, TCG) == Machine(
        name="box",
        architecture=Architecture.X86_64,
        accelerator=Accelerator.TCG,
        vcpus=2,
        memory=512 * MIB,
        kernel=Path("/k/vmlinux"),
        initramfs=Path("/k/initramfs"),
        cmdline=(
            "console=ttyS0",
            "quiet",
            "panic=-1",
            "random.trust_cpu=on",
            *STILL,
            "cryptomgr.notests",
            "noreplace-smp",
            "no_timer_check",
            "init_on_alloc=0",
            "lsm=",
            "mitigations=off",
            "norandmaps",
            "tsc_early_khz=2500000",
            "tsc=nowatchdog",
            "atoll.hostname=box",
            "atoll.root=root",
            "atoll.modules=modules",
            "atoll.lifeline=1",
        ),
        disks=(
            Disk(Path("/i/root.erofs"), serial="root", read_only=True),
            Disk(Path("/k/modules.erofs"), serial="modules", read_only=True),
        ),
    )


def test_under_kvm_nothing_is_weakened():
    assert plan("box", FILES, KVM).cmdline == (
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "random.trust_cpu=on",
        *STILL,
        "atoll.hostname=box",
        "atoll.root=root",
        "atoll.modules=modules",
        "atoll.lifeline=1",
    )


def test_on_arm_the_console_differs_and_there_is_no_tsc():
    cmdline = plan("box", FILES, ARM).cmdline
    assert cmdline[0] == "console=ttyAMA0"
    assert not [item for item in cmdline if "tsc" in item]


def test_an_unknown_tsc_rate_is_not_told():
    shape = Shape(Architecture.X86_64, Accelerator.TCG, vcpus=1, memory=512 * MIB)
    assert not [item for item in plan("box", FILES, shape).cmdline if "tsc" in item]


def test_without_a_root_the_guest_stays_in_the_initramfs_and_gets_no_disk():
    machine = plan("probe", Bootable(FILES.kernel, FILES.initramfs, FILES.modules), TCG)
    assert machine.disks == ()
    assert not [item for item in machine.cmdline if item.startswith(("atoll.root", "atoll.modules"))]


def test_a_kernel_without_modules_has_no_disk_of_them():
    machine = plan("box", Bootable(FILES.kernel, FILES.initramfs, root=FILES.root), TCG)
    assert [disk.serial for disk in machine.disks] == ["root"]
    assert "atoll.modules=modules" not in machine.cmdline


def test_hostname_and_lifeline_are_as_asked_for():
    cmdline = plan("box", FILES, TCG, hostname="dev", lifeline=False).cmdline
    assert "atoll.hostname=dev" in cmdline
    assert "atoll.lifeline=1" not in cmdline


@given(st.integers(0, 1 << 32), st.integers(0, 1 << 32))
def test_the_least_memory_holds_kernel_and_initramfs_twice_and_is_whole_mebibytes(kernel, initramfs):
    least = smallest_memory(kernel, initramfs)
    assert least % MIB == 0
    assert 0 <= least - (kernel + 2 * initramfs + 64 * MIB) < MIB


def test_memory_within_the_bounds_is_taken():
    check_memory(128 * MIB, least=128 * MIB, most=128 * MIB)


@pytest.mark.parametrize(
    ("memory", "message", "hint"),
    [
        (127, "127 MiB of memory is too little: this kernel needs 128 MiB", "use --memory 128M or more"),
        (
            4097,
            "4097 MiB of memory is more than this host has (4096 MiB)",
            "ask for less with --memory",
        ),
    ],
)
def test_memory_out_of_bounds_is_refused_with_the_bound(memory, message, hint):
    with pytest.raises(PreflightError) as caught:
        check_memory(memory * MIB, least=128 * MIB, most=4096 * MIB)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.code == "boot.preflight"
