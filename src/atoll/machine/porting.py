"""The ports of a machine: at once where it runs, and recorded in any case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from atoll.hypervisor.model import Forward
from atoll.machine import registry
from atoll.machine.ports import with_ports, without_ports
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.machine.supervised import Supervised
from atoll.vm.messages import Ports, PortsChange, PortsRead
from atoll.vm.network.attachment import PortState
from atoll.vm.ports import ports_changed
from atoll.vm.portwords import parse_forwards, parse_reverse
from atoll.vm.state import Phase

__all__ = ["Port", "PortKind", "PortPhase", "Ported"]

_LOOPBACK = "127.0.0.1"

#: Makes a record of another, and of the ports that there are.
Change: TypeAlias = Callable[[MachineSpec, Ports], MachineSpec]


class PortKind(StrEnum):
    """Where a port leads, and who wanted it: into the machine, out of it, or in, since it is listened on."""

    FORWARD = "forward"
    REVERSE = "reverse"
    AUTOMATIC = "automatic"


class PortPhase(StrEnum):
    """Whether a port can be used: else the machine has no VM, or the host does not give it."""

    OPEN = "open"
    CLOSED = "closed"
    REFUSED = "refused"


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """A port of a machine.

    Attributes:
        machine: its name.
        kind: of the port.
        address: of the host; empty for a unix socket.
        port: of the host; 0 for a unix socket, or if it is to be chosen.
        path: of a unix socket of the host; empty for none.
        guest_port: of the machine; of one that leads out of it that of ``host.atoll.internal``.
        protocol: ``tcp`` or ``udp``; of one that leads out of it ``any`` for both.
        state: whether it can be used.
        reason: why it was refused; empty if it was not.
    """

    machine: str
    kind: PortKind = PortKind.FORWARD
    address: str = ""
    port: int = 0
    path: str = ""
    guest_port: int
    protocol: str = "tcp"
    state: PortPhase
    reason: str = ""


class Ported(Supervised):
    """A machine whose ports can be changed."""

    async def ports(self) -> tuple[Port, ...]:
        """Its ports, those that lead to it first. Raises ``StoreError``: there is no such machine."""
        machine = self.find()
        return _told(machine, await self._ports(machine))

    async def add_ports(self, *ports: str, reverse: Sequence[str] = ()) -> tuple[Port, ...]:
        """Have ports of the host lead to it, now if it runs and at each start from now on; all, or none.

        Args:
            ports: ``[ADDRESS:]HOST[:GUEST][/udp]`` or ``unix:PATH:GUEST`` each. Ports may be ranges of one
                length, as ``8000-8010:9000-9010``; with 0 for ``HOST`` any that is free is chosen.
            reverse: ports of ``host.atoll.internal`` that lead it to the host, ``PORT[:HOST]`` or
                ``PORT:unix:PATH`` each: to a port of 127.0.0.1, or to a unix socket.

        Returns:
            Those that were added.

        Raises:
            UsageError: ``usage.port``: that is no port, or it has it already, or too many.
            NetworkError: ``network.port``: the host does not give one; the message says who has it.
            StateError: ``state.network``: it runs with QEMU's user network.
        """
        forwards = tuple(one for text in ports for one in parse_forwards(text))
        opened = tuple(parse_reverse(text) for text in reverse)
        machine, found = await self._change_ports(lambda spec, _: with_ports(spec, forwards, opened))
        return _told(machine, Ports(tuple(one for one in found.ports if one.forward in forwards), opened))

    async def remove_ports(
        self, *ports: str, reverse: Sequence[str] = (), close: bool = False
    ) -> tuple[Port, ...]:
        """Have them lead to it no more, now and at each start.

        Args:
            ports: as ``add_ports``; where no port of the machine is named it is any with that port of the
                host, which may be one that was chosen.
            reverse: as ``add_ports``; ``PORT`` is enough.
            close: end the connections that came by them; else these go on.

        Returns:
            Those that are left.

        Raises:
            UsageError: ``usage.port``: it has no such port.
            StateError: ``state.network``: it runs with QEMU's user network.
        """
        forwards = tuple(one for text in ports for one in parse_forwards(text, partly=True))
        shut = tuple(parse_reverse(text) for text in reverse)

        def less(spec: MachineSpec, found: Ports) -> MachineSpec:
            return without_ports(spec, [_as_recorded(one, found) for one in forwards], shut)

        return _told(*await self._change_ports(less, close=close))

    async def _ports(self, machine: Named) -> Ports:
        if not _is_up(machine):
            return Ports(tuple(map(PortState, machine.spec.forwards)), machine.spec.reverse)
        control = await self._connect(machine.place)
        return await control.call(PortsRead(), Ports)

    async def _change_ports(self, change: Change, *, close: bool = False) -> tuple[Named, Ports]:
        """Bind them, record them, and say so; the machine, and what it has then."""
        async with self._changing() as machine:
            spec = change(machine.spec, await self._ports(machine))
            changed = replace(machine, spec=spec)
            if not machine.state.active:
                registry.save(machine, spec)
                return changed, await self._ports(changed)
            request = PortsChange(spec.forwards, spec.reverse, close=close)
            async with ports_changed(await self._connect(machine.place), request) as ports:
                registry.save(machine, spec)
            return changed, ports


def _is_up(machine: Named) -> bool:
    """Whether its card is plugged in, or about to be again."""
    return machine.state.active and machine.state.phase is not Phase.STARTING


def _as_recorded(wanted: Forward, found: Ports) -> Forward:
    """What somebody means who names a port that was chosen."""
    for one in found.ports:
        if (
            not one.found
            and not one.forward.host_port
            and one.port == wanted.host_port != 0
            and replace(one.forward, host_port=one.port, guest_port=wanted.guest_port) == wanted
            and wanted.guest_port in {0, one.forward.guest_port}
        ):
            return one.forward
    return wanted


def _told(machine: Named, found: Ports) -> tuple[Port, ...]:
    """As users are told."""
    phase = PortPhase.OPEN if _is_up(machine) else PortPhase.CLOSED
    return (
        *(_told_of(machine.name, one, phase) for one in found.ports),
        *(
            Port(
                machine=machine.name,
                kind=PortKind.REVERSE,
                address="" if one.path else _LOOPBACK,
                port=one.host_port,
                path=one.path,
                guest_port=one.port,
                protocol="tcp" if one.path else "any",
                state=phase,
            )
            for one in found.reverse
        ),
    )


def _told_of(name: str, one: PortState, phase: PortPhase) -> Port:
    forward = one.forward
    return Port(
        machine=name,
        kind=PortKind.AUTOMATIC if one.found else PortKind.FORWARD,
        address="" if forward.path else forward.address,
        port=one.port or forward.host_port,
        path=forward.path,
        guest_port=forward.guest_port,
        protocol=forward.protocol,
        state=PortPhase.REFUSED if one.refused else phase,
        reason=one.refused,
    )
