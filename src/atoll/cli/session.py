"""A command in a sandbox, connected to this process's terminal, pipes and signals.

The way of a byte of the command's output: ``Output.read`` (see ``atoll.guest.execution``) hands it to
``_copy``, and that to ``terminal.write``, which knows the descriptor.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from atoll.cli import terminal
from atoll.cli.output import JsonLines, json_line
from atoll.events import OutputReceived
from atoll.guest.commands import Commands, feed
from atoll.guest.execution import Execution, Output
from atoll.guest.messages import Exit

__all__ = ["Session"]

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

#: Of these a command is asked to end by what its image has for that.
_ASKING = {signal.SIGINT, signal.SIGTERM}

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}

#: So many signals to end, and the VM is removed whatever the command does.
_INSISTENT = 3


@dataclass(slots=True)
class Session:
    """One run of ``atoll run`` or ``atoll exec``.

    Attributes:
        box: where it runs.
        begin: brings the box to where commands can be run.
        argv: the command.
        tty: give it a terminal of this one's size.
        events: print output as events, through this; None to print it as it is.
        timeout: seconds after which it is ended.
        stop: what the command gets in the place of a signal that asks this process to end, if it has no
            terminal; None for that signal itself.
        grace: seconds after such a signal until the VM is removed whatever the command does; None for no end.
    """

    box: Commands
    begin: Callable[[], Coroutine[None, None, None]]
    argv: tuple[str, ...]
    tty: bool
    events: JsonLines | None
    timeout: float | None
    stop: int | None = None
    grace: float | None = None
    _execution: Execution | None = field(default=None, init=False)
    _task: asyncio.Task[int] | None = field(default=None, init=False)
    _stopped_by: int = field(default=0, init=False)
    _signals: int = field(default=0, init=False)

    async def run(self) -> int:
        """Run it to its end and remove the VM; the exit status, or 128 plus a signal's number.

        Raises:
            AtollError: the VM did not come up, or the command could not be started or was ended.
        """
        if self.events is not None:
            self.events.write = functools.partial(terminal.post, 1)
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
            await self.begin()
            end = await self._execute()
        finally:
            await self.box.close()
            if self.events is not None:
                await terminal.send(1, b"")  # what was posted is written
        return end.code if end.code is not None else 128 + (end.signal or 0)

    async def _execute(self) -> Exit:
        size = terminal.terminal_size(1) if self.tty else None
        execution = self._execution = await self.box.start_command(
            self.argv, stdin=True, tty=size, timeout=self.timeout
        )
        with terminal.raw_mode(0) if self.tty and os.isatty(0) else contextlib.nullcontext():
            return await self.box.attend(
                execution,
                self._copy(execution.stdout, 1),
                self._copy(execution.stderr, 2),
                feed=feed(execution, terminal.input_chunks(0)),
                timeout=self.timeout,
            )

    async def _copy(self, output: Output, fd: int) -> None:
        if self.events is not None:
            await self._report(output, fd)
            return
        while data := await output.read():
            await terminal.write(fd, data)

    async def _report(self, output: Output, fd: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        data = b"-"
        while data:
            data = await output.read()
            if text := decoder.decode(data, final=not data):
                await self._print(text, fd)

    async def _print(self, text: str, fd: int) -> None:
        assert self._execution is not None
        event = OutputReceived(vm=self.box.name, execution=self._execution.id, fd=fd, text=text)
        await terminal.send(1, json_line(event))

    @contextmanager
    def _caught_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs ignore some
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
        self._signals += number in _ENDING
        if self._execution is None or self._signals >= _INSISTENT:
            self._give_up(number)
            return
        asked = number in _ASKING and not self.tty
        if asked and self.grace is not None and self._signals == 1:
            asyncio.get_running_loop().call_later(self.grace, self._give_up, number)
        _in_background(self._execution.signal(self.stop or number if asked else number))

    def _give_up(self, number: int) -> None:
        """Remove the VM, whatever the command does."""
        self._stopped_by = number
        assert self._task is not None
        self._task.cancel()

    def _on_resize(self) -> None:
        if self._execution is not None:
            size = terminal.terminal_size(1)
            _in_background(self._execution.resize(size.rows, size.cols))


_background: set[asyncio.Task[None]] = set()


def _in_background(request: Coroutine[None, None, None]) -> None:
    """Send a request whose failure changes nothing: the channel's end is seen elsewhere."""

    def done(task: asyncio.Task[None]) -> None:
        _background.discard(task)
        if not task.cancelled():
            task.exception()

    task = asyncio.create_task(request)
    _background.add(task)  # the loop itself holds tasks only weakly
    task.add_done_callback(done)
