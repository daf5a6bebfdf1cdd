"""A disposable VM: made at entry, gone at exit, whatever happens in between."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from atoll import runtime
from atoll.config import Config, load, override
from atoll.errors import ChannelError, CommandTimeoutError, UsageError, innermost
from atoll.events import Emit, ExecutionEnded, ExecutionStarted, ignore
from atoll.guest.execution import Execution
from atoll.guest.messages import ExecStart, Exit, Info, TerminalSize
from atoll.sandbox.result import Result
from atoll.vm.life import Vm
from atoll.vm.spawning import Spawned

__all__ = ["Sandbox"]

T = TypeVar("T")

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
        """Launch beside the event loop: builds take long. A cancelled caller must not leave the VM behind."""

        def launch() -> Spawned:
            return runtime.launch(self._config, self.name, self.image, emit=self._emit)

        launching = _in_thread(launch)
        try:
            self._vm = Vm(await asyncio.shield(launching), self._emit)
        except asyncio.CancelledError:
            await asyncio.wait({launching})
            if launching.exception() is None:
                await Vm(launching.result(), self._emit).close()
            raise

    async def close(self) -> None:
        """Remove the VM. Closing twice is fine."""
        if self._vm is not None:
            await self._vm.close()

    async def run(
        self,
        argv: Sequence[str],
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
        execution = await self.start_command(argv, env=env, cwd=cwd, user=user, stdin=data is not None)
        began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                out = tasks.create_task(execution.stdout.read_all())
                err = tasks.create_task(execution.stderr.read_all())
                if data is not None:
                    tasks.create_task(_feed(execution, data))
                end = await self.finish(execution, timeout=timeout)
        except* ChannelError as errors:
            raise await self.vm.explain(innermost(errors)) from None
        except* Exception as errors:  # noqa: BLE001 - unwrapped and raised again
            raise innermost(errors) from None
        finally:
            execution.release()
        self._emit(
            ExecutionEnded(
                vm=self.name,
                execution=execution.id,
                code=end.code,
                signal=end.signal,
                elapsed=time.monotonic() - began,
            )
        )
        result = Result(
            argv=tuple(argv),
            code=end.code,
            signal=end.signal,
            stdout_bytes=out.result(),
            stderr_bytes=err.result(),
            elapsed=(end.ended - end.started) / 1e9,
        )
        return result.check() if check else result

    async def start_command(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        tty: TerminalSize | None = None,
    ) -> Execution:
        """Start a command; its output and end may be awaited at leisure. The caller releases it.

        Raises:
            UsageError: ``argv`` is empty or a string.
            CommandError: it could not be started.
            BootError: the VM died.
        """
        if isinstance(argv, str) or not argv:
            hint = 'pass a list; for shell syntax ["sh", "-c", "..."]'
            raise UsageError("a command is a list of program and arguments", code="argv", hint=hint)
        self._executions += 1
        start = ExecStart(
            id=f"x{self._executions}",
            argv=tuple(_guest_string(item) for item in argv),
            env={**self._env, **(env or {})},
            cwd=cwd or self._workdir,
            user=user or self._user,
            tty=tty,
            stdin=stdin,
        )
        execution = self.vm.agent.start(start)
        try:
            pid = await execution.started()
        except ChannelError as error:
            execution.close()
            raise await self.vm.explain(error) from error
        except BaseException:
            execution.release()
            raise
        self._emit(ExecutionStarted(vm=self.name, execution=execution.id, argv=execution.argv, guest_pid=pid))
        return execution

    async def finish(self, execution: Execution, *, timeout: float | None) -> Exit:  # noqa: ASYNC109
        """Wait for a command's end; one that runs past ``timeout`` seconds is ended: SIGTERM, then SIGKILL.

        Raises:
            CommandTimeoutError: it ran past its time.
        """
        try:
            async with asyncio.timeout(timeout):
                return await execution.wait()
        except TimeoutError:
            await execution.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE):
                await execution.wait()
        except TimeoutError:
            await execution.signal(signal.SIGKILL)
        message = f"{execution.argv[0]} ran longer than {timeout:g} s and was ended"
        raise CommandTimeoutError(message, hint="allow more with --timeout or timeout=")

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


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What ``work`` returns, from a thread of its own.

    An executor would do, but takes no work once the program's main thread has ended while others go on.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast("T", result))

    def run() -> None:
        try:
            loop.call_soon_threadsafe(tell, work(), None)
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            loop.call_soon_threadsafe(tell, None, error)

    threading.Thread(target=run, name="atoll-launch", daemon=True).start()
    return outcome


async def _feed(execution: Execution, data: bytes) -> None:
    assert execution.stdin is not None
    await execution.stdin.write(data)
    await execution.stdin.end()


def _guest_string(item: str) -> str | bytes:
    """Arguments that came from a command line may hold bytes that are no UTF-8 (PEP 383)."""
    try:
        item.encode()
    except UnicodeEncodeError:
        return item.encode(errors="surrogateescape")
    return item
