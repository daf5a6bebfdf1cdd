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

    Args:
        channel: to the guest.
        execution: the command's name.
        fd: the descriptor.
        offset: where to begin, which acknowledges all before it; None for the oldest byte that is held.

    Attributes:
        offset: bytes read so far, counted from the command's start.
    """

    def __init__(self, channel: Channel, execution: str, fd: int, offset: int | None = 0) -> None:
        self._channel = channel
        self._execution = execution
        self._fd = fd
        self._limit: int | None = None
        self._ahead = 0  # bytes that were fetched and are not acknowledged
        self._repeated = 0  # bytes that the guest sends again since they were not
        self._placed = offset is not None
        self.offset = offset or 0
        self._stream = self._attach()

    async def attached(self) -> None:
        """Wait until the guest says that what follows is there. Raises as ``read``."""
        while True:
            try:
                reply = await self._stream.reply(messages.Offset)
            except LinkResetError:
                await self._renew()
                continue
            except GuestError as error:
                raise _place_error(self.offset, error) from error
            if not self._placed:
                self.offset = reply.offset
                self._placed = True
            return

    async def read(self) -> bytes:
        """Wait for output and return all that has come; empty at the end.

        Raises:
            GuestError: ``guest.gone`` if what was to follow is no longer held, ``guest.cancelled`` if another
                reader took over.
            ChannelError: the link broke.
        """
        data = await self.fetch()
        self.acknowledge(len(data))
        return data

    async def fetch(self) -> bytes:
        """``read`` for who says with ``acknowledge`` how much of it need not be held any more."""
        if not self._placed:
            await self.attached()
        while self._limit is None or self.offset + self._ahead < self._limit:
            try:
                data = await self._stream.fetch()
            except LinkResetError:
                await self._renew()
                continue
            news = data[self._repeated :]
            self._repeated -= len(data) - len(news)
            self._ahead += len(news)
            if news or not data:
                return news
        return b""

    def acknowledge(self, count: int) -> None:
        """The guest need not hold the next ``count`` bytes any more: they were read."""
        self.offset += count
        self._ahead -= count
        self._stream.consumed(count)

    async def read_all(self) -> bytes:
        """Read to the end."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    def settle(self, limit: int) -> None:
        """The command has ended after ``limit`` bytes: do not wait for more, whoever holds the pipe open."""
        self._limit = limit
        if self.offset + self._ahead >= limit:
            self._stream.finish()

    def close(self) -> None:
        """Stop reading."""
        self._stream.cancel()

    def _attach(self) -> Stream:
        offset = self.offset if self._placed else None
        self._repeated = self._ahead
        return self._channel.open(
            messages.ExecOutput(id=self._execution, fd=self._fd, offset=offset), end=True
        )

    async def _renew(self) -> None:
        await self._channel.ready()
        self._stream = self._attach()


