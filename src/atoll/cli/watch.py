"""Looking at machines: ``logs``, ``events``, ``stats``, ``top`` and ``console``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from atoll.cli.output import print_json, print_table, size
from atoll.cli.parts import Part, running
from atoll.config import Config, load
from atoll.errors import AtollError, UsageError
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.vm.eventlog import EventLog, decode
from atoll.vm.messages import Stats

__all__ = ["console", "events", "logs", "stats", "top"]

_SOURCES = ("console", "serial", "agent", "hypervisor", "supervisor")

#: Seconds between two looks at a file that is followed.
_PAUSE = 0.1

#: What ends ``atoll console``: Ctrl-].
_ESCAPE = b"\x1d"


def _configure_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--source", choices=_SOURCES, default="console", help="which log (default console)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as more comes")
    parser.add_argument("--lines", "-n", type=int, metavar="N", help="only the last N lines")


def _run_logs(arguments: argparse.Namespace) -> int:
    machine = registry.find(load().config.paths, arguments.machine)
    path = machine.place.log(arguments.source)
    older = path.with_name(f"{path.name}.1")
    kept = [file.read_bytes() if file.exists() else b"" for file in (older, path)]
    data = b"".join(kept)
    if arguments.lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-max(arguments.lines, 0) :] if arguments.lines else [])
    _show(data)
    if not data and not arguments.follow and arguments.source == "console":
        others = f"`atoll logs --source serial {machine.name}` has the kernel's"
        print(f"nothing was written to the console of {machine.name} yet; {others}", file=sys.stderr)
    if arguments.follow:
        for more in _followed(path, len(kept[-1])):
            _show(more)
    return 0


def _show(data: bytes) -> None:
    """Print what a guest wrote; to a terminal without what could steer it."""
    if sys.stdout.isatty():
        kept = bytes(byte for byte in data if byte >= 0x20 or byte in b"\t\n")
        data = kept.replace(b"\x7f", b"")
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _followed(path: Path, at: int) -> Iterator[bytes]:
    """What is added to a file that is moved away now and then."""
    file: IO[bytes] | None = None
    try:
        while True:
            if file is None and path.exists():
                file = path.open("rb")
                file.seek(at)
            if file is not None:
                if data := file.read():
                    yield data
                    continue
                if _moved(path, file):
                    file.close()
                    file, at = None, 0
                    continue
            time.sleep(_PAUSE)
    finally:
        if file is not None:
            file.close()


def _moved(path: Path, file: IO[bytes]) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _configure_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machines", nargs="*", metavar="NAME", help="only of these machines")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as more comes")
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def _run_events(arguments: argparse.Namespace) -> int:
    config = load().config
    log = EventLog(config.data_dir)
    _check_known(config, log, arguments.machines)
    show = _event_printer(frozenset(arguments.machines), json=arguments.json)
    at = log.path.stat().st_size if log.path.exists() else 0
    for line in log.lines():
        show(line)
    if arguments.follow:
        rest = b""
        for data in _followed(log.path, at):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                show(line)
    return 0


def _check_known(config: Config, log: EventLog, names: Sequence[str]) -> None:
    """Refuse a name that neither a machine has nor one ever had. Raises ``StoreError``."""
    unknown = {name for name in names if not registry.exists(config.paths, name)}
    if unknown:
        unknown -= {getattr(decode(line), "vm", "") for line in log.lines()}
    for name in unknown:
        registry.find(config.paths, name)


def _event_printer(names: frozenset[str], *, json: bool) -> Callable[[bytes], None]:
    def show(line: bytes) -> None:
        event = decode(line)
        if event is None or (names and getattr(event, "vm", "") not in names):
            return
        if json:
            print(line.decode().strip(), flush=True)
            return
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in {"at", "vm"}}
        tag = str(type(event).__struct_config__.tag)
        words = " ".join(
            f"{name}={_shown(value)}" for name, value in fields.items() if value not in {"", None}
        )
        print(f"{date}  {getattr(event, 'vm', ''):<12}  {tag:<14}  {words}", flush=True)

    return show


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _configure_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _run_stats(arguments: argparse.Namespace) -> int:
    async def act() -> Stats:
        async with Machine(arguments.machine) as machine:
            return await machine.stats()

    found = running(act())
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        ("host memory", size(found.host_memory)),
        ("  of it private", size(found.host_private)),
        ("host CPU time", f"{found.host_cpu / 1e9:.1f} s"),
        ("disk on the host", size(found.disk)),
        ("supervisor", size(found.supervisor_memory)),
    ]
    guest = found.guest
    if guest is not None:
        rows += [
            (
                "guest memory",
                f"{size(guest.memory.total - guest.memory.available)} of {size(guest.memory.total)}",
            ),
            ("guest disk", f"{size(guest.disk.size - guest.disk.free)} of {size(guest.disk.size)}"),
            ("guest network", f"{size(guest.network.received)} in, {size(guest.network.sent)} out"),
            ("guest processes", str(guest.processes)),
            ("guest load", f"{guest.load / 100:.2f}"),
            ("guest uptime", f"{guest.uptime / 1e9:.0f} s"),
        ]
    print_table(("WHAT", "VALUE"), rows)
    return 0


def _configure_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machines", nargs="*", metavar="NAME", help="only these (default: all that run)")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="time between two looks"
    )
    parser.add_argument("--count", type=int, metavar="N", help="look N times, then end")


def _run_top(arguments: argparse.Namespace) -> int:
    if not arguments.interval > 0:
        raise UsageError("--interval must be above 0", code="interval", hint="write seconds, such as 2")
    running(_top(arguments))
    return 0


async def _top(arguments: argparse.Namespace) -> None:
    config = load().config
    before: dict[str, tuple[float, Stats]] = {}
    looks = 0
    while arguments.count is None or looks < arguments.count:
        if looks:
            await asyncio.sleep(arguments.interval)
        looks += 1
        rows = []
        for entry in registry.listed(config.paths):
            wanted = not arguments.machines or entry.name in arguments.machines
            if not wanted or entry.machine is None or not entry.machine.state.active:
                continue
            with contextlib.suppress(AtollError):
                async with Machine(entry.name, config=config) as machine:
                    now = (time.monotonic(), await machine.stats())
                rows.append(_top_row(entry.name, before.get(entry.name), now))
                before[entry.name] = now
        if sys.stdout.isatty():
            print("\x1b[H\x1b[J", end="")
        head = ("NAME", "HOST CPU", "GUEST CPU", "HOST MEM", "GUEST MEM", "DISK R/W", "NET IN/OUT")
        print_table(head, rows)
        sys.stdout.flush()


def _top_row(name: str, before: tuple[float, Stats] | None, now: tuple[float, Stats]) -> tuple[str, ...]:
    """One line: rates since the look before, or dashes at the first."""
    at, stats_now = now
    guest = stats_now.guest
    memory = f"{size(guest.memory.total - guest.memory.available)}" if guest else "-"
    if before is None:
        return (name, "-", "-", size(stats_now.host_memory), memory, "-", "-")
    span = max(at - before[0], 1e-3)
    host = (stats_now.host_cpu - before[1].host_cpu) / 1e9 / span
    old = before[1].guest
    if guest is None or old is None:
        return (name, f"{host:.0%}", "-", size(stats_now.host_memory), memory, "-", "-")
    busy = (guest.cpu.user + guest.cpu.system - old.cpu.user - old.cpu.system) / 1e9 / span

    def rate(new: int, former: int) -> str:
        return size(round((new - former) / span)) + "/s"

    disk = f"{rate(guest.disk.read, old.disk.read)} {rate(guest.disk.written, old.disk.written)}"
    network = (
        f"{rate(guest.network.received, old.network.received)} {rate(guest.network.sent, old.network.sent)}"
    )
    return (name, f"{host:.0%}", f"{busy:.0%}", size(stats_now.host_memory), memory, disk, network)


def _configure_console(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.description = "Be connected to the machine's console. Ctrl-] lets go of it."


def _run_console(arguments: argparse.Namespace) -> int:
    running(_console(arguments.machine))
    return 0


async def _console(name: str) -> None:
    from atoll.cli import terminal
    from atoll.guest.messages import Empty

    async with Machine(name) as machine:
        await machine.connect()
        stream = machine.control.console()
        await stream.reply(Empty)
        interactive = os.isatty(0)
        if interactive:
            await stream.write(b"\r")  # whatever waits there says who it is
            print(f"connected to {name}; Ctrl-] lets go", file=sys.stderr)

        async def show() -> None:
            while data := await stream.read():
                await terminal.write(1, data)

        async def type_in() -> None:
            async for data in terminal.input_chunks(0):
                before, escape, _ = data.partition(_ESCAPE) if interactive else (data, b"", b"")
                await stream.write(before)
                if escape:
                    return
            await asyncio.sleep(_PAUSE * 3)  # what was typed last has its echo

        with terminal.raw_mode(0) if interactive else contextlib.nullcontext():
            tasks = [asyncio.create_task(show()), asyncio.create_task(type_in())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                stream.cancel()
        if interactive:
            print(f"\r\nlet go of {name}", file=sys.stderr)


logs = Part(_configure_logs, _run_logs)
events = Part(_configure_events, _run_events)
stats = Part(_configure_stats, _run_stats)
top = Part(_configure_top, _run_top)
console = Part(_configure_console, _run_console)
