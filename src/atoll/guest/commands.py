"""Running commands in a guest, whoever looks after its VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from atoll.errors import AtollError, ChannelError, CommandTimeoutError, GuestError, UsageError, innermost
from atoll.events import Emit, ExecutionEnded, ExecutionStarted
from atoll.guest.agent import Agent
from atoll.guest.execution import Execution, Output
from atoll.guest.exposure import Exposed, listen
from atoll.guest.files import Access, Files
from atoll.guest.handle import Detached, Process
from atoll.guest.messages import ExecStart, ExecutionState, Exit, Info, TerminalSize
from atoll.guest.opening import Closing, opening
from atoll.guest.result import Result

__all__ = ["Commands", "Defaults", "feed"]

#: Seconds between SIGTERM and SIGKILL for a command that ran past its time.
_GRACE = 2.0


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """What commands get where nobody says anything else: what their image says.

    Attributes:
        env: variables.
        workdir: directory in which they start; None for their user's home.
        user: who runs them; None for root.
        container: they are started as engines of containers start them.
        stop_signal: what asks one of them to end, if the image started it.
    """

    env: dict[str, str] = {}
    workdir: str | None = None
    user: str | None = None
    container: bool = False
    stop_signal: int = signal.SIGTERM


class Commands(Closing):
    """What can be done with commands in a guest; the base of all that have one.

    Args:
        emit: told of each command.
        env: variables of every command.
        workdir: directory in which commands start; their user's home by default.
        user: who runs them; root by default.
        timeout: seconds after which ``run`` ends one that is not told another limit.
    """

    name: str

    def __init__(
        self,
        emit: Emit,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self._emit = emit
        self._env = dict(env or {})
        self._workdir = workdir
        self._user = user
        self._timeout = timeout
        self._defaults = Defaults()
        self._executions = 0
        self._prefix = f"x{os.urandom(4).hex()}-"  # others may run commands in the same guest

    async def _reach(self) -> None:
        """Make sure that the agent can be reached, where a request can do that."""

    def _reached(self) -> Agent:
        """The agent, if it can be reached."""
        raise NotImplementedError

    async def _explain(self, error: ChannelError) -> AtollError:
        """What is behind a channel that broke."""
        raise NotImplementedError

    @property
    def files(self) -> Files:
        """The files of the guest, for whoever runs commands and from where they start."""
        return Files(Access(self._agent, self._explain, self._actor))

    def _actor(self) -> tuple[str | None, str | None]:
        """Who does what nobody else is named for, and where that begins."""
        defaults = self._defaults
        return self._user or defaults.user, self._workdir or defaults.workdir

    async def _agent(self) -> Agent:
        await self._reach()
        return self._reached()

    async def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        input: bytes | str | None = None,  # noqa: A002 - as subprocess has it
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends the command in the guest
        check: bool = False,
    ) -> Result:
        """Run a command to its end and return what it wrote.

        Args:
            argv: program and arguments; no shell is involved.
            input: its standard input; empty by default.
            env: variables, beside those that all commands get.
            cwd: directory in which it starts.
            user: who runs it.
            timeout: seconds after which it is ended.
            check: raise if it fails.

        Raises:
            CommandError: it could not be started.
            CommandTimeoutError: it ran past ``timeout``.
            CommandFailedError: ``check`` was asked for and it failed.
            BootError: the VM died; the stage is ``command``.
        """
        data = input.encode() if isinstance(input, str) else input
        timeout = self._timeout if timeout is None else timeout
        execution = await self.start_command(
            argv, env=env, cwd=cwd, user=user, stdin=data is not None, timeout=timeout
        )
        out: list[bytes] = []
        err: list[bytes] = []
        end = await self.attend(
            execution,
            _collect(execution.stdout, out),
            _collect(execution.stderr, err),
            feed=None if data is None else feed(execution, _once(data)),
            timeout=timeout,
        )
        result = Result(
            argv=execution.argv,
            code=end.code,
            signal=end.signal,
            stdout_bytes=b"".join(out),
            stderr_bytes=b"".join(err),
            elapsed=(end.ended - end.started) / 1e9,
        )
        return result.check() if check else result

    @opening
    async def start_process(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        tty: TerminalSize | None = None,
    ) -> Process:
        """Start a process and return while it runs: to be awaited, or entered with ``async with``.

        Args:
            argv: program and arguments; no shell is involved.
            env: variables, beside those that all commands get.
            cwd: directory in which it starts.
            user: who runs it.
            stdin: give it an input to ``write`` to; empty by default.
            tty: give it a terminal of this size.

        Raises:
            UsageError: ``argv`` is empty or a string.
            CommandError: it could not be started.
            BootError, StateError: the VM died, or does not run.
        """
        execution = await self.start_command(argv, env=env, cwd=cwd, user=user, stdin=stdin, tty=tty)
        return self._held(execution, await execution.started(), takes_input=stdin)

    @opening
    async def attach(
        self,
        process: str | Detached,
        *,
        stdout_offset: int | None = None,
        stderr_offset: int | None = None,
    ) -> Process:
        """Take up a process that runs in the guest, whoever started it; whoever read it before reads no more.

        Args:
            process: its id, or what ``detach`` returned.
            stdout_offset: bytes of its output that were read: the guest holds them no longer. By default what
                is held is read from its beginning.
            stderr_offset: likewise.

        Raises:
            GuestError: ``guest.not_found``: there is no such process; ``guest.gone``: its output from there
                on was read already; ``guest.invalid``: it has not written so much.
            BootError, StateError: the VM died, or does not run.
        """
        if isinstance(process, str):
            process = Detached(process, stdout_offset, stderr_offset)
        async with self._explained():
            found = await self._find(process.id)
            execution = await self._reached().attach(found, process.stdout_offset, process.stderr_offset)
        return self._held(execution, found.pid, takes_input=found.stdin)

    async def processes(self) -> tuple[ExecutionState, ...]:
        """What was started in the guest, by whomever, and is not released; in the order of the starts.

        Raises:
            BootError, StateError: the VM died, or does not run.
        """
        async with self._explained():
            return await self._reached().executions()

    @opening
    async def expose(self, target: int | str, *, host: str = "127.0.0.1", port: int = 0) -> Exposed:
        """Let programs of this host connect to a server in the guest: to be awaited, or entered.

        No network card is needed: connections pass through the guest's channel. It ends with ``close``, at
        the end of the block, and when the VM or the connection to it does.

        Args:
            target: a TCP port of the guest, or the path of a unix socket there.
            host: the address to listen on.
            port: the port to listen on; 0 for any that is free.

        Raises:
            UsageError: ``usage.expose``: there is no such port, or it cannot be listened on.
            BootError, StateError: the VM does not run.
        """
        async with self._explained():
            await self._reached().ping()
            return await listen(self._reached(), target, host=host, port=port)

    async def _find(self, process: str) -> ExecutionState:
        for found in await self._reached().executions():
            if found.id == process:
                return found
        hint = "it was released, or ended with the client that started it"
        raise GuestError(f"no process {process}", reason="not_found", hint=hint)

    def _held(
        self, execution: Execution, pid: int, *, takes_input: bool, stop_signal: int = signal.SIGTERM
    ) -> Process:
        return Process(
            execution,
            pid,
            takes_input=takes_input,
            explain=self._explain,
            on_end=self._tell_end,
            stop_signal=stop_signal,
        )

    def _tell_end(self, execution: Execution, end: Exit) -> None:
        self._emit(
            ExecutionEnded(
                vm=self.name, execution=execution.id, code=end.code, signal=end.signal, elapsed=end.elapsed
            )
        )

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        await self._reach()
        try:
            yield
        except ChannelError as error:
            raise await self._explain(error) from error

    async def start_command(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        tty: TerminalSize | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - reported as the command's
    ) -> Execution:
        """Start a command; its output and end may be awaited at leisure. The caller releases it.

        Raises:
            CommandTimeoutError: it did not start within ``timeout`` seconds.
            UsageError: ``argv`` is empty or a string.
            CommandError: it could not be started.
            BootError: the VM died.
        """
        if isinstance(argv, str | bytes) or not argv:
            hint = 'pass a list; for shell syntax ["sh", "-c", "..."]'
            raise UsageError("a command is a list of program and arguments", code="argv", hint=hint)
        await self._reach()
        self._executions += 1
        variables = {**self._defaults.env, **self._env, **(env or {})}
        actor, directory = self._actor()
        place = cwd or directory
        start = ExecStart(
            id=f"{self._prefix}{self._executions}",
            argv=tuple(_guest_string(item) for item in argv),
            env={_guest_string(name): _guest_string(value) for name, value in variables.items()},
            cwd=_guest_string(place) if place else None,
            user=user or actor,
            tty=tty,
            stdin=stdin,
            container=self._defaults.container,
        )
        execution = self._reached().start(start)
        try:
            async with asyncio.timeout(timeout):
                pid = await execution.started()
        except TimeoutError:
            execution.release()
            raise _too_long(execution, timeout) from None
        except ChannelError as error:
            execution.close()
            raise await self._explain(error) from error
        except BaseException:
            execution.release()
            raise
        self._emit(ExecutionStarted(vm=self.name, execution=execution.id, argv=execution.argv, guest_pid=pid))
        return execution

    async def attend(
        self,
        execution: Execution,
        *copies: Coroutine[None, None, None],
        feed: Coroutine[None, None, None] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends the command in the guest
    ) -> Exit:
        """Run ``copies`` and ``feed`` until the command has ended and its output is copied; then release it.

        Args:
            execution: as ``start_command`` returned it.
            copies: each reads one output to its end.
            feed: writes the input; it is cancelled when the command has ended.
            timeout: seconds after which the command is ended.

        Raises:
            CommandTimeoutError: it ran past ``timeout``.
            BootError: the VM died.
        """
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(feed) if feed else None
                for copy in copies:
                    tasks.create_task(copy)
                end = await self._finish(execution, timeout)
                if feeding is not None:
                    feeding.cancel()
        except BaseExceptionGroup as errors:
            first = innermost(errors)
            raise (await self._explain(first) if isinstance(first, ChannelError) else first) from None
        finally:
            execution.release()
        elapsed = time.monotonic() - began
        self._emit(
            ExecutionEnded(
                vm=self.name, execution=execution.id, code=end.code, signal=end.signal, elapsed=elapsed
            )
        )
        return end

    async def _finish(self, execution: Execution, timeout: float | None) -> Exit:  # noqa: ASYNC109
        """Wait for a command's end; one that runs past ``timeout`` is ended: SIGTERM, then SIGKILL."""
        try:
            async with asyncio.timeout(timeout):
                return await execution.wait()
        except TimeoutError:
            if not await _ended_by(execution, signal.SIGTERM):
                await _ended_by(execution, signal.SIGKILL)
        raise _too_long(execution, timeout)

    async def ping(self) -> float:
        """The round trip to the agent, seconds."""
        return await (await self._agent()).ping()

    async def info(self) -> Info:
        """What the guest says of itself."""
        return await (await self._agent()).info()


