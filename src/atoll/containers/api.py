"""Questions to dockerd, each over a stream of its own: HTTP/1.0, whose answers end with the stream."""

from __future__ import annotations

from atoll.errors import EngineError
from atoll.guest.channel import Stream

__all__ = ["body_of", "call", "get", "request"]

#: Bytes of an answer: dockerd is in the guest, and not trusted.
_MOST = 16 << 20


def request(method: str, path: str, body: bytes = b"", *, kind: str = "application/json") -> bytes:
    """What ``call`` sends; arguments as there."""
    head = f"{method} {path} HTTP/1.0\r\nHost: docker\r\n"
    if body:
        head += f"Content-Type: {kind}\r\n"
    if body or method == "POST":
        head += f"Content-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


async def get(stream: Stream, path: str) -> bytes:
    """``call`` with ``GET``."""
    return await call(stream, "GET", path)


async def call(
    stream: Stream, method: str, path: str, body: bytes = b"", *, kind: str = "application/json"
) -> bytes:
    """The body of dockerd's answer; the stream is of no use afterwards.

    Args:
        stream: to dockerd's socket, its reply awaited.
        method: such as ``POST``.
        path: with its query, percent-encoded.
        body: of the request.
        kind: of the body, a media type.

    Raises:
        EngineError: ``engine.answer``: it is no answer, or one of failure.
        ChannelError, GuestError: the stream ended with an error.
    """
    try:
        await stream.write(request(method, path, body, kind=kind))
        answer = bytearray()
        while data := await stream.read():
            answer += data
            if len(answer) > _MOST:
                raise EngineError(f"the answer to {method} {path} is too long", code="answer")
    finally:
        stream.cancel()
    return body_of(bytes(answer), f"{method} {path}")


def body_of(answer: bytes, question: str) -> bytes:
    """What a whole HTTP/1.x answer says. Raises ``EngineError`` as ``call``."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].split(b" ", 2)
    if not blank or len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        raise EngineError(f"dockerd gave no answer to {question}", code="answer")
    if len(status[1]) != 3 or not status[1].startswith(b"2"):
        said = body[:500].decode(errors="replace").strip()
        number = status[1].decode(errors="replace")
        raise EngineError(f"dockerd answered {question} with {number}", code="answer", detail=said)
    return body
