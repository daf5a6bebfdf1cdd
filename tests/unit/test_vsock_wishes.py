"""What a user may ask of a virtio socket, and what becomes of it on other hosts and in QEMU's arguments."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import aio
from atoll.cli.vsock import relay
from atoll.errors import UsageError
from atoll.hypervisor.model import Accelerator, Architecture, Machine
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.image.bundle import devices, select
from atoll.image.modules import Module, Tree
from atoll.machine.adopting import adopted_spec
from atoll.machine.editing import edited, shown
from atoll.machine.spec import MachineSpec, cid_of, parse_vsock
from atoll.vm.bootplan import OpenPort, Setup, Vsock
from atoll.vm.vsock import DRIVER, taken_slots

HERE = Machine(
    name="box",
    architecture=Architecture.X86_64,
    accelerator=Accelerator.TCG,
    vcpus=1,
    memory=512 << 20,
    kernel=Path("/k/vmlinux"),
    initramfs=Path("/k/initramfs"),
)


@pytest.mark.parametrize(
    ("wanted", "ports", "vsock"),
    [
        (False, [], None),
        (True, [], Vsock()),
        (False, ["5000"], Vsock((OpenPort(5000),))),
        (True, ["5000:/run/a:b", "0:/x"], Vsock((OpenPort(5000, "/run/a:b"), OpenPort(0, "/x")))),
        ("kernel", [], Vsock(kernel=True)),
    ],
)
def test_wishes(wanted, ports, vsock):
    assert parse_vsock(wanted, ports) == vsock


@pytest.mark.parametrize(
    ("wanted", "ports"),
    [("usb", []), ("kernel", ["5000"]), (True, ["1", "1:/x"]), (True, [""]), (True, ["-1"]),
     (True, ["5000:"]), (True, ["4294967295"]), (True, ["a:/x"]), (True, ["1:/" + "x" * 107])],
)  # fmt: skip
def test_other_wishes_are_refused(wanted, ports):
    with pytest.raises(UsageError) as caught:
        parse_vsock(wanted, ports)
    assert caught.value.code == "usage.vsock"


@pytest.mark.parametrize("value", ["yes", "no", "kernel", "5000,6000:/run/x", "'1:/with blank,comma'"])
def test_an_edit_is_shown_as_it_is_written(value, config):
    spec = edited(config, MachineSpec(id="0" * 32, image="debian", created=0.0), {"vsock": value})
    assert shown(spec, "vsock") == value


@given(st.text(max_size=20))
def test_no_text_breaks_the_parser(text):
    try:
        parse_vsock(False, [text])
    except UsageError as error:
        assert error.code == "usage.vsock"  # noqa: PT017 - any text may be one


@pytest.mark.parametrize(
    "wishes",
    [{"vsock_ports": {-1: "/x"}}, {"vsock_ports": {1: ""}}, {"vsock": "/" + "x" * 107},
     {"vsock": True, "snapshot": "one"}, {"vsock": True, "template": "mine"}],
)  # fmt: skip
def test_a_sandbox_refuses_what_it_cannot_have(wishes, config):
    with pytest.raises(UsageError) as caught:
        aio.Sandbox("debian", config=config, **wishes)
    assert caught.value.code == "usage.vsock"


def test_a_machine_from_elsewhere_reaches_no_socket_of_this_host():
    for vsock, there in ((Vsock((OpenPort(1, "/run/docker.sock"),), kernel=True), Vsock()), (None, None)):
        spec = MachineSpec(id="0" * 32, image="debian", created=0.0, vsock=vsock)
        assert adopted_spec(spec).vsock == there


def test_a_record_of_a_machine_without_one_is_still_read():
    spec = MachineSpec(id="0" * 32, image="debian", created=0.0)
    fields = msgspec.json.decode(msgspec.json.encode(spec))
    del fields["vsock"]
    assert msgspec.json.decode(msgspec.json.encode(fields), type=MachineSpec) == spec


def test_the_device_takes_the_last_slot_unless_it_is_the_kernels():
    assert taken_slots(Setup()) == 0
    assert taken_slots(Setup(vsock=Vsock())) == 1
    assert taken_slots(Setup(vsock=Vsock(kernel=True))) == 0


def test_the_kernels_device_is_part_of_the_machine_and_bears_its_own_cid():
    cid = cid_of("0" * 32)
    assert 3 <= cid < 2**32 - 1
    assert cid_of("1" + "0" * 31) != cid
    machine = msgspec.structs.replace(HERE, vsock_cid=cid)
    vector = render(machine, "qemu", Descriptors(1, 2, 3), sandbox=True)
    place = vector.index(f"vhost-vsock-pci,guest-cid={cid}")
    assert vector[place - 1] == "-device"
    assert not any("vsock" in word for word in render(HERE, "qemu", Descriptors(1, 2, 3), sandbox=True))


def test_the_driver_is_loaded_by_those_who_want_it_and_is_in_no_template():
    needed = ("virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay")
    files = {name: Module(name, f"{name}.ko", (), ()) for name in (*needed, "vsock")}
    tree = Tree({**files, DRIVER: Module(DRIVER, f"{DRIVER}.ko", ("vsock",), ())}, ())
    assert devices(tree)[DRIVER] == ("vsock.ko", f"{DRIVER}.ko")
    chosen = select(tree)
    assert not {"vsock", DRIVER} & {one.name for one in (*chosen.channel, *chosen.root, *chosen.held)}


def test_the_command_passes_on_until_the_other_side_has_ended():
    ours, theirs = socket.socketpair()
    source, fill = os.pipe()
    drain, target = os.pipe()
    with ours, theirs:
        os.write(fill, b"question")
        os.close(fill)
        theirs.sendall(b"answer")
        theirs.shutdown(socket.SHUT_WR)
        relay(ours, source, target)
        assert os.read(drain, 100) == b"answer"
        assert theirs.recv(100, socket.MSG_WAITALL) == b"question"
    for fd in (source, drain, target):
        os.close(fd)
