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
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.vm.state import State

__all__ = ["Exposed", "Machine", "Process", "Reader", "Sandbox"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="_Face")

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
        if self._owner != os.getpid():
            hint = "a forked child must open its own"
            raise UsageError("this belongs to the parent process", code="forked", hint=hint)
        return _wait_for(method(self._async, *args, **kwargs))

    return wait


def _made_from(kind: Callable[P, Any]) -> Callable[Concatenate[Any, P], None]:
    """A constructor that takes what ``kind`` takes."""

    def init(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._async = kind(*args, **kwargs)
        self._owner = os.getpid()

    return init


def _opening(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, Any]], face: Callable[[Any], F]
) -> Callable[Concatenate[Any, P], F]:
    """A method that waits for the object that ``method`` opens, and returns its blocking ``face``."""
    wait = _blocking(method)

    @functools.wraps(method)
    def open_face(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> F:
        return face(wait(self, *args, **kwargs))

    return open_face


def _in_turn(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method that waits like others, and is called by one thread at a time."""
    wait = _blocking(method)

    @functools.wraps(method)
    def wait_in_turn(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turn:
            return wait(self, *args, **kwargs)

    return wait_in_turn


def _at_hand(
    at_hand: Callable[[Any], R | None], method: Callable[[Any], Coroutine[Any, Any, R | None]]
) -> Callable[[Any], R | None]:
    """As ``_in_turn``, for a method that need not wait for what is ``at_hand``."""
    wait = _blocking(method)

    @functools.wraps(method)
    def take_in_turn(self: Any, /) -> R | None:
        with self._turn:
            found = at_hand(self._async)
            return found if found is not None else wait(self)

    return take_in_turn


class _Face:
    """Base of the blocking faces of asynchronous objects; a forked child must not use its parent's."""

    def __init__(self, original: Any) -> None:
        self._async = original
        self._owner = os.getpid()


class _Closing(_Face):
    """Base of those that are closed at the end of a block."""

    def close(self) -> None:
        """End it. Closing twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():  # a forked child leaves what is its parent's alone
            self.close()


class Reader(_Face):
    """What a process writes to one descriptor: ``atoll.aio.Reader`` with methods that wait.

    ``for`` gives it in chunks as they come; ``lines`` gives lines.
    """

    _async: aio.Reader

    def __init__(self, original: aio.Reader) -> None:
        super().__init__(original)
        self._turn = threading.Lock()

    read = _in_turn(aio.Reader.read)
    read_all = _in_turn(aio.Reader.read_all)
    readline = _at_hand(aio.Reader.line_at_hand, aio.Reader.readline)

    @property
    def offset(self) -> int:
        """Bytes read so far, counted from the process's start."""
        return self._async.offset

    def lines(self) -> Iterator[str]:
        """Each line as ``readline`` returns it, up to the end of the output."""
        while (line := self.readline()) is not None:
            yield line

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data


class Process(_Closing):
    """A process in a guest that runs by itself: ``atoll.aio.Process`` with methods that wait."""

    _async: aio.Process

    def __init__(self, original: aio.Process) -> None:
        super().__init__(original)
        self._stdout = Reader(original.stdout)
        self._stderr = Reader(original.stderr)

    write = _blocking(aio.Process.write)
    close_stdin = _blocking(aio.Process.close_stdin)
    signal = _blocking(aio.Process.signal)
    terminate = _blocking(aio.Process.terminate)
    kill = _blocking(aio.Process.kill)
    resize = _blocking(aio.Process.resize)
    wait = _blocking(aio.Process.wait)
    detach = _blocking(aio.Process.detach)
    close = _blocking(aio.Process.close)

    @property
    def id(self) -> str:
        """Its name in the guest, which ``attach`` takes."""
        return self._async.id

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._async.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The command; bytes that are no UTF-8 are replaced."""
        return self._async.argv

    @property
    def stdout(self) -> Reader:
        """What it writes to its output, and with a terminal to that."""
        return self._stdout

    @property
    def stderr(self) -> Reader:
        """What it writes to its error output; nothing if it has a terminal."""
        return self._stderr


class Exposed(_Closing):
    """A server of the guest that this host's programs reach: ``atoll.aio.Exposed`` with methods that wait."""

    _async: aio.Exposed

    close = _blocking(aio.Exposed.close)

    @property
    def host(self) -> str:
        """The address of this host that it listens on."""
        return self._async.host

    @property
    def port(self) -> int:
        """The port of this host that it listens on."""
        return self._async.port

    @property
    def url(self) -> str:
        """Where a browser finds it, if it is a web server."""
        return self._async.url


class Sandbox(_Closing):
    """A fresh Linux VM with a root of its own: ``atoll.aio.Sandbox`` with methods that wait."""

    _async: aio.Sandbox
    __init__ = _made_from(aio.Sandbox)

    open = _blocking(aio.Sandbox.open)
    close = _blocking(aio.Sandbox.close)
    run = _blocking(aio.Sandbox.run)
    start = _opening(aio.Sandbox.start, Process)
    start_process = _opening(aio.Sandbox.start_process, Process)
    attach = _opening(aio.Sandbox.attach, Process)
    processes = _blocking(aio.Sandbox.processes)
    expose = _opening(aio.Sandbox.expose, Exposed)
    ping = _blocking(aio.Sandbox.ping)
    info = _blocking(aio.Sandbox.info)

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._async.name

    @property
    def image(self) -> str:
        """What its root is."""
        return self._async.image

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self


class Machine(_Closing):
    """A machine of this user, by its name: ``atoll.aio.Machine`` with methods that wait."""

    _async: aio.Machine
    __init__ = _made_from(aio.Machine)

    @classmethod
    @functools.wraps(aio.Machine.create.__func__)  # type: ignore[attr-defined]
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a machine; it is not started."""
        machine = cls.__new__(cls)
        _Closing.__init__(machine, _wait_for(aio.Machine.create(*args, **kwargs)))
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
    start_process = _opening(aio.Machine.start_process, Process)
    attach = _opening(aio.Machine.attach, Process)
    processes = _blocking(aio.Machine.processes)
    expose = _opening(aio.Machine.expose, Exposed)
    ping = _blocking(aio.Machine.ping)
    info = _blocking(aio.Machine.info)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._async.name

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
