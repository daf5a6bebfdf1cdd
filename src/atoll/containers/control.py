"""What the listener of the Docker socket is asked itself, and who answers.

The frames are those of a supervisor's control socket (docs/reference/control-protocol.md, sections 1 and 2).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec

from atoll.containers.listener import Status
from atoll.guest.channel import Channel
from atoll.guest.messages import Empty, Request
from atoll.vm.control import ControlServer
from atoll.vm.streams import LocalStream

__all__ = ["Control", "StatusRead", "Stop", "control_server"]


class StatusRead(Request, frozen=True, tag="docker.status"):
    """Ask what the listener does."""


class Stop(Request, frozen=True, tag="docker.stop"):
    """Have the listener end; clients get ``grace`` seconds, None for as many as it gives by itself.

    With ``engine`` whoever asks ends the engine meanwhile: no client has it started any more.
    """

    grace: float | None = None
    engine: bool = False


def control_server(status: Callable[[], Status], stop: Callable[[float | None, bool], None]) -> ControlServer:
    """What answers at a listener's control socket, on the running event loop.

    Args:
        status: what the listener does.
        stop: has it end soon; arguments as of ``Stop``.
    """

    async def answer_status(_: bytes, stream: LocalStream) -> None:
        stream.reply(status())

    async def answer_stop(payload: bytes, stream: LocalStream) -> None:
        request = msgspec.msgpack.decode(payload, type=Stop)
        stop(request.grace, request.engine)
        stream.reply(Empty())

    return ControlServer({"docker.status": answer_status, "docker.stop": answer_stop})


class Control:
    """A connection to a listener. Belongs to one event loop.

    All methods raise what the listener answers, and ``ChannelError`` if it goes away.

    Args:
        sock: connected; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)

    async def status(self) -> Status:
        """What the listener does."""
        return await self._channel.call(StatusRead(), Status)

    async def stop(self, grace: float | None = None, *, engine: bool = False) -> None:
        """Have it end soon. Arguments as of ``Stop``."""
        await self._channel.call(Stop(grace=grace, engine=engine), Empty)

    def close(self) -> None:
        """Close the connection. Closing twice is fine."""
        self._channel.close()
