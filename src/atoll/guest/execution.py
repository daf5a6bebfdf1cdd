"""One command in the guest: its start, output, input and end (docs/reference/agent-protocol.md, section 6).

An execution outlives the link. When the link is brought in step again each part goes on where it was: output
from the offset that was read, input from the offset that the guest has accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

from atoll.errors import ChannelError, CommandError, GuestError
from atoll.guest import messages, wire
from atoll.guest.channel import Channel, LinkResetError, Stream
from atoll.guest.messages import Exit

__all__ = ["Execution", "Input", "Output", "list_executions"]


async def list_executions(channel: Channel) -> tuple[messages.ExecutionState, ...]:
    """The executions that the guest holds. Raises as ``Channel.call``."""
    found: list[messages.ExecutionState] = []
    while True:
        page = await channel.call_again(messages.ExecList(skip=len(found)), messages.Executions)
        found += page.executions
        if not page.more or not page.executions:
            return tuple(found)


class Output:
    """What a command writes to one descriptor.

    Attributes:
        offset: bytes read so far, counted from the command's start.
    """

    def __init__(self, channel: Channel, execution: str, fd: int) -> None:
        self._channel = channel
        self._execution = execution
        self._fd = fd
        self._limit: int | None = None
        self.offset = 0
        self._stream = self._attach()

    async def read(self) -> bytes:
        """Wait for output and return all that has come; empty at the end.

        Raises:
            GuestError: ``guest.gone`` if what was to follow is no longer held, ``guest.cancelled`` if another
                reader took over.
            ChannelError: the link broke.
        """
        while self._limit is None or self.offset < self._limit:
            try:
                data = await self._stream.read()
            except LinkResetError:
                await self._channel.ready()
                self._stream = self._attach()
                continue
            self.offset += len(data)
            return data
        return b""

    async def read_all(self) -> bytes:
        """Read to the end."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    def settle(self, limit: int) -> None:
        """The command has ended after ``limit`` bytes: do not wait for more, whoever holds the pipe open."""
        self._limit = limit
        if self.offset >= limit:
            self._stream.finish()

    def close(self) -> None:
        """Stop reading."""
        self._stream.cancel()

    def _attach(self) -> Stream:
        request = messages.ExecOutput(id=self._execution, fd=self._fd, offset=self.offset)
        return self._channel.open(request, end=True)


class Input:
    """What a command reads from descriptor 0.

    Attributes:
        offset: bytes written so far.
    """

    def __init__(self, channel: Channel, execution: str) -> None:
        self._channel = channel
        self._execution = execution
        self._stream = channel.open(messages.ExecStdin(id=execution))
        self._unsure = bytearray()  # the last window: the guest may not have accepted it
        self._ended = False
        self._turn = asyncio.Lock()
        self._keeping = asyncio.create_task(self._keep())
        self.offset = 0

    async def write(self, data: bytes) -> None:
        """Send ``data``, waiting while the command does not read.

        Raises:
            GuestError: the guest refused it.
            ChannelError: the link broke.
        """
        async with self._turn:
            self._unsure += data
            self.offset += len(data)
            try:
                await self._send(data)
            except LinkResetError:
                await self._channel.ready()  # ``_keep`` sends it again

    async def end(self) -> None:
        """Say that the input is over (end of file). Raises as ``write``."""
        self._ended = True
        await self.write(b"")

    def close(self) -> None:
        """Stop writing without an end of file."""
        self._keeping.cancel()
        self._stream.cancel()

    async def _keep(self) -> None:
        """Until the guest has passed all input on: after each loss of step send again what it may lack."""
        while True:
            try:
                await self._stream.reply(messages.Offset)
                await self._stream.read()  # the guest sends nothing but the end
            except LinkResetError:
                pass
            except (ChannelError, GuestError):
                return  # whoever writes is told
            else:
                return
            with contextlib.suppress(LinkResetError):
                await self._channel.ready()
                async with self._turn:
                    await self._resend()

    async def _resend(self) -> None:
        first_unsure = self.offset - len(self._unsure)
        self._stream.cancel()
        self._stream = self._channel.open(messages.ExecStdin(id=self._execution, offset=first_unsure))
        await self._stream.reply(messages.Offset)
        await self._send(bytes(self._unsure))  # the guest drops what it has already

    async def _send(self, data: bytes) -> None:
        await self._stream.write(data, end=self._ended)
        del self._unsure[: -wire.WINDOW]


