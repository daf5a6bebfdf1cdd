"""Questions to dockerd, each over a stream of its own: HTTP/1.0, whose answers end with the stream."""

from __future__ import annotations

from atoll.errors import EngineError
from atoll.guest.channel import Stream

__all__ = ["body_of", "get"]

#: Bytes of an answer: dockerd is in the guest, and not trusted.
_MOST = 16 << 20


async def get(stream: Stream, path: str) -> bytes:
    """The body of the answer to ``GET path``; the stream is of no use afterwards.

    Args:
        stream: to dockerd's socket, its reply awaited.
        path: with its query, percent-encoded.

    Raises:
        EngineError: ``engine.answer``: it is no answer, or one of failure.
        ChannelError, GuestError: the stream ended with an error.
    """
    try:
        await stream.write(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        answer = bytearray()
        while data := await stream.read():
            answer += data
            if len(answer) > _MOST:
                raise EngineError(f"the answer to GET {path} is too long", code="answer")
    finally:
        stream.cancel()
    return body_of(bytes(answer), path)


def body_of(answer: bytes, path: str) -> bytes:
    """What a whole HTTP/1.x answer says. Raises ``EngineError`` as ``get``."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].split(b" ", 2)
    if not blank or len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        raise EngineError(f"dockerd gave no answer to GET {path}", code="answer")
    if status[1] != b"200":
        said = body[:500].decode(errors="replace").strip()
        number = status[1].decode(errors="replace")
        raise EngineError(f"dockerd answered GET {path} with {number}", code="answer", detail=said)
    return body
