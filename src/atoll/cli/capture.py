"""``atoll capture``: what passes at the network cards of machines, in a file or as lines."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from atoll.cli import terminal
from atoll.cli.options import add_json
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import UsageError
from atoll.machine import registry
from atoll.machine.lines import frames_of
from atoll.network import pcapng
from atoll.network.describing import describe
from atoll.network.shapewords import parse_duration
from atoll.vm.network.capture import Frames
from atoll.vm.network.saving import CaptureFile

__all__ = ["configure", "run"]

#: Bytes of a frame that a line can need.
_SNAP_OF_LINES = 512

#: What ends a capture; asked for twice, it ends without what was not read yet.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Given blocks, and takes them at its own pace.
_Take = Callable[[list[bytes]], Awaitable[None]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("machines", nargs="+", metavar="NAME", help="machines of one network")
    parser.add_argument(
        "--write", "-w", metavar="FILE|-", help="write pcapng; - is stdout (default: a line for each packet)"
    )
    parser.add_argument("--snap", type=int, metavar="N", help="keep only the first N bytes of each frame")
    parser.add_argument("--duration", metavar="TIME", help="end after a time, such as 30s or 5m")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N frames")
    add_json(parser, "a line for each packet")


def run(arguments: argparse.Namespace) -> int:
    """Capture until the end is asked for; how many frames there were is said on stderr."""
    if arguments.write is not None and arguments.json:
        hint = "tshark -T json -r FILE makes it of a file"
        raise UsageError("--json goes without --write", code="capture", hint=hint)
    if arguments.write == "-" and sys.stdout.isatty():
        hint = "write `-w - | wireshark -k -i -`, or -w FILE"
        raise UsageError("packets are not written to a terminal", code="capture", hint=hint)
    if arguments.count < 0:
        hint = "write one from 1 on"
        raise UsageError(f"--count {arguments.count}: no such number", code="capture", hint=hint)
    duration = parse_duration(arguments.duration) if arguments.duration is not None else 0.0
    config = load().config
    names = dict.fromkeys(arguments.machines)
    lines = arguments.write is None
    snap = arguments.snap if arguments.snap is not None else _SNAP_OF_LINES if lines else pcapng.LARGEST
    machines = [registry.find(config.paths, name) for name in names]
    frames = frames_of(config, machines, snap=snap, count=arguments.count)
    return running(_capture(frames, arguments, tuple(names), duration))


async def _capture(
    frames: Frames, arguments: argparse.Namespace, names: tuple[str, ...], duration: float
) -> int:
    await frames.open()
    with contextlib.ExitStack() as stack:
        stack.callback(frames.close)
        take = _taking(arguments, names, stack)
        with _ended_by_signals(frames):
            loop = asyncio.get_running_loop()
            ending = loop.call_later(duration, _end, frames) if duration else None
            try:
                while blocks := await frames.read():
                    await take(blocks)
            finally:
                if ending is not None:
                    ending.cancel()
        _say_end(frames, names, count=arguments.count)
    return 0


def _taking(arguments: argparse.Namespace, names: tuple[str, ...], stack: contextlib.ExitStack) -> _Take:
    """What is done with blocks. Raises ``StoreError``."""
    if arguments.write is None:
        printer = _Printer(names, json=arguments.json)
        return printer.take
    if arguments.write == "-":

        async def pass_on(blocks: list[bytes]) -> None:
            await terminal.write(1, b"".join(blocks))

        return pass_on
    file = CaptureFile(Path(arguments.write))
    stack.callback(file.close)

    async def save(blocks: list[bytes]) -> None:
        await asyncio.to_thread(file.write, blocks)

    return save


class _Printer:
    """A line for each packet."""

    def __init__(self, names: tuple[str, ...], *, json: bool) -> None:
        self._names = names
        self._json = json
        self._encoder = msgspec.json.Encoder()

    async def take(self, blocks: list[bytes]) -> None:
        packets = (pcapng.parse_packet(block) for block in blocks)
        lines = [self._line(packet) for packet in packets if packet is not None]
        if lines:
            await terminal.write(1, b"".join(lines))

    def _line(self, packet: pcapng.Packet) -> bytes:
        said = describe(packet.frame, packet.size)
        name = self._names[packet.number] if packet.number < len(self._names) else ""
        is_out = packet.direction is pcapng.Direction.OUTBOUND
        if self._json:
            line = {
                "at": packet.at / 1e9,
                "machine": name,
                "direction": "out" if is_out else "in",
                "length": packet.size,
                **msgspec.structs.asdict(said),
            }
            return self._encoder.encode(line) + b"\n"
        seconds, rest = divmod(packet.at, 10**9)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"
        of = f"{name} " if len(self._names) > 1 else ""
        ends = f"{said.source} > {said.destination}"
        return f"{clock} {of}{'out' if is_out else 'in '} {ends} {said.protocol}: {said.info}\n".encode()


@contextlib.contextmanager
def _ended_by_signals(frames: Frames) -> Iterator[None]:
    """Signals that end a process end the capture first; the second one ends the process."""
    loop = asyncio.get_running_loop()
    caught = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]

    def let_go() -> None:
        for number in caught:
            loop.remove_signal_handler(number)

    def end() -> None:
        let_go()
        _end(frames)

    for number in caught:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        let_go()


_tasks: set[asyncio.Task[None]] = set()


def _end(frames: Frames) -> None:
    task = asyncio.get_running_loop().create_task(frames.end())
    _tasks.add(task)  # the loop itself holds tasks only weakly
    task.add_done_callback(_tasks.discard)


def _say_end(frames: Frames, names: tuple[str, ...], *, count: int) -> None:
    captured = frames.captured
    if captured is None:
        return
    dropped = f", {captured.dropped} of them dropped: they were read too slowly" if captured.dropped else ""
    said = f"{captured.frames} frames{dropped}"
    is_whole = frames.was_asked or 0 < count <= captured.frames - captured.dropped
    if not is_whole:
        whose = "its network card was" if len(names) == 1 else "their network cards were"
        said += f"; {', '.join(names)}: {whose} pulled: it stopped, or is being started anew"
    print(said, file=sys.stderr)
