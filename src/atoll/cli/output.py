"""How events and tables read: lines for people, JSON lines for programs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from atoll import events
from atoll.cli.rows import size, table
from atoll.errors import UsageError
from atoll.events import Emit, Event

__all__ = [
    "JsonLines",
    "agree",
    "json_line",
    "listener",
    "print_json",
    "print_table",
    "quoted",
    "require_terminal",
    "settle",
    "size",
]

#: Seconds below which work is not worth a line that stays.
_BRIEF = 1.0


_encoder = msgspec.json.Encoder()


def listener(*, json: bool = False, verbose: bool = False, quiet: bool = False) -> Emit:
    """What tells the user of events: JSON lines on stdout, or progress and stages on stderr."""
    if json:
        return JsonLines(sys.stdout.buffer)
    if quiet:
        return events.ignore
    return _Progress(sys.stderr, verbose=verbose)


def settle(emit: Emit, outcome: str = "") -> None:
    """End what ``emit`` has on the terminal's last line; the outcome is said to people who watch."""
    if isinstance(emit, _Progress):
        emit.settle(outcome)


def json_line(event: Event) -> bytes:
    """An event as one line of JSON, in UTF-8."""
    return _encoder.encode(event) + b"\n"


class JsonLines:
    """Each event as one line of JSON.

    Attributes:
        write: takes a line; it may be replaced by one that does not wait for a slow reader.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.write: Callable[[bytes], None] = self._write_through

    def __call__(self, event: Event) -> None:
        """Write ``event``."""
        self.write(json_line(event))

    def _write_through(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()


class _Progress:
    """Long work as it goes on: a line that is written over on a terminal, else a line at start and end.

    What is over within a second leaves no line. A machine that starts or stops is shown on a terminal only.
    """

    def __init__(self, stream: IO[str], *, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._live = stream.isatty()
        self._tasks: dict[str, tuple[events.TaskStarted, float]] = {}
        self._announced: set[str] = set()
        self._starting: set[str] = set()
        self._shown = False

    def settle(self, outcome: str) -> None:
        """Clear the line that is written over, and say how the work ended to those who watched."""
        if self._live and outcome:
            self._say(outcome)
        elif self._shown:
            self._clear()

    def __call__(self, event: Event) -> None:
        match event:
            case events.TaskStarted():
                self._tasks[event.task] = (event, time.monotonic())
                self._show(f"{event.title} ...")
            case events.TaskAdvanced():
                self._advance(event)
            case events.TaskEnded():
                self._end(event)
            case events.Warned():
                self._say(f"warning: {event.message}" + (f" ({event.hint})" if event.hint else ""))
            case events.PortPublished():
                self._say(f"{event.vm}: port {event.port} is {event.host} here")
            case events.AutoPortOpened():
                self._say(f"{event.vm}: port {event.port} is {event.host} here")
            case _ if self._verbose:
                self._stage(event)
            case _ if self._live:
                self._machine(event)
            case _:
                pass

    def _advance(self, event: events.TaskAdvanced) -> None:
        started, began = self._tasks.get(event.task, (_untitled(event.task), time.monotonic()))
        title, elapsed = started.title, time.monotonic() - began
        if self._live:
            self._show(f"{title} ({elapsed:.0f} s) {_amount(started, event.done)}{event.note}")
        elif elapsed >= _BRIEF and event.task not in self._announced:
            self._announced.add(event.task)
            self._say(f"{title} ...")

    def _end(self, event: events.TaskEnded) -> None:
        title = self._tasks.pop(event.task, (_untitled(event.task), 0.0))[0].title
        if event.elapsed >= _BRIEF or event.task in self._announced:
            self._say(f"{title}: {event.elapsed:.1f} s" if event.ok else f"{title}: failed")
        elif self._shown:
            self._clear()
        self._announced.discard(event.task)

    def _machine(self, event: Event) -> None:
        """What a machine that starts or stops is at."""
        match event:
            case events.StateChanged(phase="starting"):
                self._starting.add(event.vm)
                self._show(f"{event.vm}: starting ...")
            case events.StateChanged(phase="stopping"):
                self._show(f"{event.vm}: stopping ...")
            case events.StateChanged():
                self._starting.discard(event.vm)
            case events.StageReached() if event.vm in self._starting:
                self._show(f"{event.vm}: starting ({event.elapsed:.0f} s): {event.stage} is up")
            case events.WaitingFor():
                self._show(f"{event.vm}: starting: waits for {event.what} ...")
            case _:
                pass

    def _stage(self, event: Event) -> None:
        self._copied(event)
        match event:
            case events.AcceleratorChosen():
                self._say(f"accelerator {event.accelerator}: {event.reason}")
            case events.VmSpawned():
                self._say(f"{event.vm}: process {event.pid}")
            case events.StageReached():
                self._say(f"{event.vm}: {event.stage:8} {event.elapsed:7.3f} s")
            case events.GuestBooted():
                steps = ", ".join(f"{name} {at / 1e9:.3f}" for name, at in event.timeline.items())
                self._say(f"{event.vm}: guest's clock: {steps}")
            case events.ExecutionEnded():
                how = f"status {event.code}" if event.signal is None else f"signal {event.signal}"
                self._say(f"{event.vm}: command ended with {how} after {event.elapsed:.3f} s")
            case events.WaitingFor():
                self._say(f"{event.vm}: waits for {event.what}")
            case events.StopTried():
                outcome = "ended it" if event.ended else "did not end it"
                self._say(f"{event.vm}: {event.how} {outcome} after {event.elapsed:.3f} s")
            case events.CommandRan():
                import shlex

                self._say(f"ran {shlex.join(event.argv)} ({event.elapsed:.2f} s)")
            case _:
                pass

    def _copied(self, event: Event) -> None:
        match event:
            case events.VmCaptured():
                self._say(f"{event.vm}: written down; it stood still for {event.stopped:.3f} s")
            case events.VmForked():
                children = ", ".join(event.children)
                self._say(f"{event.vm}: copied to {children}; it stood still for {event.stopped:.3f} s")
            case _:
                pass

    def _show(self, text: str) -> None:
        if self._live:
            self._stream.write(f"\r\x1b[K{text[:100]}")
            self._stream.flush()
            self._shown = True

    def _clear(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()
        self._shown = False

    def _say(self, text: str) -> None:
        start = "\r\x1b[K" if self._shown else ""
        self._shown = False
        self._stream.write(f"{start}{text}\n")
        self._stream.flush()


def _untitled(task: str) -> events.TaskStarted:
    """Work of whose beginning nothing was said."""
    return events.TaskStarted(task=task, title=task)


def _amount(started: events.TaskStarted, done: int) -> str:
    """How much of some bytes is done; empty for work of another kind."""
    if started.unit != "bytes":
        return ""
    return f"{size(done)} of {size(started.total)}, " if started.total else f"{size(done)}, "


def require_terminal(hint: str) -> None:
    """Refuse to ask where nobody can answer: ``usage.agree``, with ``hint`` saying what goes without."""
    if not sys.stdin.isatty():
        raise UsageError("this would ask, but there is no terminal", code="agree", hint=hint)


def agree(question: str, *, hint: str, refused: str) -> None:
    """Ask who is at the terminal.

    Args:
        question: in a sentence.
        hint: what goes without asking.
        refused: what is said where nobody agrees.

    Raises:
        UsageError: ``usage.agree``: nobody agreed, or nobody is there.
    """
    require_terminal(hint)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError(refused, code="agree", hint=hint)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def quoted(name: str) -> str:
    """A file's name on one line: what cannot be printed, and the backslash, by the bytes that it has."""
    named = {"\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    return "".join(
        named.get(letter)
        or (letter if letter.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(letter)))
        for letter in name
    )


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what they hold."""
    print(table(tuple(head), [tuple(row) for row in rows]), end="")
