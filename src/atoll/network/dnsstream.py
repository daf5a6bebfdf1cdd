"""DNS over a guest's TCP connection to the name server (RFC 7766), without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from atoll.network.tcp.flow import Flow

__all__ = ["DnsStream"]

#: Questions of one connection that may be open at once.
_MOST_OPEN: Final = 32

#: Bytes of answers that may wait for the guest to read them.
_MOST_WAITING: Final = 1 << 18


class DnsStream:
    """The host's side of a connection to the name server: no socket, but who answers.

    Args:
        ask: answers a question by calling what it is given, at once or later.
        clock: seconds, monotonic.
        soon: calls what it is given later, on this thread.
    """

    def __init__(
        self,
        ask: Callable[[bytes, Callable[[bytes], None]], None],
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._soon = soon
        self._flow: Flow | None = None
        self._asked = bytearray()
        self._answers = bytearray()
        self._open = 0
        self._ended = self._is_pushing = False

    def dial(self, flow: Flow) -> None:
        """See ``Dialling``."""
        self._flow = flow
        self._soon(self._connected)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """See ``Sink``: nothing is taken while many answers are owed."""
        if self._open >= _MOST_OPEN or len(self._answers) > _MOST_WAITING:
            return 0
        self._asked += data
        self._ask_all()
        return len(data)

    def _ask_all(self) -> None:
        while len(self._asked) >= 2 and self._open < _MOST_OPEN:
            size = int.from_bytes(self._asked[:2])
            if len(self._asked) < 2 + size:
                break
            question = bytes(self._asked[2 : 2 + size])
            del self._asked[: 2 + size]
            self._open += 1
            self._ask(question, self._answered)

    def want_drain(self) -> None:
        """See ``Sink``: it is drained when an answer has gone."""

    def end(self) -> None:
        """See ``Host``."""
        self._ended = True
        self._push_soon()

    def resume(self) -> None:
        """See ``Host``."""
        self._push_soon()

    def closed(self, *, reset: bool) -> None:  # noqa: ARG002 - there is nobody to be told
        """See ``Host``."""
        self._flow = None

    def _connected(self) -> None:
        if self._flow is not None:
            self._flow.connected(self._clock())

    def _answered(self, answer: bytes) -> None:
        self._open -= 1
        self._answers += len(answer).to_bytes(2) + answer
        self._push_soon()

    def _push_soon(self) -> None:
        if not self._is_pushing:
            self._is_pushing = True
            self._soon(self._push)

    def _push(self) -> None:
        self._is_pushing = False
        flow = self._flow
        if flow is None:
            return
        while self._answers and (room := flow.room()) > 0:
            piece = bytes(self._answers[:room])
            del self._answers[: len(piece)]
            flow.send(piece, self._clock())
        self._ask_all()
        flow.drain()
        if self._ended and not self._open and not self._answers:
            self._ended = False
            flow.end(self._clock())
