"""A process in the guest, as a program holds it: its streams, its signals, its end.

It is an ``Execution`` whose errors are explained by whoever looks after the VM. (``atoll.process`` is about
programs on the host.)
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from atoll.errors import AtollError, ChannelError, UsageError
from atoll.guest.execution import Execution, Input, Output
from atoll.guest.messages import Exit
from atoll.guest.opening import Closing

__all__ = ["Detached", "Process", "Reader"]

#: Longest line, bytes: a quarter of what the guest holds, so that it can go on sending.
_LONGEST_LINE = 262_144
#: Bytes that may have been read without the guest being told.
_MOST_OWED = 65_536


class Detached(msgspec.Struct, frozen=True):
    """Where to go on with a process that was left running: what ``attach`` takes.

    Attributes:
        id: its name in the guest.
        stdout_offset: bytes read of its output, or None if that is not known; ``stderr_offset`` likewise.
    """

    id: str
    stdout_offset: int | None = None
    stderr_offset: int | None = None


class Holder:
    """What a process and its outputs have in common: they may be let go of, and errors have reasons.

    Args:
        name: of the process, for people.
        explain: finds what is behind a channel that broke.
    """

    def __init__(self, name: str, explain: Callable[[ChannelError], Awaitable[AtollError]]) -> None:
        self._name = name
        self._explain = explain
        self.released = False

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Around each request: raise what programs can act upon."""
        if self.released:
            raise self._over()
        try:
            yield
        except ChannelError as error:
            raise await self._reason(error) from error
        except asyncio.CancelledError:
            if self._released_meanwhile():
                raise self._over() from None
            raise

    async def _reason(self, error: ChannelError) -> AtollError:
        return self._over() if self.released else await self._explain(error)

    def _released_meanwhile(self) -> bool:
        """Whether what was waited for was cancelled, not the task that waits."""
        task = asyncio.current_task()
        return self.released and task is not None and not task.cancelling()

    def _over(self) -> UsageError:
        hint = "`attach` takes up a process that was detached"
        return UsageError(f"{self._name} was let go of", code="process", hint=hint)


