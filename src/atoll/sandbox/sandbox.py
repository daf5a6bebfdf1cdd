"""A disposable VM: made at entry, gone at exit, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atoll import runtime
from atoll.config import Config, load, override
from atoll.errors import ChannelError, CommandTimeoutError, GuestError, UsageError, innermost
from atoll.events import Emit, ExecutionEnded, ExecutionStarted, ignore
from atoll.guest.execution import Execution, Output
from atoll.guest.messages import ExecStart, Exit, Info, TerminalSize
from atoll.sandbox.result import Result
from atoll.vm.life import Vm
from atoll.vm.spawning import Spawned

__all__ = ["Sandbox", "feed"]

#: Seconds between SIGTERM and SIGKILL for a command that ran past its time.
_GRACE = 2.0


class Sandbox:
    """A fresh Linux VM with a root of its own, removed when it is closed or when this process ends.

    Args:
        image: what its root is; built on first use.
        cpus: vCPUs.
        memory: such as ``"512M"``, or bytes.
        accel: ``auto``, ``kvm`` or ``tcg``.
        kernel: a kernel to boot instead of Debian's cloud kernel.
        env: variables of every command.
        workdir: directory in which commands start; their user's home by default.
        user: who runs commands: ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; root by default.
        config: resolved settings; by default those of this user. The arguments above win over them.
        on_event: told of everything that happens, see ``atoll.events``.
        spawned: a VM of ``image`` that runs already; it is taken over.

    Raises:
        ConfigError: a value is wrong.
    """

    def __init__(
        self,
        image: str = "debian",
        *,
        cpus: int | None = None,
        memory: str | int | None = None,
        accel: str | None = None,
        kernel: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        config: Config | None = None,
        on_event: Emit = ignore,
        spawned: Spawned | None = None,
    ) -> None:
        size = f"{memory / (1 << 20):f}M" if isinstance(memory, int) else memory
        flags: dict[str, Any] = {"cpus": cpus, "memory": size, "accel": accel, "kernel": kernel}
        self._config = load(flags).config if config is None else override(config, flags)
        self._emit = on_event
        self._env = dict(env or {})
        self._workdir = workdir
        self._user = user
        self._vm = Vm(spawned, on_event) if spawned else None
        self._executions = 0
        self.image = image
        self.name = spawned.name if spawned else runtime.new_name()

    @property
    def vm(self) -> Vm:
        """The VM below; for what this class does not offer."""
        if self._vm is None:
            raise UsageError("the sandbox is not started", code="state", hint="use it in a with statement")
        return self._vm

    async def start(self) -> None:
        """Spawn the VM and wait until it is up.

        Raises:
            AtollError: as ``runtime.launch``; ``BootError`` names the stage that failed. Nothing is left.
        """
        if self._vm is None:
            await self._launch()
        try:
            await self.vm.boot(self._config.boot_timeout)
        except BaseException:
            await self.close()
            raise

    async def _launch(self) -> None:
        """Launch beside the event loop: builds take long. A cancelled caller does not wait for them."""
        launch = _Launch(lambda: runtime.launch(self._config, self.name, self.image, emit=self._emit))
        try:
            self._vm = Vm(await launch.spawned(), self._emit)
        except asyncio.CancelledError:
            launch.abandon()
            raise

    async def close(self) -> None:
        """Remove the VM. Closing twice is fine."""
        if self._vm is not None:
            await self._vm.close()

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
            env: variables, beside those of the sandbox.
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
        self._executions += 1
        variables = {**self._env, **(env or {})}
        place = cwd or self._workdir
        start = ExecStart(
            id=f"x{self._executions}",
            argv=tuple(_guest_string(item) for item in argv),
            env={_guest_string(name): _guest_string(value) for name, value in variables.items()},
            cwd=_guest_string(place) if place else None,
            user=user or self._user,
            tty=tty,
            stdin=stdin,
        )
        execution = self.vm.agent.start(start)
        try:
            async with asyncio.timeout(timeout):
                pid = await execution.started()
        except TimeoutError:
            execution.release()
            raise _too_long(execution, timeout) from None
        except ChannelError as error:
            execution.close()
            raise await self.vm.explain(error) from error
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
            raise (await self.vm.explain(first) if isinstance(first, ChannelError) else first) from None
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
        return await self.vm.agent.ping()

    async def info(self) -> Info:
        """What the guest says of itself."""
        return await self.vm.agent.info()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Launch:
    """A launch in a thread of its own.

    An executor would do, but takes no work once the program's main thread has ended while others go on.
    """

    def __init__(self, work: Callable[[], Spawned]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Spawned] = self._loop.create_future()
        self._hand_over = threading.Lock()
        self._abandoned = False
        threading.Thread(target=self._run, name="atoll-launch", daemon=True).start()

    async def spawned(self) -> Spawned:
        """Wait for the VM. Raises what the launch raised."""
        return await self._outcome

    def abandon(self) -> None:
        """Nobody waits any more: the VM goes as soon as it is there."""
        with self._hand_over:
            self._abandoned = True
        if self._outcome.done() and not self._outcome.cancelled() and self._outcome.exception() is None:
            self._outcome.result().vm.discard()

    def _run(self) -> None:
        try:
            spawned = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            self._tell(self._outcome.set_exception, error)
            return
        with self._hand_over:
            if self._abandoned or not self._tell(self._outcome.set_result, spawned):
                spawned.vm.discard()

    def _tell(self, settle: Callable[[Any], None], outcome: object) -> bool:
        """Hand ``outcome`` to the event loop; whether it is still there."""

        def tell() -> None:
            if not self._outcome.done():
                settle(outcome)
            elif isinstance(outcome, Spawned):
                outcome.vm.discard()  # cancelled in between

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            return False
        return True


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
