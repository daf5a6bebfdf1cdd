"""A command in a sandbox, connected to this process's terminal, pipes and signals.

The way of a byte of the command's output: ``Output.read`` (see ``atoll.guest.execution``) hands it to
``_copy``, and that to ``terminal.write``, which knows the descriptor.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from atoll.cli import terminal
from atoll.cli.output import json_lines
from atoll.errors import ChannelError, GuestError, innermost
from atoll.events import Emit, ExecutionEnded, OutputReceived
from atoll.guest.execution import Execution, Output
from atoll.guest.messages import Exit
from atoll.sandbox.sandbox import Sandbox

__all__ = ["Session"]

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

#: So many signals to end, and the VM is removed whatever the command does.
_INSISTENT = 3


@dataclass(slots=True)
class Session:
    """One run of ``atoll run``.

    Attributes:
        box: launched already.
        argv: the command.
        tty: give it a terminal of this one's size.
        json: print output as events.
        timeout: seconds after which it is ended.
    """

    box: Sandbox
    argv: tuple[str, ...]
    tty: bool
    json: bool
    timeout: float | None
    _execution: Execution | None = field(default=None, init=False)
    _task: asyncio.Task[int] | None = field(default=None, init=False)
    _stopped_by: int = field(default=0, init=False)
    _signals: int = field(default=0, init=False)

    async def run(self) -> int:
        """Run it to its end and remove the VM; the exit status, or 128 plus a signal's number.

        Raises:
            AtollError: the VM did not come up, or the command could not be started or was ended.
        """
        self._task = asyncio.create_task(self._run())
        with self._caught_signals():
            try:
                return await self._task
            except asyncio.CancelledError:
                if not self._stopped_by:
                    raise
                return 128 + self._stopped_by

    async def _run(self) -> int:
        try:
            await self.box.start()
            end = await self._execute()
        finally:
            await self.box.close()
        return end.code if end.code is not None else 128 + (end.signal or 0)

    async def _execute(self) -> Exit:
        size = terminal.terminal_size(1) if self.tty else None
        began = time.monotonic()
        execution = self._execution = await self.box.start_command(self.argv, stdin=True, tty=size)
        with terminal.raw_mode(0) if self.tty else contextlib.nullcontext():
            try:
                end = await self._connected(execution)
            except* ChannelError as errors:
                raise await self.box.vm.explain(innermost(errors)) from None
            except* BaseException as errors:  # noqa: BLE001 - unwrapped and raised again
                raise innermost(errors) from None
            finally:
                execution.release()
        if self.json:
            json_lines(sys.stdout)(
                ExecutionEnded(
                    vm=self.box.name,
                    execution=execution.id,
                    code=end.code,
                    signal=end.signal,
                    elapsed=time.monotonic() - began,
                )
            )
        return end

    async def _connected(self, execution: Execution) -> Exit:
        """Copy output and input until the command has ended and its output is written."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._copy(execution.stdout, 1))
            tasks.create_task(self._copy(execution.stderr, 2))
            feeding = tasks.create_task(_feed(execution))
            end = await self.box.finish(execution, timeout=self.timeout)
            feeding.cancel()
        return end

    async def _copy(self, output: Output, fd: int) -> None:
        if self.json:
            await self._report(output, fd, json_lines(sys.stdout))
            return
        while data := await output.read():
            await terminal.write(fd, data)

    async def _report(self, output: Output, fd: int, emit: Emit) -> None:
        assert self._execution is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while data := await output.read():
            if text := decoder.decode(data):
                emit(OutputReceived(vm=self.box.name, execution=self._execution.id, fd=fd, text=text))
        if text := decoder.decode(b"", final=True):
            emit(OutputReceived(vm=self.box.name, execution=self._execution.id, fd=fd, text=text))

    @contextmanager
    def _caught_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._on_signal, number)
        if self.tty:
            loop.add_signal_handler(signal.SIGWINCH, self._on_resize)
        try:
            yield
        finally:
            for number in (*_FORWARDED, signal.SIGWINCH):
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        """Pass it on to the command; before there is one, and for those who insist, stop."""
        self._signals += 1
        if self._execution is None or self._signals >= _INSISTENT:
            self._stopped_by = number
            assert self._task is not None
            self._task.cancel()
        else:
            _in_background(self._execution.signal(number))

    def _on_resize(self) -> None:
        if self._execution is not None:
            size = terminal.terminal_size(1)
            _in_background(self._execution.resize(size.rows, size.cols))


async def _feed(execution: Execution) -> None:
    assert execution.stdin is not None
    chunks = terminal.input_chunks(0)
    with contextlib.suppress(GuestError):  # the command has ended and takes no more
        while data := await chunks.get():
            await execution.stdin.write(data)
        await execution.stdin.end()


_background: set[asyncio.Task[None]] = set()


def _in_background(request: Coroutine[None, None, None]) -> None:
    """Send a request whose failure changes nothing: the channel's end is seen elsewhere."""

    async def attempt() -> None:
        with contextlib.suppress(ChannelError, GuestError):
            await request

    task = asyncio.create_task(attempt())
    _background.add(task)  # the loop itself holds tasks only weakly
    task.add_done_callback(_background.discard)