class Reader:
    """What a process writes to one descriptor. What is read here need not be held in the guest any more.

    ``async for`` gives it in chunks as they come; ``lines`` gives lines.
    """

    def __init__(self, output: Output, holder: Holder) -> None:
        self._output = output
        self._holder = holder
        self._rest = bytearray()  # fetched, but not read: the guest holds it still
        self._owed = 0  # bytes that were read, but not acknowledged

    @property
    def offset(self) -> int:
        """Bytes read so far, counted from the process's start."""
        return self._output.offset + self._owed

    async def read(self) -> bytes:
        """Wait for output and return all that has come; empty at the end.

        Raises:
            GuestError: ``guest.cancelled``: somebody else attached to the process and reads on.
            UsageError: ``usage.process``: it was let go of.
            BootError, StateError: the VM died.
        """
        if not self._rest:
            await self._fetch()
        return self._take(len(self._rest))

    async def read_all(self) -> bytes:
        """Read to the end. Raises as ``read``."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    async def readline(self) -> str | None:
        """Wait for a line and return it without its end, or None behind the last one. Raises as ``read``.

        Bytes that are no UTF-8 are replaced. A line of more than 256 KiB comes in parts.
        """
        while (end := self._rest.find(b"\n")) < 0 and len(self._rest) < _LONGEST_LINE:
            if not await self._fetch():
                break
        if not self._rest:
            return None
        return _text(self._take(min(end + 1 if end >= 0 else len(self._rest), _LONGEST_LINE)))

    def line_at_hand(self) -> str | None:
        """A line that has come already, or None: then ``readline`` is to be asked.

        Another thread may call this while the event loop's does not read: waking that up for each line would
        take longer than all else. The guest is told with the next read that it need not hold the line.
        """
        end = self._rest.find(b"\n") + 1
        if not 0 < end <= _LONGEST_LINE or self._owed > _MOST_OWED:
            return None
        line = bytes(self._rest[:end])
        del self._rest[:end]
        self._owed += end
        return _text(line)

    async def lines(self) -> AsyncIterator[str]:
        """Each line as ``readline`` returns it, up to the end of the output."""
        while (line := await self.readline()) is not None:
            yield line

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield data

    async def _fetch(self) -> bool:
        async with self._holder.asking():
            data = await self._output.fetch()
        self._rest += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        data = bytes(self._rest[:count])
        del self._rest[:count]
        self._output.acknowledge(count + self._owed)
        self._owed = 0
        return data


def _text(line: bytes) -> str:
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="replace")


class Process(Closing):
    """A process in a guest that runs by itself, made by ``start`` or ``attach``.

    The guest holds 1 MiB of each output that was not read: a process that writes more stands still until
    somebody reads. At the end of ``async with`` it is killed, unless it has ended or was detached.
    """

    def __init__(
        self,
        execution: Execution,
        pid: int,
        *,
        takes_input: bool,
        explain: Callable[[ChannelError], Awaitable[AtollError]],
        on_end: Callable[[Execution, Exit], None],
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self._execution = execution
        self._pid = pid
        self._takes_input = takes_input
        self._input_ended = False
        self._opening_input = asyncio.Lock()
        self._on_end = on_end
        self._stop_signal = stop_signal
        self._end: Exit | None = None
        self._holder = Holder(execution.argv[0] if execution.argv else execution.id, explain)
        self._stdout = Reader(execution.stdout, self._holder)
        self._stderr = Reader(execution.stderr, self._holder)

    @property
    def id(self) -> str:
        """Its name in the guest, which ``attach`` takes."""
        return self._execution.id

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The command; bytes that are no UTF-8 are replaced."""
        return self._execution.argv

    @property
    def stdout(self) -> Reader:
        """What it writes to its output, and with a terminal to that."""
        return self._stdout

    @property
    def stderr(self) -> Reader:
        """What it writes to its error output; nothing if it has a terminal."""
        return self._stderr

    async def write(self, data: bytes | str) -> None:
        """Write to its input, waiting while it does not read.

        What a process that has closed its input, or has ended, is given is dropped. A write that is cancelled
        may be done in part.

        Raises:
            UsageError: ``usage.stdin``: it takes no input, or that was closed; ``usage.process``.
            GuestError: ``guest.cancelled``: somebody else writes to it; ``guest.resource``: it has not read
                what was written before it was attached to.
            BootError, StateError: the VM died.
        """
        if self._input_ended:
            raise UsageError("its input was closed", code="stdin", hint="write before close_stdin()")
        async with self._holder.asking():
            await (await self._input()).write(data.encode() if isinstance(data, str) else data)

    async def close_stdin(self) -> None:
        """Say that its input is over (end of file). Closing twice is fine. Raises as ``write``."""
        if self._input_ended:
            return
        async with self._holder.asking():
            await (await self._input()).end()
        self._input_ended = True

    async def signal(self, number: int) -> None:
        """Send a signal to it and the processes of its group; nothing happens if it has ended.

        Raises:
            GuestError: ``guest.invalid``: there is no such signal.
            UsageError: ``usage.process``.
            BootError, StateError: the VM died.
        """
        async with self._holder.asking():
            await self._execution.signal(number)

    async def terminate(self) -> None:
        """Ask it to end: SIGTERM, or what its image says if it is what that runs. Raises as ``signal``."""
        await self.signal(self._stop_signal)

    async def kill(self) -> None:
        """End it: SIGKILL. Raises as ``signal``."""
        await self.signal(signal.SIGKILL)

    async def resize(self, rows: int, cols: int) -> None:
        """Change the size of its terminal, characters.

        Raises as ``signal``; ``guest.invalid`` if it has none.
        """
        async with self._holder.asking():
            await self._execution.resize(rows, cols)

    async def wait(self, timeout: float | None = None) -> Exit:  # noqa: ASYNC109 - of this wait, not of the process
        """Wait for its end.

        It does not end while it has more to write than the guest holds: read its outputs, too.

        Args:
            timeout: seconds to wait; the process goes on after that.

        Raises:
            TimeoutError: it has not ended within ``timeout``.
            GuestError: ``guest.not_found``, ``guest.cancelled``: somebody else has released it.
            UsageError: ``usage.process``.
            BootError, StateError: the VM died.
        """
        if self._end is None:
            async with asyncio.timeout(timeout), self._holder.asking():
                end = await self._execution.wait()
            if self._end is None:
                self._end = end
                self._on_end(self._execution, end)
        return self._end

    async def detach(self) -> Detached:
        """Let go of it, and leave it running in the guest, also when this program ends.

        What it has written and nobody has read here is held for ``attach``.

        Raises:
            GuestError: ``guest.not_found``: somebody else has released it.
            UsageError: ``usage.process``.
            BootError, StateError: the VM died.
        """
        async with self._holder.asking():
            await self._execution.detach()
        self._holder.released = True
        return Detached(self.id, self._stdout.offset, self._stderr.offset)

    async def close(self) -> None:
        """Kill it if it still runs, and have the guest forget it, unless it was detached.

        Closing twice is fine.
        """
        if not self._holder.released:
            self._holder.released = True
            self._execution.release()

    async def _input(self) -> Input:
        if not self._takes_input:
            raise UsageError("it takes no input", code="stdin", hint="start it with stdin=True")
        async with self._opening_input:
            return await self._execution.take_input()
