"""Ports of this host that lead to a sandbox: over its network if that is Atoll's own, else by its agent."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.errors import UsageError
from atoll.events import Emit, PortPublished
from atoll.guest.exposure import Exposed, listen
from atoll.hypervisor.model import Forward
from atoll.image.oci.command import ports_of
from atoll.image.oci.runconfig import RunConfig
from atoll.vm.life import Vm
from atoll.vm.network.attachment import PortState
from atoll.vm.network.porting import Wanted
from atoll.vm.portwords import parse_forwards, show_forward

__all__ = ["Published", "parse", "with_exposed"]


def parse(ports: Sequence[str]) -> tuple[Forward, ...]:
    """What is to lead to a sandbox. Raises ``UsageError``: ``usage.port``."""
    return tuple(forward for text in ports for forward in parse_forwards(text))


def with_exposed(forwards: tuple[Forward, ...], run: RunConfig | None) -> tuple[Forward, ...]:
    """And any free port for each that the image exposes, and to which none leads.

    Raises:
        ImageError: ``image.config``: one of them is no port.
    """
    led = {(one.guest_port, one.protocol) for one in forwards}
    wanted = ports_of(run) if run is not None else ()
    more = (Forward(0, port, protocol) for port, protocol in wanted if (port, protocol) not in led)
    return (*forwards, *more)


class Published:
    """The ports of one sandbox, for as long as it is open.

    Args:
        vm: of the sandbox.
        emit: told of each.

    Attributes:
        states: which they are.
    """

    def __init__(self, vm: Vm, emit: Emit) -> None:
        self._vm = vm
        self._emit = emit
        self._exposed: list[Exposed] = []
        self.states: tuple[PortState, ...] = ()

    async def publish(self, forwards: tuple[Forward, ...]) -> None:
        """Have them lead to it. The caller closes this if it fails.

        Raises:
            UsageError: ``usage.port``: it needs a network of Atoll's own; ``usage.expose``: it cannot be had.
            NetworkError: ``network.port``: likewise.
        """
        cable = self._vm.cable
        if cable is not None:
            states = await cable.set_ports(Wanted(forwards), strict=True)
            self.states = tuple(one for one in states if not one.found)
        else:
            for forward in forwards:
                self.states = (*self.states, await self._expose(forward))
        for one in self.states:
            self._emit(_told(self._vm.name, one))

    async def _expose(self, forward: Forward) -> PortState:
        if forward.protocol != "tcp" or forward.path:
            message = f"{show_forward(forward)}: only a network of Atoll's own has such ports"
            raise UsageError(message, code="port", hint="add --network, or network=True")
        exposed = await listen(
            self._vm.agent, forward.guest_port, host=forward.address, port=forward.host_port
        )
        self._exposed.append(exposed)
        return PortState(forward, exposed.port)

    async def close(self) -> None:
        """Give back those that the agent leads to it; the others go with its network card."""
        for exposed in self._exposed:
            await exposed.close()


def _told(vm: str, state: PortState) -> PortPublished:
    forward = state.forward
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    host = f"unix:{forward.path}" if forward.path else f"{address}:{state.port}"
    return PortPublished(vm=vm, port=f"{forward.guest_port}/{forward.protocol}", host=host)
