"""What can be done at the network card of a machine or a sandbox, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atoll.guest.opening import opening
from atoll.network.pcapng import LARGEST
from atoll.paths import NetworkPaths

if TYPE_CHECKING:
    from atoll.vm.network.saving import Capture
    from atoll.vm.network.shape import Lanes

__all__ = ["Linked"]


class Linked:
    """Base of what has a card that may be plugged into a network of Atoll's.

    Attributes:
        name: of the VM.
    """

    name: str

    async def _link(self) -> tuple[NetworkPaths, str]:
        """The network that the card is plugged into, and as whose. Raises ``AtollError``: there is none."""
        raise NotImplementedError

    @opening
    async def capture(self, path: str | Path, *, snap: int = LARGEST) -> Capture:
        """Write what passes at its network card to a pcapng file: to be awaited, or entered.

        It ends with ``close``, at the end of the block, and when the card is pulled.

        Args:
            path: of the file, which is for its owner's eyes; what is there already is written over.
            snap: bytes of each frame that are kept; all of them by default.

        Raises:
            UsageError: ``usage.capture``: so many bytes cannot be kept.
            NetworkError: ``network.unplugged``: it has no card on a network of Atoll's, or does not run.
            StoreError: the file cannot be written.
        """
        from atoll.vm.network.capture import Frames  # noqa: PLC0415 - rarely wanted
        from atoll.vm.network.saving import begin_capture  # noqa: PLC0415

        place, owner = await self._link()
        return await begin_capture(Frames(place, [(owner, self.name)], snap=snap), path)

    async def shape(
        self,
        *,
        latency: str | float | None = None,
        jitter: str | float | None = None,
        loss: str | float | None = None,
        rate: str | float | None = None,
        direction: str = "both",
    ) -> Lanes:
        """Have the link to it be worse than it is, from now on; with nothing but a direction, as it is.

        What is not said is as it is. It lasts until its card is pulled: until it stops or is closed, or its
        network's process is killed.

        Args:
            latency: seconds, or such as ``"50ms"``, that each frame takes.
            jitter: seconds by which that differs at most.
            loss: part of the frames that is lost, such as ``0.01`` or ``"1%"``.
            rate: bits in a second, or such as ``"10Mbit"``.
            direction: ``in`` is to it, ``out`` from it; ``both`` by default.

        Raises:
            UsageError: ``usage.shape``: one of them cannot be.
            NetworkError: ``network.unplugged``: it has no card on a network of Atoll's, or does not run.
        """
        from atoll.network.shapewords import parse_shape  # noqa: PLC0415 - rarely wanted
        from atoll.vm.network.shape import ask_shape, shape_order  # noqa: PLC0415

        shape = parse_shape(latency=latency, jitter=jitter, loss=loss, rate=rate)
        place, owner = await self._link()
        return await ask_shape(place, self.name, shape_order(owner, shape, direction))
