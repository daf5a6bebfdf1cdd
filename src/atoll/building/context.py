"""The directory that an image is built of: what is in it, and what of that the builder lacks.

The builder keeps a copy of each directory, and beside it what each file was when it was sent. A file is sent
again if its size, time, inode or the time of its last change (``st_ctime``, which nobody can set) is another.
What was changed just before it was looked at is sent in any case, as its times might not tell of one change
more.

Each directory and file is opened below the directory that it was found in and through no link (openat(2),
``O_NOFOLLOW``), so nothing outside is read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.building.ignoring import Ignored, parse
from atoll.errors import BuildError
from atoll.image.local.tarheaders import DIRECTORY, END, FILE, SYMLINK, Entry, header, padding

__all__ = ["Item", "Plan", "decode", "encode", "ignored_by", "key_of", "plan", "survey", "tar"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: Bytes that are read at once.
_CHUNK = 1 << 20

#: Before a look, ns, in which a change leaves the times that a later one would; of a file system that has
#: whole seconds only.
_RECENT, _RECENT_COARSE = 100_000_000, 2_000_000_000

#: Bytes of a file of patterns.
_MOST_IGNORED = 1 << 20


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A file, directory or symbolic link of a context.

    Attributes:
        path: below the context, without a slash at either end.
        kind: ``f``, ``d`` or ``l``.
        mode: permissions with setuid, setgid and sticky.
        size: of a file, bytes.
        mtime: ns since the epoch.
        link: what a link says.
        stamp: inode and time of the last change, ns; zeros if the latter was but just.
    """

    path: bytes
    kind: str
    mode: int
    size: int
    mtime: int
    link: bytes = b""
    stamp: tuple[int, int] = (0, 0)


class Plan(msgspec.Struct, frozen=True):
    """How a copy becomes what a context is.

    Attributes:
        removed: paths that go, with what is below.
        sent: what is written, directories before what they hold.
    """

    removed: tuple[bytes, ...]
    sent: tuple[Item, ...]


def key_of(directory: Path) -> str:
    """What a context is called in the builder."""
    return hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:24]


def ignored_by(directory: Path, containerfile: Path | None) -> Ignored:
    """What the file of patterns that holds for a build leaves out.

    The one that is called as the Containerfile with ``.containerignore`` or ``.dockerignore`` behind it holds
    before those of the context.

    Raises:
        BuildError: ``build.ignore``: it cannot be read, or is malformed.
    """
    names = (".containerignore", ".dockerignore")
    own = [containerfile.with_name(containerfile.name + name) for name in names] if containerfile else []
    for place in (*own, *(directory / name for name in names)):
        try:
            with place.open("rb") as file:
                data = file.read(_MOST_IGNORED + 1)
            if len(data) > _MOST_IGNORED:
                raise BuildError(f"{place} is too large", code="ignore", hint="it has 1 MiB at most")
            return parse(data.decode(errors="surrogateescape"), name=str(place))
        except FileNotFoundError:
            continue
        except OSError as error:
            message = f"cannot read {place}: {error.strerror}"
            raise BuildError(message, code="ignore", hint="make it readable") from error
    return Ignored()


def survey(directory: Path, ignored: Ignored, *, now: int) -> tuple[list[Item], list[bytes]]:
    """What of a directory belongs to a context, and paths of what cannot: sockets, pipes, devices.

    Args:
        directory: it.
        ignored: what is left out.
        now: ns since the epoch.

    Raises:
        BuildError: ``build.context``: it cannot be read.
    """
    looked = _Look(ignored, now)
    try:
        root = os.open(directory, _DIRECTORY & ~os.O_NOFOLLOW)
        try:
            looked.below(root, b"")
        finally:
            os.close(root)
    except OSError as error:
        place = os.fsdecode(os.path.join(os.fsencode(directory), looked.at))
        raise _unreadable(place, error) from error
    return looked.items, looked.strange


def _unreadable(place: str, error: OSError) -> BuildError:
    hint = "make it readable, or leave it out with a line in .dockerignore"
    return BuildError(f"cannot read {place}: {error.strerror}", code="context", hint=hint)


