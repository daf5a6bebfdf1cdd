"""Clients of the Docker socket, and the engine that is there when they ask for it.

What is done and when is decided by ``atoll.containers.demand``; here it is done. The way of a byte from a
client: nobody reads it before the engine has taken the client's connection, from then on ``Splice`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

import msgspec

from atoll.containers import demand as d
from atoll.containers.backend import Backend
from atoll.containers.demand import Demand, Stage
from atoll.containers.mounts import Unshared
from atoll.containers.ports import Port
from atoll.containers.refusal import MOST, answer, is_request
from atoll.errors import AtollError, ChannelError
from atoll.guest.channel import Stream
from atoll.guest.messages import Empty
from atoll.guest.splicing import Acceptor, Hangups, Splice, abort
from atoll.vm.state import Failure, StateError

__all__ = ["Listener", "Status", "Timing"]

#: Windows of connections, bytes. The agent keeps 64 MiB for all its servers that do not read: so much is left
#: for 512 connections, if a few have more. With 1 MiB there are a third of the wakeups for the same bytes.
_WIDE, _NARROW = 1 << 20, 112 << 10
#: How many have the wide one.
_MOST_WIDE = 8

#: Seconds that a backend may take longer than it was told.
_GRACE = 5.0
#: Seconds in which a client that is refused may send its request, and take the answer.
_REFUSAL = 30.0
#: Seconds for which more of a refused client's request is taken, so that the answer reaches it.
_DISCARD = 2.0


class Timing(msgspec.Struct, frozen=True):
    """How long things may take, seconds.

    Attributes:
        idle: without client and work after which the engine is suspended; 0 for never.
        start: until the engine answers.
        suspend: until it rests.
        dial: until it takes a connection.
    """

    idle: float = 300.0
    start: float = 120.0
    suspend: float = 120.0
    dial: float = 30.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a listener does.

    Attributes:
        pid: of its process.
        socket: where it listens.
        inherited: the socket is a service manager's.
        stage: what the engine does, as far as it knows.
        since: when that began, seconds since the epoch.
        connections: clients that are connected to the engine.
        waiting: clients that wait for it.
        accepted: clients since the listener's start.
        idle: seconds after which the engine is suspended; 0 for never.
        closing: it is about to end.
        failure: what went wrong last; None if nothing has since the engine answered last.
        failed: when that was, seconds since the epoch.
        ports: of this host that containers publish.
        names: of containers and services, and their addresses in the guest.
        unshared: what containers have from the machine where this host may have been meant.
        trouble: what keeps ports and names from being followed; empty if nothing does.
    """

    pid: int
    socket: str
    inherited: bool
    stage: Stage
    since: float
    connections: int
    waiting: int
    accepted: int
    idle: float
    closing: bool
    failure: Failure | None = None
    failed: float = 0.0
    ports: tuple[Port, ...] = ()
    names: dict[str, tuple[str, ...]] = {}
    unshared: tuple[Unshared, ...] = ()
    trouble: str = ""


