"""Paths and contents of files in a guest, as programs may give them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable

from atoll.errors import AtollError, UsageError

__all__ = ["Content", "GuestPath", "SourceError", "chunks_of", "raw_path", "shown_path"]

GuestPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Content = bytes | bytearray | memoryview | str | Iterable[bytes] | AsyncIterable[bytes]


_END = memoryview(b"")


class SourceError(Exception):
    """What a content comes from failed with ``cause``, an error that is not about where it goes."""

    def __init__(self, cause: AtollError) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def chunks_of(data: Content) -> AsyncGenerator[memoryview, None]:
    """The pieces of ``data``; of an ordinary iterable they are taken in a thread. Raises ``SourceError``."""
    try:
        if isinstance(data, str):
            yield memoryview(data.encode())
        elif isinstance(data, bytes | bytearray | memoryview):
            yield memoryview(data).cast("B")
        elif isinstance(data, AsyncIterable):
            async for chunk in data:
                yield memoryview(chunk).cast("B")
        else:
            pieces = iter(data)
            while (piece := await asyncio.to_thread(next, pieces, _END)) is not _END:
                yield memoryview(piece).cast("B")
    except AtollError as error:
        raise SourceError(error) from error


def raw_path(path: GuestPath) -> bytes:
    """What the guest gets.

    Raises:
        UsageError: it is neither text nor a path, is empty, or holds a NUL.
    """
    try:
        raw = os.fsencode(path)
    except TypeError:
        raise UsageError(f"{path!r} is no path", code="path", hint="pass strings, bytes or paths") from None
    if not raw or b"\0" in raw:
        raise UsageError(f"{path!r} is no path", code="path", hint="it must not be empty, nor hold a NUL")
    return raw


def shown_path(path: GuestPath) -> str:
    """The path as text. Raises as ``raw_path``."""
    return os.fsdecode(raw_path(path))