def _too_long(execution: Execution, timeout: float | None) -> CommandTimeoutError:
    message = f"{execution.argv[0]} ran longer than {timeout:g} s and was ended"
    return CommandTimeoutError(message, hint="allow more with --timeout or timeout=")


async def _ended_by(execution: Execution, number: int) -> bool:
    """Send a signal; whether the command has ended within the grace. The guest may not answer at all."""
    try:
        async with asyncio.timeout(_GRACE):
            await execution.signal(number)
            await execution.wait()
    except TimeoutError:
        return False
    return True


async def feed(execution: Execution, chunks: AsyncIterator[bytes]) -> None:
    """Write ``chunks`` to a command, then the end of file; a command that takes no more is no error."""
    assert execution.stdin is not None
    with contextlib.suppress(GuestError):
        async for data in chunks:
            await execution.stdin.write(data)
        await execution.stdin.end()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _collect(output: Output, into: list[bytes]) -> None:
    while data := await output.read():
        into.append(data)


def _guest_string(item: str | bytes | os.PathLike[str]) -> str | bytes:
    """What the guest gets: text, or bytes where it is no UTF-8 (command lines may hold such, PEP 383).

    Raises:
        UsageError: it is neither text nor a path, or holds a NUL.
    """
    try:
        raw = os.fsencode(item)
    except TypeError:
        raise UsageError(f"{item!r} is no text", code="argv", hint="pass strings, bytes or paths") from None
    if b"\0" in raw:
        raise UsageError(f"{item!r} holds a NUL", code="argv", hint="no argument or variable can")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
