"""The files of a guest, for programs without an event loop."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from atoll.blocking.core import blocking, check_owner, loop, wait_for
from atoll.guest import files, watching
from atoll.guest.file_messages import FileChange

__all__ = ["Files", "Watch"]


class Watch:
    """Changes of files: ``atoll.guest.watching.Watch`` as an iterator, and a context, that waits."""

    def __init__(self, watch: watching.Watch, owner: int) -> None:
        self._async = watch
        self._owner = owner

    open = blocking(watching.Watch.open)
    next = blocking(watching.Watch.next)
    close = blocking(watching.Watch.close)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():
            self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FileChange:
        change = self.next()
        if change is None:
            raise StopIteration
        return change


class Files:
    """The files of a guest: ``atoll.guest.files.Files`` with methods that wait."""

    def __init__(self, files: files.Files, owner: int) -> None:
        self._async = files
        self._owner = owner

    read = blocking(files.Files.read)
    read_text = blocking(files.Files.read_text)
    write = blocking(files.Files.write)
    list = blocking(files.Files.list)
    stat = blocking(files.Files.stat)
    exists = blocking(files.Files.exists)
    move = blocking(files.Files.move)
    remove = blocking(files.Files.remove)
    make_directory = blocking(files.Files.make_directory)

    @functools.wraps(files.Files.read_chunks)
    def read_chunks(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        """The content of a file in pieces."""
        check_owner(self._owner)
        chunks = self._async.read_chunks(*args, **kwargs)

        async def following() -> bytes | None:
            return await anext(chunks, None)

        try:
            while (chunk := wait_for(following())) is not None:
                yield chunk
        finally:
            # Not waited for: it may be the loop's own thread that lets go of what was not read to its end.
            if self._owner == os.getpid():
                asyncio.run_coroutine_threadsafe(chunks.aclose(), loop())

    @functools.wraps(files.Files.watch)
    def watch(self, *args: Any, **kwargs: Any) -> Watch:
        """Watch a file, or what is in a directory."""
        return Watch(self._async.watch(*args, **kwargs), self._owner)
