"""The SDK for programs without an event loop, derived from ``atoll.aio``.

One thread of the program runs an event loop; each blocking method hands the coroutine of its namesake to it
and waits. Signatures, types and docstrings are those of the original.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from atoll import aio
from atoll.errors import UsageError
from atoll.guest import files, watching
from atoll.guest.file_messages import FileChange
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.vm.state import State

__all__ = ["Files", "Machine", "Sandbox", "Watch"]

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds that an interrupted call has to clean up.
_CLEANUP = 5.0


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_making = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process; a forked child has none of its parent's threads: the key is the pid."""
    with _making:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="atoll-loop", daemon=True).start()
        return loop


def _wait_for(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run ``coroutine`` on the loop's thread; an interrupt cancels it there and waits for its cleaning up.

    Raises:
        UsageError: this is the loop's own thread, as in an event's listener: it would wait for itself.
    """
    loop = _loop()
    if asyncio._get_running_loop() is loop:  # noqa: SLF001 - the public function raises where there is none
        coroutine.close()
        hint = "hand the work to another thread, or use atoll.aio"
        raise UsageError("a listener cannot wait for its own sandbox", code="listener", hint=hint)
    ended = threading.Event()

    async def watched() -> R:
        try:
            return await coroutine
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), loop)
    try:
        return future.result()
    except BaseException:
        if not future.done():
            future.cancel()
            ended.wait(_CLEANUP)
        raise


def _blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method that waits for what ``method`` of the asynchronous object returns."""

    @functools.wraps(method)
    def wait(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        _check_owner(self._owner)
        return _wait_for(method(self._async, *args, **kwargs))

    return wait


def _check_owner(owner: int) -> None:
    if owner != os.getpid():
        hint = "a forked child must open its own"
        raise UsageError("this belongs to the parent process", code="forked", hint=hint)


def _made_from(kind: Callable[P, Any]) -> Callable[Concatenate[Any, P], None]:
    """A constructor that takes what ``kind`` takes."""

    def init(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._async = kind(*args, **kwargs)
        self._owner = os.getpid()

    return init


class Watch:
    """Changes of files: ``atoll.guest.watching.Watch`` as an iterator, and a context, that waits."""

    def __init__(self, watch: watching.Watch, owner: int) -> None:
        self._async = watch
        self._owner = owner

    open = _blocking(watching.Watch.open)
    next = _blocking(watching.Watch.next)
    close = _blocking(watching.Watch.close)

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

    read = _blocking(files.Files.read)
    read_text = _blocking(files.Files.read_text)
    write = _blocking(files.Files.write)
    list = _blocking(files.Files.list)
    stat = _blocking(files.Files.stat)
    exists = _blocking(files.Files.exists)
    move = _blocking(files.Files.move)
    remove = _blocking(files.Files.remove)
    make_directory = _blocking(files.Files.make_directory)

    @functools.wraps(files.Files.read_chunks)
    def read_chunks(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        """The content of a file in pieces."""
        _check_owner(self._owner)
        chunks = self._async.read_chunks(*args, **kwargs)

        async def following() -> bytes | None:
            return await anext(chunks, None)

        try:
            while (chunk := _wait_for(following())) is not None:
                yield chunk
        finally:
            # Not waited for: it may be the loop's own thread that lets go of what was not read to its end.
            if self._owner == os.getpid():
                asyncio.run_coroutine_threadsafe(chunks.aclose(), _loop())

    @functools.wraps(files.Files.watch)
    def watch(self, *args: Any, **kwargs: Any) -> Watch:
        """Watch a file, or what is in a directory."""
        return Watch(self._async.watch(*args, **kwargs), self._owner)


class Sandbox:
    """A fresh Linux VM with a root of its own: ``atoll.aio.Sandbox`` with methods that wait."""

    _async: aio.Sandbox
    _owner: int
    __init__ = _made_from(aio.Sandbox)

    start = _blocking(aio.Sandbox.start)
    close = _blocking(aio.Sandbox.close)
    run = _blocking(aio.Sandbox.run)
    ping = _blocking(aio.Sandbox.ping)
    info = _blocking(aio.Sandbox.info)
    pause = _blocking(aio.Sandbox.pause)
    resume = _blocking(aio.Sandbox.resume)

    @functools.wraps(aio.Sandbox.fork)
    def fork(self, count: int = 1) -> list[Self]:
        """Copy this sandbox as it runs."""
        return [self._of(copy) for copy in _blocking(aio.Sandbox.fork)(self, count)]

    @classmethod
    def _of(cls, sandbox: aio.Sandbox) -> Self:
        box = cls.__new__(cls)
        vars(box).update(_async=sandbox, _owner=os.getpid())
        return box

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._async.name

    @property
    def image(self) -> str:
        """What its root is."""
        return self._async.image

    @property
    def files(self) -> Files:
        """The files of the guest, for whoever runs commands and from where they start."""
        return Files(self._async.files, self._owner)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():  # a forked child leaves its parent's VM alone
            self.close()


class Pool:
    """Keeps sandboxes ready: ``atoll.aio.Pool`` with methods that wait."""

    _async: aio.Pool
    _owner: int
    __init__ = _made_from(aio.Pool)

    open = _blocking(aio.Pool.open)
    filled = _blocking(aio.Pool.filled)
    close = _blocking(aio.Pool.close)

    @functools.wraps(aio.Pool.claim)
    def claim(self) -> Sandbox:
        """A sandbox that is up; the caller closes it."""
        box: Sandbox = Sandbox._of(_blocking(aio.Pool.claim)(self))  # noqa: SLF001 - it is of this module
        return box

    @property
    def ready(self) -> int:
        """How many sandboxes stand ready."""
        return self._async.ready

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():
            self.close()


class Machine:
    """A machine of this user, by its name: ``atoll.aio.Machine`` with methods that wait."""

    _async: aio.Machine
    _owner: int
    __init__ = _made_from(aio.Machine)  # type: ignore[arg-type]  # it takes a name, which mypy does not see through P

    @classmethod
    @functools.wraps(aio.Machine.create.__func__)  # type: ignore[attr-defined]
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a machine; it is not started."""
        machine = cls.__new__(cls)
        vars(machine).update(_async=_wait_for(aio.Machine.create(*args, **kwargs)), _owner=os.getpid())
        return machine

    start = _blocking(aio.Machine.start)
    stop = _blocking(aio.Machine.stop)
    restart = _blocking(aio.Machine.restart)
    pause = _blocking(aio.Machine.pause)
    resume = _blocking(aio.Machine.resume)
    remove = _blocking(aio.Machine.remove)
    status = _blocking(aio.Machine.status)
    stats = _blocking(aio.Machine.stats)
    memory = _blocking(aio.Machine.memory)
    share = _blocking(aio.Machine.share)
    unshare = _blocking(aio.Machine.unshare)
    resize = _blocking(aio.Machine.resize)
    wait = _blocking(aio.Machine.wait)
    connect = _blocking(aio.Machine.connect)
    close = _blocking(aio.Machine.close)
    copy_in = _blocking(aio.Machine.copy_in)
    copy_out = _blocking(aio.Machine.copy_out)
    run = _blocking(aio.Machine.run)
    ping = _blocking(aio.Machine.ping)
    info = _blocking(aio.Machine.info)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._async.name

    @property
    def files(self) -> Files:
        """The files of the machine, for whoever runs commands and from where they start."""
        return Files(self._async.files, self._owner)

    def find(self) -> Named:
        """What was asked for, and what is. Raises ``StoreError``: ``store.missing``: there is none."""
        return self._async.find()

    @property
    def state(self) -> State:
        """What it does now. Raises as ``find``."""
        return self._async.state

    @property
    def spec(self) -> MachineSpec:
        """What was asked for. Raises as ``find``."""
        return self._async.spec

    @property
    def shell(self) -> str:
        """The shell of its image. Raises as ``find``."""
        return self._async.shell

    def prefer(
        self, *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str | None = None
    ) -> None:
        """Say what commands get that say nothing themselves, in the place of what the machine's spec says."""
        self._async.prefer(env=env, workdir=workdir, user=user)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():
            self.close()
