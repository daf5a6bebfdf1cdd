"""What a client is told whom nothing serves: the answer that Docker's own engine would give. Pure.

Of what clients say only this much is ever read, and only if there is no engine to read it: where the head of
the first request ends, and whether it is HEAD (RFC 9112, sections 2.2 and 6.3).
"""

from __future__ import annotations

import re

import msgspec

from atoll.errors import AtollError

__all__ = ["MOST", "answer", "is_request"]

#: Bytes of a request's head after which it is answered without its end; Go's servers read 1 MiB.
MOST = 65_536

_END = re.compile(rb"\r?\n\r?\n")
_METHOD = re.compile(rb"(?:\r?\n)*([!-~]+) ")


def is_request(received: bytes | bytearray) -> bool:
    """Whether a client has said all that it says before it waits: an answer may follow."""
    return len(received) >= MOST or _END.search(received.lstrip(b"\r\n")) is not None


def answer(received: bytes | bytearray, error: AtollError) -> bytes:
    """The answer to a request: status 503, and a body that Docker's client prints as the engine's error."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    body = msgspec.json.encode({"message": text}) + b"\n"
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n"
        "\r\n"
    )
    method = _METHOD.match(received)
    return head.encode() + (b"" if method is not None and method[1] == b"HEAD" else body)
