"""QEMU's argument vector, word by word."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll.hypervisor.model import (
    Accelerator,
    Architecture,
    Disk,
    DiskFile,
    DiskFormat,
    Forward,
    Machine,
    MemoryFile,
    UserNetwork,
    parse_architecture,
)
from atoll.hypervisor.qemu.argv import Descriptors, render

FDS = Descriptors(channel=10, serial=11, qmp=12)

BARE = Machine(
    name="box",
    architecture=Architecture.X86_64,
    accelerator=Accelerator.TCG,
    vcpus=1,
    memory=512 << 20,
    kernel=Path("/k/vmlinux"),
    initramfs=Path("/k/initramfs"),
    cmdline=("console=ttyS0", "quiet"),
)

DISKS = (
    Disk(Path("/images/root.erofs"), serial="root", read_only=True),
    Disk(Path("/data/a,b.qcow2"), serial="data,1", format=DiskFormat.QCOW2),
)


def lines(vector):
    """The vector as one option with its value a line."""
    grouped = []
    for word in vector:
        if word.startswith("-") or not grouped:
            grouped.append(word)
        else:
            grouped[-1] += f" {word}"
    return tuple(grouped)


def test_x86_64_under_tcg_with_disks():
    vector = render(replace(BARE, disks=DISKS), "/usr/bin/qemu-system-x86_64", FDS, sandbox=True)
    assert vector == (
        "/usr/bin/qemu-system-x86_64",
        *("-name", "guest=box"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        "-no-reboot",
        *("-global", "migration.store-global-state=off"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off"),
        *("-accel", "tcg,thread=single"),
        *("-cpu", "max,la57=off,erms=off,fsrm=off"),
        *("-smp", "1"),
        *("-m", "512M"),
        *("-bios", "qboot.rom"),
        *("-kernel", "/k/vmlinux"),
        *("-initrd", "/k/initramfs"),
        *("-append", "console=ttyS0 quiet"),
        *("-chardev", "socket,id=qmp,fd=12"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=serial,fd=11"),
        *("-serial", "chardev:serial"),
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2"),
        *("-chardev", "socket,id=channel,fd=10"),
        *("-device", "virtserialport,bus=serial0.0,chardev=channel,name=atoll.agent.0"),
        *("-device", "virtio-rng-pci"),
        *("-blockdev", "driver=file,node-name=disk-root-file,filename=/images/root.erofs,read-only=on"),
        *("-blockdev", "driver=raw,node-name=disk-root,file=disk-root-file,read-only=on"),
        *("-device", "virtio-blk-pci,drive=disk-root,serial=root"),
        *(
            "-blockdev",
            "driver=file,node-name=disk-data-1-file,filename=/data/a,,b.qcow2,read-only=off,discard=unmap",
        ),
        *(
            "-blockdev",
            "driver=qcow2,node-name=disk-data-1,file=disk-data-1-file,read-only=off,discard=unmap,detect-zeroes=unmap",
        ),
        *("-device", "virtio-blk-pci,drive=disk-data-1,serial=data,,1"),
    )


def test_x86_64_under_kvm_with_two_vcpus():
    machine = replace(BARE, accelerator=Accelerator.KVM, vcpus=2, memory=2 << 30, cmdline=())
    assert render(machine, "qemu-system-x86_64", FDS, sandbox=False) == (
        "qemu-system-x86_64",
        *("-name", "guest=box"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        "-no-reboot",
        *("-global", "migration.store-global-state=off"),
        *("-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off"),
        *("-accel", "kvm"),
        *("-cpu", "host"),
        *("-smp", "2"),
        *("-m", "2048M"),
        *("-bios", "qboot.rom"),
        *("-kernel", "/k/vmlinux"),
        *("-initrd", "/k/initramfs"),
        *("-append", ""),
        *("-chardev", "socket,id=qmp,fd=12"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=serial,fd=11"),
        *("-serial", "chardev:serial"),
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2"),
        *("-chardev", "socket,id=channel,fd=10"),
        *("-device", "virtserialport,bus=serial0.0,chardev=channel,name=atoll.agent.0"),
        *("-device", "virtio-rng-pci"),
    )


def test_aarch64_under_tcg_with_four_vcpus_and_a_disk():
    machine = replace(
        BARE, name="a,b", architecture=Architecture.AARCH64, vcpus=4, memory=256 << 20, disks=DISKS[:1]
    )
    assert render(machine, "/opt/qemu-system-aarch64", FDS, sandbox=True) == (
        "/opt/qemu-system-aarch64",
        *("-name", "guest=a,,b"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        "-no-reboot",
        *("-global", "migration.store-global-state=off"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "virt,gic-version=3,highmem=on"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "max,pauth-impdef=on"),
        *("-smp", "4"),
        *("-m", "256M"),
        *("-kernel", "/k/vmlinux"),
        *("-initrd", "/k/initramfs"),
        *("-append", "console=ttyS0 quiet"),
        *("-chardev", "socket,id=qmp,fd=12"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=serial,fd=11"),
        *("-serial", "chardev:serial"),
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2"),
        *("-chardev", "socket,id=channel,fd=10"),
        *("-device", "virtserialport,bus=serial0.0,chardev=channel,name=atoll.agent.0"),
        *("-device", "virtio-rng-pci"),
        *("-blockdev", "driver=file,node-name=disk-root-file,filename=/images/root.erofs,read-only=on"),
        *("-blockdev", "driver=raw,node-name=disk-root,file=disk-root-file,read-only=on"),
        *("-device", "virtio-blk-pci,drive=disk-root,serial=root"),
    )


class TestTemplates:
    FROZEN = replace(BARE, max_memory=(1 << 30) + 1, ram=MemoryFile(Path("/t/a,b/ram"), shared=True))

    def test_ram_lies_in_a_file_and_what_is_plugged_in_does_not(self):
        vector = lines(render(self.FROZEN, "qemu", FDS, sandbox=False))
        assert "-machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,memory-backend=ram" in vector
        assert "-m size=512M,slots=1,maxmem=1024M" in vector
        assert "-object memory-backend-file,id=ram,size=512M,mem-path=/t/a,,b/ram,share=on" in vector
        assert "-device virtio-mem-pci,id=memory,memdev=more,requested-size=0" in vector
        assert not any("balloon" in line for line in vector)

    def test_a_clone_differs_in_nothing_that_a_guest_sees(self):
        clone = replace(self.FROZEN, name="clone", ram=MemoryFile(Path("/proc/self/fd/9"), shared=False))
        frozen = lines(render(self.FROZEN, "qemu", FDS, sandbox=True))
        cloned = lines(render(clone, "qemu", FDS, sandbox=True, incoming=True))
        gone = [line for line in frozen if line not in cloned]
        new = [line for line in cloned if line not in frozen]
        assert gone == [
            "-name guest=box",
            "-object memory-backend-file,id=ram,size=512M,mem-path=/t/a,,b/ram,share=on",
            "-kernel /k/vmlinux",
            "-initrd /k/initramfs",
            "-append console=ttyS0 quiet",
        ]
        assert new == [
            "-name guest=clone",
            "-object memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/9,share=off",
            "-incoming defer",
        ]
        both = [line for line in frozen if line in cloned]
        assert both == [line for line in cloned if line in frozen]  # devices in their order


@pytest.mark.parametrize("vcpus", [2, 255])
def test_under_tcg_more_vcpus_have_a_thread_each(vcpus):
    vector = lines(render(replace(BARE, vcpus=vcpus), "qemu", FDS, sandbox=False))
    assert "-accel tcg,thread=multi" in vector
    assert f"-smp {vcpus}" in vector


def test_disks_are_attached_in_their_order():
    disks = tuple(Disk(Path(f"/d/{number}"), serial=f"s{number}") for number in range(12))
    vector = lines(render(replace(BARE, disks=disks), "qemu", FDS, sandbox=False))
    attached = [line for line in vector if "virtio-blk-pci" in line]
    assert attached == [f"-device virtio-blk-pci,drive=disk-s{n},serial=s{n}" for n in range(12)]


def test_a_disk_over_others_names_each_file_and_what_lies_below_it():
    below = (
        DiskFile(Path("/m/a,b/layer-00000000000000a1.raw"), DiskFormat.RAW),
        DiskFile(Path("/m/a,b/layer-00000000000000b2.qcow2"), DiskFormat.QCOW2),
    )
    disk = Disk(Path("/m/a,b/active-00000000000000c3.qcow2"), "data", DiskFormat.QCOW2, backing=below)
    vector = lines(render(replace(BARE, disks=(disk,)), "qemu", FDS, sandbox=False))
    first, second, top = "layer-00000000000000a1", "layer-00000000000000b2", "active-00000000000000c3"
    trim = "read-only=off,discard=unmap"
    assert vector[-7:] == (
        f"-blockdev driver=file,node-name={first}-file,filename=/m/a,,b/{first}.raw,read-only=on",
        f"-blockdev driver=raw,node-name={first},file={first}-file,read-only=on",
        f"-blockdev driver=file,node-name={second}-file,filename=/m/a,,b/{second}.qcow2,read-only=on",
        f"-blockdev driver=qcow2,node-name={second},file={second}-file,backing={first},read-only=on",
        f"-blockdev driver=file,node-name={top}-file,filename=/m/a,,b/{top}.qcow2,{trim}",
        f"-blockdev driver=qcow2,node-name={top},file={top}-file,backing={second},{trim},detect-zeroes=unmap",
        f"-device virtio-blk-pci,drive={top},serial=data",
    )
    names = [part for line in vector for part in line.split(",") if "node-name=" in part]
    assert all(len(name.partition("=")[2]) < 32 for name in names)  # QEMU's limit


@pytest.mark.parametrize(
    ("layout", "below"),
    [
        (DiskFormat.RAW, (DiskFormat.RAW,)),
        (DiskFormat.QCOW2, (DiskFormat.QCOW2,)),
        (DiskFormat.QCOW2, (DiskFormat.RAW, DiskFormat.RAW)),
    ],
)
def test_only_the_lowest_file_of_a_disk_is_raw(layout, below):
    with pytest.raises(AssertionError):
        Disk(Path("/d"), "s", layout, backing=tuple(DiskFile(Path("/b"), one) for one in below))


@pytest.mark.parametrize("serial", ["", "x" * 21, "ü" * 11])
def test_a_serial_that_virtio_blk_cannot_hold_is_a_mistake(serial):
    with pytest.raises(AssertionError):
        Disk(Path("/d"), serial=serial)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("x86_64", Architecture.X86_64),
        ("AMD64", Architecture.X86_64),
        ("x64", Architecture.X86_64),
        ("aarch64", Architecture.AARCH64),
        ("arm64", Architecture.AARCH64),
    ],
)
def test_architectures_are_known_by_their_usual_names(name, meant):
    assert parse_architecture(name) is meant


def test_an_architecture_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        parse_architecture("riscv64")


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_is_plugged_in_is_shared_only_where_others_must_map_it(shared):
    """Else a stream that leaves out what is shared would lack it."""
    grown = replace(
        BARE, max_memory=1 << 30, shared_memory=shared, ram=MemoryFile(Path("/t/ram"), shared=True)
    )
    [more] = [word for word in render(grown, "q", FDS, sandbox=False) if "id=more" in word]
    kind = "memfd,id=more,size=512M,reserve=off,share=on" if shared else "ram,id=more,size=512M,reserve=off"
    assert more == f"memory-backend-{kind}"


def test_a_file_that_two_disks_lie_over_is_opened_once():
    below = DiskFile(Path("/one/layer-1.raw"), DiskFormat.RAW)
    disks = tuple(
        Disk(Path(f"/two/{name}.qcow2"), name, DiskFormat.QCOW2, backing=(below,)) for name in ("a", "b")
    )
    words = render(replace(BARE, disks=disks), "qemu", FDS, sandbox=False)
    assert len([word for word in words if "layer-1" in word and "driver=file" in word]) == 1
    assert len([word for word in words if "backing=layer-1" in word]) == 2
    assert len([word for word in words if word.startswith("virtio-blk-pci")]) == 2


def test_what_a_forward_says_is_no_option_of_its_own():
    forwards = (Forward(8080, 80), Forward(53, 53, "udp", "127.0.0.1,guestfwd=tcp:10.0.2.9:1-cmd:id"))
    network = UserNetwork("02:00:00:00:00:01,romfile=/x", forwards)
    vector = lines(render(replace(BARE, network=network), "qemu", FDS, sandbox=False))
    [netdev] = [line for line in vector if line.startswith("-netdev")]
    assert netdev == (
        "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80"
        ",hostfwd=udp:127.0.0.1,,guestfwd=tcp:10.0.2.9:1-cmd:id:53-:53"
    )
    assert "-device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,,romfile=/x,romfile=" in vector