class _Look:
    """One look at a directory."""

    def __init__(self, ignored: Ignored, now: int) -> None:
        self.items: list[Item] = []
        self.strange: list[bytes] = []
        self.at = b""
        self._ignored = ignored
        self._now = now

    def below(self, fd: int, prefix: bytes) -> None:
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            self.at = prefix + name
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._take(fd, name, self.at, status)
            except FileNotFoundError:  # it went away meanwhile
                continue

    def _take(self, fd: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        text = os.fsdecode(path)
        excluded = bool(self._ignored) and self._ignored.excludes(text)
        if stat.S_ISDIR(status.st_mode):
            if not excluded or self._ignored.may_keep_below(text):
                self._directory(fd, name, path, status, excluded=excluded)
        elif excluded:
            return
        elif stat.S_ISREG(status.st_mode):
            self.items.append(_item(path, "f", status, stamp=self._stamp(status)))
        elif stat.S_ISLNK(status.st_mode):
            self.items.append(_item(path, "l", status, link=os.readlink(name, dir_fd=fd)))
        else:
            self.strange.append(path)

    def _directory(
        self, fd: int, name: bytes, path: bytes, status: os.stat_result, *, excluded: bool
    ) -> None:
        before = len(self.items)
        self.items.append(_item(path, "d", status))
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
        try:
            self.below(inner, path + b"/")
        finally:
            os.close(inner)
        if excluded and len(self.items) == before + 1:
            self.items.pop()  # nothing of it was taken in again

    def _stamp(self, status: os.stat_result) -> tuple[int, int]:
        coarse = status.st_ctime_ns % 1_000_000_000 == 0
        if status.st_ctime_ns > self._now - (_RECENT_COARSE if coarse else _RECENT):
            return (0, 0)
        return (status.st_ino, status.st_ctime_ns)


def _item(
    path: bytes, kind: str, status: os.stat_result, *, link: bytes = b"", stamp: tuple[int, int] = (0, 0)
) -> Item:
    mode = stat.S_IMODE(status.st_mode) if kind != "l" else 0o777
    size = status.st_size if kind == "f" else 0
    return Item(path, kind, mode, size, status.st_mtime_ns, link, stamp)


def plan(before: Sequence[Item], now: Sequence[Item]) -> Plan:
    """How a copy that is as ``before`` becomes as ``now``; both in the order of a survey."""
    known = {item.path: item for item in before}
    wanted = {item.path: item for item in now}
    removed: list[bytes] = []
    gone: set[bytes] = set()
    for item in before:
        other = wanted.get(item.path)
        if _parents(item.path) & gone:
            gone.add(item.path)
        elif other is None or ("d" in {item.kind, other.kind} and item.kind != other.kind):
            removed.append(item.path)
            gone.add(item.path)
    touched: set[bytes] = set()
    for path in removed:
        touched |= _parents(path)
    sent: set[bytes] = set()
    for item in now:
        if item.path in gone or not _same(known.get(item.path), item):
            sent.add(item.path)
            touched |= _parents(item.path)
    # Writing into a directory changes its date, which is sent once more.
    return Plan(tuple(removed), tuple(item for item in now if item.path in sent or item.path in touched))


def _parents(path: bytes) -> set[bytes]:
    parts = path.split(b"/")
    return {b"/".join(parts[:count]) for count in range(1, len(parts))}


def _same(known: Item | None, item: Item) -> bool:
    return known == item and (item.kind != "f" or item.stamp != (0, 0))


def encode(items: Sequence[Item]) -> bytes:
    """What is kept beside a copy."""
    return msgspec.msgpack.encode(items)


def decode(data: bytes) -> list[Item]:
    """What was kept beside a copy; nothing, so that all is sent, if it cannot be read."""
    try:
        return msgspec.msgpack.decode(data, type=list[Item])
    except msgspec.MsgspecError:
        return []


_KINDS: Mapping[str, bytes] = {"f": FILE, "d": DIRECTORY, "l": SYMLINK}


def tar(directory: Path, items: Sequence[Item]) -> Iterator[bytes]:
    """An archive of some files of a context, owned by root.

    What has gone meanwhile is left out, and what has become shorter ends with zeros.

    Raises:
        BuildError: ``build.context``: one cannot be read.
    """
    for item in items:
        name = item.path + (b"/" if item.kind == "d" else b"")
        entry = Entry(
            name=name,
            kind=_KINDS[item.kind],
            mode=item.mode,
            size=item.size,
            mtime=item.mtime,
            link=item.link,
        )
        if item.kind != "f":
            yield header(entry)
            continue
        try:
            fd = _open(directory, item.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unreadable(os.fsdecode(item.path), error) from error
        try:
            yield header(entry)
            yield from _content(fd, item)
        finally:
            os.close(fd)
    yield END


def _open(directory: Path, path: bytes) -> int:
    """A file below a directory, through no link."""
    *parents, name = path.split(b"/")
    here = os.open(directory, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        fd = os.open(name, _FILE, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError
    return fd


def _content(fd: int, item: Item) -> Iterator[bytes]:
    left = item.size
    while left:
        try:
            data = os.read(fd, min(left, _CHUNK))
        except OSError as error:
            raise _unreadable(os.fsdecode(item.path), error) from error
        data = data or bytes(min(left, _CHUNK))
        left -= len(data)
        yield data
    if rest := padding(item.size):
        yield bytes(rest)