class Listener:
    """Serves the clients of one listening socket on the running event loop.

    Args:
        sock: a listening stream socket; owned from here on.
        backend: the engine; closed by ``close``.
        timing: how long things may take.
        log: told in words of all that happens to the engine.
        on_ready: told when the engine has been brought up.
    """

    def __init__(
        self,
        sock: socket.socket,
        backend: Backend,
        timing: Timing,
        *,
        log: Callable[[str], None] = lambda _: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._backend = backend
        self._timing = timing
        self._log = log
        self._on_ready = on_ready
        self._hangups = Hangups()
        self._clients: dict[int, socket.socket] = {}
        self._splices: dict[int, Splice] = {}
        self._wide: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._demand = d.begin(timing.idle, self._loop.time())
        self._since = time.time()
        self._failure: Failure | None = None
        self._failed = 0.0
        self._accepted = 0
        self._arm()
        self._acceptor = Acceptor(sock, self._accept)

    @property
    def demand(self) -> Demand:
        """What is known of the engine, and who wants it."""
        return self._demand

    def status(self, *, pid: int, path: str, inherited: bool) -> Status:
        """What is now, of the process ``pid`` that listens at ``path``."""
        return Status(
            pid=pid,
            socket=path,
            inherited=inherited,
            stage=self._demand.stage,
            since=self._since,
            connections=len(self._demand.served),
            waiting=len(self._demand.waiting),
            accepted=self._accepted,
            idle=self._timing.idle,
            closing=self._demand.closing,
            failure=self._failure,
            failed=self._failed,
        )

    async def close(self, grace: float = 0.0, *, last: bool = False, engine: bool = False) -> None:
        """Accept no more, let clients end within ``grace`` seconds, and let go of the engine as it is.

        Args:
            grace: for those that are served or wait to be.
            last: nobody listens here after this: clients that have connected already are among them.
            engine: somebody ends the engine meanwhile: nobody has it started.
        """
        self._take(d.Closing(engine))
        self._acceptor.close(last=last)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._busy:
                    self._changed.clear()
                    await self._changed.wait()
        error = StateError("the Docker socket's listener was stopped", code="stopped")
        for splice in tuple(self._splices.values()):
            splice.close()
        tasks = [self._start(self._refuse(client, error)) for client in sorted(self._demand.waiting)]
        if tasks:
            await asyncio.wait(tasks, timeout=min(grace, 1.0))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._clients.values():
            sock.close()
        if self._timer is not None:
            self._timer.cancel()
        self._hangups.close()
        await self._backend.close()

    @property
    def _busy(self) -> bool:
        """Whether there is a client, or half of the engine is on the disk."""
        return bool(self._clients) or self._demand.stage is Stage.SUSPENDING

    # Clients.

    def _accept(self, sock: socket.socket) -> None:
        self._accepted += 1
        client = self._accepted
        self._clients[client] = sock
        self._hangups.watch(sock, lambda _: self._leave(client))
        self._take(d.Came(client))

    def _leave(self, client: int) -> None:
        """A client is gone, before or after it was served."""
        sock = self._clients.pop(client, None)
        if sock is not None:
            self._hangups.forget(sock)
            sock.close()
        self._take(d.Left(client))

    def _window(self, client: int) -> int:
        if len(self._wide) >= _MOST_WIDE:
            return _NARROW
        self._wide.add(client)
        return _WIDE

    async def _dial(self, client: int) -> None:
        stream: Stream | None = None
        sent = 0
        try:
            async with asyncio.timeout(self._timing.dial):
                stream = await self._backend.dial(self._window(client))
                sent = _send_ahead(self._clients.get(client), stream)
                await stream.reply(Empty)
        except BaseException as error:
            if stream is not None:
                stream.cancel()
            if not isinstance(error, AtollError | TimeoutError):
                raise
            if sent and isinstance(error, ChannelError | TimeoutError):
                self._leave(client)  # the engine may have got the request: it must not get it twice
            else:
                self._take(d.DialFailed(client, _told(error, "the engine takes no connection")))
            return
        sock = self._clients.get(client)
        if sock is None or not _skip(sock, sent):  # it left meanwhile
            stream.cancel()
            self._leave(client)
            return
        self._hangups.forget(sock)
        self._splices[client] = Splice(sock, stream, self._hangups, lambda end: self._over(client, end))

    def _over(self, client: int, end: AtollError | OSError | None) -> None:
        del self._clients[client]
        del self._splices[client]
        if isinstance(end, ChannelError) and end.code != "channel.closed":
            self._log(f"connection {client}: {end.message}")
        self._take(d.Left(client))

    async def _refuse(self, client: int, error: AtollError) -> None:
        """Answer a client's request, when it has come, and see it off."""
        sock = self._clients.pop(client, None)
        if sock is None:
            return
        self._hangups.forget(sock)
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_REFUSAL):
                    received = await _request(sock)
                    await self._loop.sock_sendall(sock, answer(received, error))
                    sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(
                    _DISCARD
                ):  # what is unread when it is closed takes the answer away
                    while await self._loop.sock_recv(sock, MOST):
                        pass
        finally:
            abort(sock)
            self._changed.set()

    # The engine.

    def _take(self, event: d.Event) -> None:
        before = self._demand
        self._demand, actions = d.step(before, event, self._loop.time())
        self._wide &= self._demand.served
        if self._demand.stage is not before.stage:
            self._since = time.time()
        for action in actions:
            self._do(action)
        self._arm()
        self._changed.set()

    def _do(self, action: d.Action) -> None:
        match action:
            case d.Start():
                self._start(self._start_engine())
            case d.Dial(client):
                self._start(self._dial(client))
            case d.Refuse(client, error):
                self._start(self._refuse(client, error))
            case d.Look():
                self._start(self._look())
            case d.Suspend():
                self._start(self._suspend_engine())

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "a task of the listener failed", "exception": error}
            )

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._demand.look_at is not None:
            self._timer = self._loop.call_at(self._demand.look_at, self._take, d.Due())

    async def _start_engine(self) -> None:
        began = self._loop.time()
        self._log("the engine is being started")
        error = await self._attempt(
            self._backend.ensure_ready(self._timing.start), self._timing.start, "the engine did not start"
        )
        if error is not None:
            self._take(d.StartFailed(error))
            return
        self._log(f"the engine is ready after {self._loop.time() - began:.2f} s")
        self._failure = None
        self._on_ready()
        self._take(d.Started())

    async def _suspend_engine(self) -> None:
        began = self._loop.time()
        error = await self._attempt(
            self._backend.suspend(), self._timing.suspend, "the engine could not be suspended"
        )
        if error is None:
            self._log(f"the engine was suspended in {self._loop.time() - began:.2f} s")
        self._take(d.Suspended() if error is None else d.SuspendFailed())

    async def _look(self) -> None:
        busy = True
        try:
            async with asyncio.timeout(self._timing.dial):
                busy = await self._backend.busy()
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine is not suspended for it
            self._fail(_told(error, "whether the engine is busy cannot be told"))
        finally:
            self._take(d.Looked(busy))

    async def _attempt(self, work: Awaitable[None], limit: float, what: str) -> AtollError | None:
        """Do what clients wait for; what they are told if it fails, whatever the reason."""
        try:
            async with asyncio.timeout(limit + _GRACE):
                await work
        except Exception as error:  # noqa: BLE001 - else they would wait for ever
            if not isinstance(error, AtollError | TimeoutError):
                self._loop.call_exception_handler({"message": what, "exception": error})
            told = _told(error, what)
            self._fail(told)
            return told
        return None

    def _fail(self, error: AtollError) -> None:
        self._failure = Failure(error.code, error.message, error.hint, error.detail)
        self._failed = time.time()
        self._log(f"error[{error.code}]: {error.message}")