class Input:
    """What a command reads from descriptor 0.

    Args:
        channel: to the guest.
        execution: the command's name.
        stream: opened already, and replied to; a new one by default.
        offset: bytes written before.

    Attributes:
        offset: bytes written so far.
    """

    def __init__(
        self, channel: Channel, execution: str, *, stream: Stream | None = None, offset: int = 0
    ) -> None:
        self._channel = channel
        self._execution = execution
        self._stream = stream or channel.open(messages.ExecStdin(id=execution))
        self._unsure = bytearray()  # the last window: the guest may not have accepted it
        self._ended = False
        self._turn = asyncio.Lock()
        self._keeping = asyncio.create_task(self._keep())
        self.offset = offset

    @classmethod
    async def resume(cls, channel: Channel, execution: str) -> Input:
        """Go on behind what another writer has written, who gets ``guest.cancelled``.

        Raises:
            GuestError: ``guest.invalid`` if there is no input, or it has ended.
            ChannelError: the link broke.
        """
        while True:
            stream = channel.open(messages.ExecStdin(id=execution, append=True))
            try:
                offset = (await stream.reply(messages.Offset)).offset
            except LinkResetError:
                await channel.ready()
            except BaseException:
                stream.cancel()
                raise
            else:
                return cls(channel, execution, stream=stream, offset=offset)

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
    """A command that is started, or was found running.

    Args:
        channel: to the guest.
        command: what to start, or what was found.
        offsets: where its outputs are read from; None for the oldest byte that is held.

    Attributes:
        id: its name in the guest.
        argv: the command; bytes that are no UTF-8 are replaced.
        stdout: its output; ``stderr`` likewise (at its end at once if it has a terminal).
        stdin: its input, or None.
    """

    def __init__(
        self,
        channel: Channel,
        command: messages.ExecStart | messages.ExecutionState,
        offsets: tuple[int | None, int | None] = (0, 0),
    ) -> None:
        start = command if isinstance(command, messages.ExecStart) else None
        self.id = command.id
        self.argv = tuple(os.fsencode(item).decode(errors="replace") for item in command.argv)
        self._channel = channel
        self._start = start
        self._found = command if isinstance(command, messages.ExecutionState) else None
        self._starting = channel.open(start, end=True) if start else None
        self.stdout = Output(channel, self.id, fd=1, offset=offsets[0])
        self.stderr = Output(channel, self.id, fd=2, offset=offsets[1])
        self.stdin = Input(channel, self.id) if start and start.stdin else None
        self._ending = asyncio.create_task(self._watch_end())

    async def started(self) -> int:
        """Wait until the command runs; its process id in the guest.

        Raises:
            CommandError: it could not be started.
            GuestError: the agent refused it; ``guest.boot`` if the guest has no root.
            ChannelError: the link broke.
        """
        while True:
            if self._start is None or self._starting is None:
                assert self._found is not None
                return self._found.pid
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

    async def take_input(self) -> Input:
        """Its input, behind what another client has written. Raises as ``Input.resume``."""
        if self.stdin is None:
            self.stdin = await Input.resume(self._channel, self.id)
        return self.stdin

    async def detach(self) -> None:
        """Have it outlive this client, and let go of it here. Raises as ``started``."""
        await self._channel.call_again(messages.ExecDetach(id=self.id), messages.Empty)
        self.close()

    def release(self) -> None:
        """Have the guest end it if it still runs, and forget it, here and there. Does not wait."""
        self.close()
        self._channel.post(messages.ExecRelease(id=self.id))

    def close(self) -> None:
        """Let go of it here; in the guest it goes on."""
        if not self._ending.cancel() and not self._ending.cancelled():
            self._ending.exception()  # it may be that nobody awaits it
        if self._starting is not None:
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


def _place_error(offset: int, error: GuestError) -> GuestError:
    """Say what is wrong with the place from which output was to be read."""
    if error.reason == "gone":
        message = f"output from byte {offset} on was read already and is not held any more"
        hint = "without an offset, what is held is read from its beginning"
        return GuestError(message, reason="gone", hint=hint)
    if error.reason == "invalid":
        return GuestError(f"byte {offset} of the output was not written yet", reason="invalid")
    return error


#: What to do about a program that execve(2) does not take.
_EXEC_HINTS = {
    errno.ENOENT: "check the name and the image: small ones have no shell and no common tools",
    errno.EACCES: "check the file's permissions, and that it is no directory",
    errno.ENOEXEC: "it is made for another architecture, or is a script without `#!` in its first line",
}


def _start_error(start: messages.ExecStart, error: GuestError) -> GuestError:
    """Say which command could not be started, in the words that a shell's user knows."""
    if error.reason != "os":
        return error
    program = os.fsdecode(start.argv[0])
    said = error.message.removeprefix(f"{program}: ")
    if error.stage == "exec" and error.errno == errno.ENOENT and "/" not in program:
        said = f'exec: "{program}": not found in $PATH'
    if error.stage == "interpreter":
        said = "what runs it, a script's interpreter or a program's loader, is not in the guest"
    hint = _EXEC_HINTS.get(error.errno, "check the command's name and the image")
    hints = {
        "exec": "`sh -c` runs shell syntax" if " " in program else hint,
        "interpreter": "see its first line, or `ldd`; one for another C library needs its loader",
        "cwd": "choose a directory that exists in the guest with --workdir",
        "user": "choose a user that exists in the guest with --user",
    }
    return CommandError(
        f"cannot run {program}: {said}",
        reason=error.stage or "exec",
        errno=error.errno,
        stage=error.stage,
        hint=hints.get(error.stage, ""),
    )