class Execution:
    """A command that was started with ``Agent.start``.

    Attributes:
        id: its name in the guest.
        argv: the command; bytes that are no UTF-8 are replaced.
        stdout: its output; ``stderr`` likewise (at its end at once if it has a terminal).
        stdin: its input, or None.
    """

    def __init__(self, channel: Channel, start: messages.ExecStart) -> None:
        self.id = start.id
        self.argv = tuple(os.fsencode(item).decode(errors="replace") for item in start.argv)
        self._channel = channel
        self._start = start
        self._starting: Stream = channel.open(start, end=True)
        self.stdout = Output(channel, start.id, fd=1)
        self.stderr = Output(channel, start.id, fd=2)
        self.stdin = Input(channel, start.id) if start.stdin else None
        self._ending = asyncio.create_task(self._watch_end())

    async def started(self) -> int:
        """Wait until the command runs; its process id in the guest.

        Raises:
            CommandError: it could not be started.
            GuestError: the agent refused it; ``guest.boot`` if the guest has no root.
            ChannelError: the link broke.
        """
        while True:
            try:
                return (await self._starting.reply(messages.Started)).pid
            except LinkResetError:
                await self._channel.ready()
                self._starting = self._channel.open(self._start, end=True)
            except GuestError as error:
                if error.reason == "exists":
                    return await self._find_pid()
                raise _start_error(self._start, error) from error

    async def wait(self) -> Exit:
        """Wait for the command's end. Raises as ``started``."""
        await self.started()
        return await asyncio.shield(self._ending)

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group; nothing happens if it has ended."""
        try:
            await self._channel.call_again(messages.ExecSignal(id=self.id, signal=number), messages.Empty)
        except GuestError as error:
            if error.reason != "not_found" and error.errno != errno.ESRCH:
                raise

    async def resize(self, rows: int, cols: int) -> None:
        """Change the size of its terminal, characters."""
        request = messages.ExecResize(id=self.id, rows=rows, cols=cols)
        await self._channel.call_again(request, messages.Empty)

    def release(self) -> None:
        """Have the guest end it if it still runs, and forget it, here and there. Does not wait."""
        self.close()
        self._channel.post(messages.ExecRelease(id=self.id))

    def close(self) -> None:
        """Let go of it here; in the guest it goes on."""
        if not self._ending.cancel() and not self._ending.cancelled():
            self._ending.exception()  # it may be that nobody awaits it
        self._starting.cancel()
        self.stdout.close()
        self.stderr.close()
        if self.stdin is not None:
            self.stdin.close()

    async def _watch_end(self) -> Exit:
        end = await self._channel.call_again(messages.ExecWait(id=self.id), Exit)
        self.stdout.settle(end.stdout)
        self.stderr.settle(end.stderr)
        return end

    async def _find_pid(self) -> int:
        for execution in await list_executions(self._channel):
            if execution.id == self.id:
                return execution.pid
        raise GuestError("the execution is gone", reason="not_found")


def _start_error(start: messages.ExecStart, error: GuestError) -> GuestError:
    """Say which command could not be started, in the words that a shell's user knows."""
    if error.reason != "os":
        return error
    program = os.fsdecode(start.argv[0])
    hints = {
        "exec": "check the command's name and the image; `sh -c` runs shell syntax",
        "cwd": "choose a directory that exists in the guest with --workdir",
        "user": "choose a user that exists in the guest with --user",
    }
    return CommandError(
        f"cannot run {program}: {error.message.removeprefix(f'{program}: ')}",
        reason=error.stage or "exec",
        errno=error.errno,
        stage=error.stage,
        hint=hints.get(error.stage, ""),
    )