def _told(error: BaseException, what: str) -> AtollError:
    """An error as clients are told of it."""
    if isinstance(error, AtollError):
        return error
    if isinstance(error, TimeoutError):
        return StateError(f"{what} in time", code="timeout", hint="try again")
    return StateError(f"{what}: {type(error).__name__}: {error}", code="engine")


def _send_ahead(sock: socket.socket | None, stream: Stream) -> int:
    """Send what a client has said already right behind the request to connect; how many bytes.

    That saves a way to the guest and back. They stay unread: whoever refuses the client finds them.
    """
    room = min(stream.takes(), MOST) if sock is not None else 0
    if sock is None or not room:
        return 0
    try:
        said = sock.recv(room, socket.MSG_PEEK)
    except OSError:
        return 0
    if said:
        stream.offer(memoryview(said))
    return len(said)


def _skip(sock: socket.socket, count: int) -> bool:
    """Read what was sent ahead; whether the client is still there."""
    try:
        while count and (taken := len(sock.recv(count))):
            count -= taken
    except OSError:
        return False
    return not count


async def _request(sock: socket.socket) -> bytearray:
    """What a client sends before it waits for an answer; what it has sent, where it sends no more."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while not is_request(received) and (data := await loop.sock_recv(sock, MOST)):
        received += data
    return received
