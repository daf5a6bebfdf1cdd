"""``atoll network log`` and ``stats``: what guests asked of their networks, and what they have open."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from atoll.cli.options import add_json
from atoll.cli.output import print_json, print_table, quoted, size
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import NetworkError
from atoll.network.audit import (
    AnyRecord,
    AuditLog,
    Decided,
    Ended,
    FlowStatistics,
    Resolved,
    Suppressed,
    decode,
)
from atoll.paths import NetworkPaths, Paths
from atoll.vm.network.policing import read_flows
from atoll.vm.network.reaching import reach
from atoll.vm.network.requests import NetworkControl

__all__ = ["add_log", "add_stats"]

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

#: Seconds between two looks at a log, and at what is open.
_PAUSE = 0.1
_WATCH = 1.0


def add_log(commands: _Commands) -> None:
    """``log``."""
    parser = commands.add_parser("log", help="print what machines asked for, and what became of it")
    parser.add_argument("network", nargs="?", metavar="NETWORK", help="only of this one (default: all)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as more comes")
    parser.add_argument("--name", metavar="MACHINE", help="only of this machine or sandbox")
    parser.add_argument("--denied", action="store_true", help="only what was denied")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(act=_log)


def add_stats(commands: _Commands) -> None:
    """``stats``."""
    parser = commands.add_parser("stats", help="show the connections that machines have, with their bytes")
    parser.add_argument("of", nargs="?", metavar="MACHINE|NETWORK", help="only of this one (default: all)")
    parser.add_argument("--watch", "-w", action="store_true", help="show them each second")
    add_json(parser, "them")
    parser.set_defaults(act=_stats)


# What was


def _log(arguments: argparse.Namespace) -> int:
    tails = [_Tail(place.audit) for place in _places(load().config.paths, arguments.network)]
    while True:
        lines = sorted(_read(tails), key=lambda pair: pair[0].at)
        for record, line in lines:
            if _is_wanted(record, arguments.name, denied=arguments.denied):
                sys.stdout.write((line.decode() if arguments.json else _shown(record)) + "\n")
        sys.stdout.flush()
        if not arguments.follow:
            return 0
        time.sleep(_PAUSE)


def _places(paths: Paths, name: str | None) -> list[NetworkPaths]:
    """The networks that are meant. Raises ``NetworkError``: ``network.missing``: there is none."""
    try:
        names = sorted(os.listdir(paths.network("any").directory.parent))
    except FileNotFoundError:
        names = []
    if name is None:
        return [paths.network(each) for each in names]
    if name not in names:
        hint = f"there are: {', '.join(names)}" if names else "they are made when the first VM needs one"
        raise NetworkError(f"there is no network {name}", code="missing", hint=hint)
    return [paths.network(name)]


def _read(tails: Sequence[_Tail]) -> Iterator[tuple[AnyRecord, bytes]]:
    for tail in tails:
        for line in tail.lines():
            record = decode(line)
            if record is not None:
                yield record, line


class _Tail:
    """The lines of a log that is moved away now and then: first all that is kept, then what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._files: deque[IO[bytes]] = deque()
        self._open(path)  # before what is older: it may be moved there meanwhile
        latest = tuple(self._files)
        self._open(AuditLog(path).older)
        if self._files:
            self._files.rotate(1)
        if latest and len(self._files) > 1 and _is_same(self._files[0], latest[0]):
            self._files.popleft().close()

    def lines(self) -> Iterator[bytes]:
        """Whole lines that were not given yet."""
        while self._files or self._open(self._path):
            file = self._files[0]
            is_last = len(self._files) == 1 and not self._is_moved(file)
            *lines, self._rest = (self._rest + file.read()).split(b"\n")
            yield from lines
            if is_last:
                return
            self._files.popleft().close()
            self._rest = b""

    def _open(self, path: Path) -> bool:
        try:
            self._files.append(path.open("rb"))
        except FileNotFoundError:
            return False
        return True

    def _is_moved(self, file: IO[bytes]) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True


def _is_same(one: IO[bytes], other: IO[bytes]) -> bool:
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def _is_wanted(record: AnyRecord, guest: str | None, *, denied: bool) -> bool:
    if guest is not None and record.guest != guest:
        return False
    if not denied:
        return True
    if isinstance(record, Decided):
        return record.verdict == "deny"
    return isinstance(record, Resolved) or (isinstance(record, Ended) and record.why == "denied")


def _shown(record: AnyRecord) -> str:
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at))
    verdict, protocol, where, rest = _columns(record)
    return f"{date}  {quoted(record.guest):<12}  {verdict:<7}  {protocol:<4}  {where:<40}  {rest}".rstrip()


def _columns(record: AnyRecord) -> tuple[str, str, str, str]:
    match record:
        case Decided():
            return record.verdict, record.protocol, _end(record), quoted(record.rule)
        case Ended():
            way = "in, " if record.inbound else ""
            passed = f"{size(record.sent)} sent, {size(record.received)} received, {record.seconds:.1f} s"
            return record.why, record.protocol, _end(record), way + passed
        case Resolved():
            return record.verdict, "dns", quoted(record.name), ""
        case Suppressed():
            return "...", "", f"{record.count} more, which were counted only", ""


def _end(flow: Decided | Ended | FlowStatistics) -> str:
    address = f"[{flow.address}]" if ":" in flow.address else flow.address
    place = f"{address}:{flow.port}" if flow.port else flow.address
    return f"{quoted(flow.name)} {place}" if flow.name else place


# What is


def _stats(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    while True:
        flows = _flows(paths, arguments.of)
        if arguments.json:
            print_json(flows)
        else:
            if arguments.watch and sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[J")
            _print(flows)
        sys.stdout.flush()
        if not arguments.watch:
            return 0
        time.sleep(_WATCH)


def _flows(paths: Paths, name: str | None) -> list[FlowStatistics]:
    """What is open. Raises ``NetworkError``: ``network.missing``: neither a network nor a VM has the name."""
    places = {place.directory.name: place for place in _places(paths, None)}
    if name in places:
        return running(_open_at([places[name]]))
    found = running(_open_at(list(places.values())))
    if name is None:
        return found
    own = [flow for flow in found if flow.guest == name]
    if not own:
        from atoll.machine import registry

        if not registry.exists(paths, name):
            hint = "`atoll ls` lists machines"
            raise NetworkError(
                f"{name} is no network, and no machine with connections", code="missing", hint=hint
            )
    return own


async def _open_at(places: Sequence[NetworkPaths]) -> list[FlowStatistics]:
    found: list[FlowStatistics] = []
    for place in places:
        sock = reach(place)
        if sock is not None:
            control = NetworkControl(sock)
            try:
                found += await read_flows(control)
            finally:
                control.close()
    return found


def _print(flows: Sequence[FlowStatistics]) -> None:
    now = time.time()
    rows = [
        (
            quoted(flow.guest),
            flow.protocol,
            "in" if flow.inbound else "out",
            str(flow.guest_port),
            _end(flow),
            size(flow.sent),
            size(flow.received),
            f"{max(0.0, now - flow.since):.0f} s",
        )
        for flow in sorted(flows, key=lambda flow: (flow.guest, flow.since))
    ]
    print_table(("MACHINE", "PROTOCOL", "WAY", "PORT", "OTHER END", "SENT", "RECEIVED", "FOR"), rows)
