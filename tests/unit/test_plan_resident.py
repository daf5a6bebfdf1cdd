"""From what a machine is to the QEMU that runs it, and how its guest is ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import hosted_spec

from atoll.hypervisor.model import Accelerator, Architecture, Disk, Forward, UserNetwork
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.machine.planning import setup_script
from atoll.vm.cloning import identity_of
from atoll.vm.plan import Bootable, Residence, Shape, plan, plan_resident
from atoll.vm.stopping import plan_steps

MIB = 1 << 20
FILES = Bootable(Path("/k/vmlinux"), Path("/k/initramfs"), Path("/k/modules.erofs"), Path("/m/root.erofs"))
TCG = Shape(Architecture.X86_64, Accelerator.TCG, vcpus=2, memory=512 * MIB, tsc_khz=2_500_000)
KVM = Shape(Architecture.X86_64, Accelerator.KVM, vcpus=2, memory=512 * MIB)
NETWORK = UserNetwork("02:00:00:00:00:01", (Forward(8080, 80), Forward(53, 53, "udp", "0.0.0.0")))
HOME = Residence(
    data=Disk(Path("/m/data.img"), serial="data"),
    init="/sbin/init",
    network=NETWORK,
    slots=2,
    parameters=("systemd.show_status=0",),
)
FDS = Descriptors(channel=10, serial=11, qmp=12, console=13, agent_log=14, listening=True)

#: What the kernel of every machine is told at first.
KERNEL = (
    "console=ttyS0",
    "console=hvc0",
    "quiet",
    "panic=-1",
    "random.trust_cpu=on",
    "nowatchdog",
    "sysctl.vm.compaction_proactiveness=0",
    "sysctl.vm.stat_interval=20",
    "net.ifnames=0",
)


def test_a_machine_boots_with_its_own_disk_init_and_console():
    machine = plan_resident("dev", FILES, TCG, HOME)
    assert machine.cmdline[: len(KERNEL)] == KERNEL
    assert {"cryptomgr.notests", "mitigations=off", "tsc_early_khz=2500000"} <= set(machine.cmdline)
    assert machine.cmdline[-6:] == (
        "systemd.show_status=0",
        "atoll.hostname=dev",
        "atoll.root=root",
        "atoll.modules=modules",
        "atoll.init=/sbin/init",
        "atoll.data=data",
    )
    assert machine.disks == (
        Disk(Path("/m/root.erofs"), serial="root", read_only=True),
        Disk(Path("/k/modules.erofs"), serial="modules", read_only=True),
        Disk(Path("/m/data.img"), serial="data"),
    )
    assert (machine.consoles, machine.balloon, machine.shared_memory) == (True, True, True)
    assert (machine.slots, machine.network) == (2, NETWORK)


def test_a_machine_keeps_the_hardening_that_a_sandbox_does_without():
    sandbox, machine = plan("dev", FILES, TCG).cmdline, plan_resident("dev", FILES, TCG, HOME).cmdline
    assert {"init_on_alloc=0", "lsm="} <= set(sandbox)
    assert not {"init_on_alloc=0", "lsm=", "atoll.lifeline=1"} & set(machine)


def test_under_kvm_nothing_of_a_machine_is_weakened():
    machine = plan_resident("dev", FILES, KVM, Residence(data=Disk(Path("/m/data.img"), serial="data")))
    assert machine.cmdline[: len(KERNEL)] == KERNEL
    assert not {"cryptomgr.notests", "mitigations=off", "norandmaps"} & set(machine.cmdline)
    assert not [item for item in machine.cmdline if item.startswith("atoll.init")]


def grouped(vector):
    """The vector as one option with its value a line."""
    lines = []
    for word in vector:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def test_qemu_listens_on_sockets_that_it_inherits_and_writes_its_pid():
    machine = plan_resident("dev", FILES, TCG, HOME)
    vector = grouped(render(machine, "qemu", FDS, sandbox=True, pid_file=Path("/m/vm.pid")))
    assert "-pidfile /m/vm.pid" in vector
    for name, fd in (("qmp", 12), ("serial", 11), ("console", 13), ("agent-log", 14), ("channel", 10)):
        assert f"-chardev socket,id={name},fd={fd},server=on,wait=off" in vector


def test_the_consoles_come_before_the_channel_since_port_0_can_only_be_a_console():
    vector = grouped(render(plan_resident("dev", FILES, TCG, HOME), "qemu", FDS, sandbox=False))
    ports = [line for line in vector if "serial0.0" in line]
    assert ports == [
        "-device virtconsole,bus=serial0.0,chardev=console",
        "-device virtconsole,bus=serial0.0,chardev=agent-log",
        "-device virtserialport,bus=serial0.0,chardev=channel,name=atoll.agent.0",
    ]
    assert "-device virtio-serial-pci,id=serial0,max_ports=4" in vector


def test_a_network_forwards_ports_and_has_the_machines_address():
    vector = grouped(render(plan_resident("dev", FILES, TCG, HOME), "qemu", FDS, sandbox=False))
    forwards = "hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:0.0.0.0:53-:53"
    assert f"-netdev user,id=net0,{forwards}" in vector
    assert "-device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,romfile=" in vector


def test_other_processes_can_map_the_memory_and_slots_are_numbered():
    vector = grouped(render(plan_resident("dev", FILES, TCG, HOME), "qemu", FDS, sandbox=False))
    assert "-object memory-backend-memfd,id=ram,size=512M,share=on" in vector
    assert any(line.startswith("-machine q35,") and line.endswith(",memory-backend=ram") for line in vector)
    assert [line for line in vector if "pcie-root-port" in line] == [
        "-device pcie-root-port,id=slot0,chassis=1,slot=1",
        "-device pcie-root-port,id=slot1,chassis=2,slot=2",
    ]
    assert any(
        line.startswith("-device virtio-balloon-pci,id=balloon,free-page-reporting=on") for line in vector
    )


def test_a_guest_is_asked_then_pressed_then_told_then_killed():
    steps = plan_steps(force=False, timeout=20.0)
    assert [how for how, _ in steps] == ["agent", "button", "quit", "kill"]
    assert dict(steps)["agent"] == 15.0
    assert dict(steps)["button"] == 5.0


def test_by_force_a_guest_is_not_asked():
    assert [how for how, _ in plan_steps(force=True, timeout=20.0)] == ["quit", "kill"]


@given(st.booleans(), st.floats(0, 86_400))
def test_the_guest_gets_the_time_that_was_said_and_each_step_an_end(force, timeout):
    steps = plan_steps(force=force, timeout=timeout)
    asked = sum(seconds for how, seconds in steps if how in {"agent", "button"})
    assert asked == pytest.approx(0 if force else timeout)
    assert all(seconds >= 0 for _, seconds in steps)
    assert steps[-1][0] == "kill"


def test_the_setup_of_a_guest_holds_no_word_that_its_shell_would_take_apart():
    script = setup_script(hosted_spec(user="me"))
    assert "'me ALL=" in script
    assert "$(command -v bash" in script


def test_directories_that_lie_on_the_disk_itself_are_told_to_the_agent():
    data = Disk(Path("/m/data.img"), serial="data")
    machine = plan_resident("dev", FILES, KVM, Residence(data=data, direct=("/var/lib/a", "/srv")))
    assert "atoll.direct=/var/lib/a:/srv" in machine.cmdline
    assert identity_of(machine).direct == "/var/lib/a:/srv"
    plain = plan_resident("dev", FILES, KVM, Residence(data=data))
    assert not any("direct" in item for item in plain.cmdline)
