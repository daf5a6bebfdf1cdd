"""What ports a machine can have. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from atoll.errors import UsageError
from atoll.hypervisor.model import Forward, UserNetwork
from atoll.machine.spec import MachineSpec
from atoll.vm.bootplan import BootPlan
from atoll.vm.network.attachment import Reverse
from atoll.vm.portwords import show_forward, show_reverse

__all__ = [
    "MOST",
    "check",
    "plain",
    "ported",
    "with_ports",
    "without_ports",
]

#: Ports of the host that a machine may have.
MOST = 1024


def with_ports(spec: MachineSpec, forwards: Iterable[Forward], reverse: Iterable[Reverse]) -> MachineSpec:
    """``spec`` with more ports. Raises ``UsageError``: as ``check``."""
    more = replace(spec, forwards=(*spec.forwards, *forwards), reverse=(*spec.reverse, *reverse))
    check(more)
    return more


def without_ports(spec: MachineSpec, forwards: Iterable[Forward], reverse: Iterable[Reverse]) -> MachineSpec:
    """``spec`` without some of its ports.

    Args:
        spec: of the machine.
        forwards: those that go; one whose port of the guest is 0 is any with that port of the host.
        reverse: likewise, by the port of the gateway alone.

    Raises:
        UsageError: ``usage.port``: it has no such port.
    """
    gone, shut = tuple(forwards), {one.port for one in reverse}
    for one in gone:
        if not any(_is(known, one) for known in spec.forwards):
            raise _none_such(show_forward(one).removesuffix(":0"), map(show_forward, spec.forwards))
    for port in shut - {one.port for one in spec.reverse}:
        raise _none_such(str(port), map(show_reverse, spec.reverse))
    return replace(
        spec,
        forwards=tuple(known for known in spec.forwards if not any(_is(known, one) for one in gone)),
        reverse=tuple(known for known in spec.reverse if known.port not in shut),
    )


def _is(known: Forward, wanted: Forward) -> bool:
    return _place(known) == _place(wanted) and wanted.guest_port in {0, known.guest_port}


def _place(forward: Forward) -> tuple[object, ...]:
    return (forward.address, forward.host_port, forward.protocol, forward.path)


def _none_such(what: str, known: Iterable[str]) -> UsageError:
    listed = ", ".join(known) or "it has none"
    return UsageError(f"{what} is none of its ports", code="port", hint=f"its ports: {listed}")


def check(spec: MachineSpec) -> None:
    """See that a machine can have the ports that its record names.

    Raises:
        UsageError: ``usage.port``: they are too many, two are the same, or its network does not have such.
    """
    if len(spec.forwards) + len(spec.reverse) > MOST:
        hint = "name fewer, or reach the machine another way: machines have addresses of their own"
        raise UsageError(f"a machine has at most {MOST} ports", code="port", hint=hint)
    places: set[tuple[object, ...]] = set()
    for forward in spec.forwards:
        guest = forward.guest_port if not forward.host_port and not forward.path else 0
        place = (*_place(forward), guest)
        if place in places:
            hint = "a port of the host leads to one port; take the other away first"
            raise UsageError(f"{show_forward(forward)}: that is forwarded already", code="port", hint=hint)
        places.add(place)
    if len({one.port for one in spec.reverse}) != len(spec.reverse):
        raise UsageError("a port of the gateway is opened twice", code="port", hint="name each port once")
    if (spec.forwards or spec.reverse) and not spec.network:
        raise UsageError("ports need a network", code="port", hint="leave out -p, or give it a network")
    if spec.slirp and (spec.reverse or plain(spec.forwards) != spec.forwards):
        message = "QEMU's user network has ports of IPv4 addresses alone, each with its number"
        raise UsageError(message, code="port", hint="use Atoll's own network: --network=own")


def plain(forwards: tuple[Forward, ...]) -> tuple[Forward, ...]:
    """Those that the hypervisor's own address translation can do, too."""
    return tuple(one for one in forwards if one.host_port and not one.path and ":" not in one.address)


def ported(plan: BootPlan, spec: MachineSpec) -> BootPlan:
    """``plan`` with the ports that the record of the machine names now, which are the same while it runs.

    They are no part of the VM: one that goes on from where it was, whenever that was, has those of now.
    """
    attachment, network = plan.attachment, plan.machine.network
    if attachment is not None:
        attachment = replace(attachment, forwards=spec.forwards, reverse=spec.reverse)
    machine = plan.machine
    if network is not None:
        machine = replace(machine, network=UserNetwork(network.mac, plain(spec.forwards)))
    return replace(plan, machine=machine, attachment=attachment, auto_ports=spec.auto_ports)
