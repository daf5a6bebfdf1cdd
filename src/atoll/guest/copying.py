"""Copying files and directories between the host and a guest.

Names follow ``cp -r``, in both directions: where the target exists as a directory the source goes into it
under its own name, else it becomes the target, whose parent must exist. A source whose last name is ``.`` or
``..`` has no name of its own: what is in it is copied. A source that is itself a symbolic link is followed,
as by ``cp -rH``, and keeps the link's name; those inside it are copied as links.

The disk is worked on in a thread of each copy's own, one piece of a tree at a time, while the event loop goes
on. The guest is not trusted: ``_Writer`` says what keeps it inside the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from atoll.errors import GuestError, ProtocolError, StoreError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.guest import tree
from atoll.guest.agent import Agent
from atoll.guest.channel import LinkResetError, Stream
from atoll.guest.messages import Empty, Written
from atoll.guest.tree import Directory, Entry, Fifo, File, FileEnded, Limits, Link, Symlink, shown

__all__ = ["Copied", "receive_tree", "send_tree"]

T = TypeVar("T")

#: Bytes of a tree that are read from disk at once.
_BATCH = 524_288
#: Least room for content in a batch; with less the batch is sent.
_LEAST = 4096
#: Most bytes that a guest may say at the end of a tree.
_MAX_END = 4096
#: Seconds between two events about the progress.
_PACE = 0.1

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TIME = (1 << 63) - 1
_DEFAULTS = Limits()

_AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        entries: files, directories and links.
        bytes: content, without holes.
        elapsed: seconds.
    """

    entries: int
    bytes: int
    elapsed: float


async def send_tree(
    agent: Agent,
    source: _AnyPath,
    target: str,
    *,
    user: str | None = None,
    emit: Emit = ignore,
    limits: Limits = _DEFAULTS,
) -> Copied:
    """Copy a file or directory of the host into a guest.

    Holes, hard links, fifos, modes and times are kept; sockets and devices are left out, as is what vanishes
    meanwhile.

    Args:
        agent: of the guest.
        source: on the host; as text it may end in ``/`` or ``/.``, which a ``Path`` cannot.
        target: absolute path in the guest.
        user: who shall own all in the guest, as for a command; without it the owners' numbers are kept.
        emit: told of the progress, the task ``copy``.
        limits: beyond them nothing is sent any more.

    Raises:
        StoreError: ``source`` does not exist or cannot be read.
        ProtocolError: ``protocol.too_large``: it exceeds ``limits``.
        GuestError: the guest could not write it; what was complete stays.
        ChannelError: the link broke.
    """
    began = time.monotonic()
    path = os.fsencode(source)
    name, reader = shown(path), _Reader(path, limits)
    with _explained(name, "the directory that it goes into must exist in the guest: make it first"):
        async with _thread(reader.close) as run:
            total = await run(reader.open)
            with task(emit, "copy", f"Copying {name}", total=total, unit="bytes"):
                stream = agent.write_tree(target, _own_name(path), user=user)
                try:
                    await _send(stream, reader, run, _Progress(emit))
                finally:
                    stream.cancel()
    return Copied(reader.entries, reader.bytes, time.monotonic() - began)


async def receive_tree(
    agent: Agent,
    source: str,
    target: _AnyPath,
    *,
    archive: bool = False,
    emit: Emit = ignore,
    limits: Limits = _DEFAULTS,
) -> Copied:
    """Copy a file or directory of a guest to the host.

    Existing files are replaced when the new ones are complete, existing directories are merged into and keep
    their modes and times. After a failure the file that was being written is gone, what was complete stays.

    Args:
        agent: of the guest.
        source: absolute path in the guest; ``/`` or ``/.`` may stand behind it.
        target: on the host.
        archive: set modes as they are in the guest, whatever the umask is, also of directories that existed;
            as root keep owners and set-id bits, too.
        emit: told of the progress, the task ``copy``.
        limits: what the guest may send at most.

    Raises:
        StoreError: it cannot be written here: ``store.full``, ``store.unwritable``, ``store.io``,
            ``store.missing`` if the directory for it does not exist.
        ProtocolError: the guest sent no proper tree, or (``protocol.too_large``) one beyond ``limits``.
        GuestError: the guest cannot read it.
        ChannelError: the link broke.
    """
    began = time.monotonic()
    path = os.fsencode(source)
    name = shown(path)
    writer = _Writer(os.fsencode(target), _own_name(path), archive=archive, limits=limits)
    with _explained(name, "check the path in the guest"):
        async with _thread(writer.close) as run:
            await run(writer.open)
            stream = agent.read_tree(source)
            try:
                await stream.reply(Empty)
                total = await run(writer.write, await stream.read())  # it has the size of a single file
                with task(emit, "copy", f"Copying {name}", total=total, unit="bytes"):
                    await _receive(stream, writer, run, _Progress(emit))
            finally:
                stream.cancel()
    return Copied(writer.entries, writer.bytes, time.monotonic() - began)


async def _send(stream: Stream, reader: _Reader, run: _Run, progress: _Progress) -> None:
    await stream.reply(Empty)
    while batch := await run(reader.read):
        await stream.write(batch)
        progress.tell(reader.entries, reader.bytes)
    await stream.write(b"", end=True)
    await _read_end(stream)


async def _receive(stream: Stream, writer: _Writer, run: _Run, progress: _Progress) -> None:
    while data := await stream.read():
        await run(writer.write, data)
        progress.tell(writer.entries, writer.bytes)
    await run(writer.finish)


class _Progress:
    """Tells how far a copy is, not too often."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._due = time.monotonic() + _PACE

    def tell(self, entries: int, done: int) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _PACE
            note = f"{done / (1 << 20):.1f} MiB, {entries} entries"
            self._emit(TaskAdvanced(task="copy", done=done, note=note))


@contextlib.contextmanager
def _explained(name: str, hint: str) -> Iterator[None]:
    """Say what was being copied, and what to do, where the error does not."""
    try:
        yield
    except LinkResetError as error:
        message = f"copying {name} was cut off: {error.message}"
        raise LinkResetError(message, hint="copy it again") from error
    except GuestError as error:
        if error.hint or error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            raise
        raise GuestError(
            error.message, reason=error.reason, errno=error.errno, stage=error.stage, hint=hint
        ) from error


class _Run:
    """Runs functions in one thread, one after the other."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._pool, function, *arguments)


@asynccontextmanager
async def _thread(last: Callable[[], None]) -> AsyncIterator[_Run]:
    """A thread for the work on disk. ``last`` is done in the end whatever happens, behind what still runs.

    The loop's own threads are not taken: a slow disk would hold up everybody else who uses them.
    """
    pool = ThreadPoolExecutor(1, "atoll-copy")
    try:
        yield _Run(pool)
    finally:
        ending = pool.submit(last)
        pool.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(ending))


async def _read_end(stream: Stream) -> Written:
    """What the guest says when it has written all."""
    said = b""
    while data := await stream.read():
        said += data
        if len(said) > _MAX_END:
            break
    try:
        return msgspec.msgpack.decode(said[:_MAX_END], type=Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed end of a tree from the guest: {error}") from error


def _own_name(path: bytes) -> bytes:
    """What a source is called inside an existing directory; empty if its content goes there."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in {b".", b".."} else name


def _failure(error: OSError, verb: str, name: str) -> StoreError:
    """Turn an error of the disk into one that says what to do."""
    reason = f"cannot {verb} {name}: {error.strerror}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(reason, code="full", hint="free some space, or choose another place")
        case errno.ENOENT:
            return StoreError(reason, code="missing", hint="check the path")
        case errno.EISDIR | errno.ENOTDIR | errno.ELOOP | errno.EEXIST | errno.ENOTEMPTY:
            return StoreError(reason, code="io", hint="something else has this name: move it away")
        case errno.EACCES | errno.EPERM | errno.EROFS if verb == "write":
            return StoreError(reason, code="unwritable", hint="choose a place that this user may write")
        case _:
            return StoreError(reason, code="io")


class _Level(NamedTuple):
    """A directory that is being read: its descriptor, its path in the tree, the names still to come."""

    fd: int
    path: bytes
    names: Iterator[bytes]


class _Reader:
    """Reads a tree from the disk, piece by piece, as section 8 has it.

    Below the top each name is opened relative to its directory and never through a symbolic link, so that a
    tree which changes meanwhile leads nowhere else.

    Attributes:
        entries: records made so far.
        bytes: content read so far.
    """

    def __init__(self, top: bytes, limits: Limits) -> None:
        self.entries = 0
        self.bytes = 0
        self._top = top
        self._limits = limits
        self._buffer = memoryview(bytearray(_BATCH + 2 * tree.MAX_RECORD))
        self._fill = 0
        self._levels: list[_Level] = []
        self._links: dict[tuple[int, int], bytes] = {}
        self._path = b""
        self._steps = self._walk()

    def open(self) -> int:
        """See that the top is there; the size of a file, else 0."""
        with self._named():
            status = os.stat(self._top)
            if stat.S_ISREG(status.st_mode):
                return status.st_size
            if not (stat.S_ISDIR(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
                raise OSError(errno.EINVAL, "it is neither a file nor a directory")
            return 0

    def read(self) -> memoryview:
        """The next piece, empty at the end. The memory is used again by the next call."""
        self._fill = 0
        with self._named():
            next(self._steps, None)
        return self._buffer[: self._fill]

    def close(self) -> None:
        """Close what is open."""
        self._steps.close()
        while self._levels:
            os.close(self._levels.pop().fd)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = b"/".join(filter(None, (self._top.rstrip(b"/"), self._path)))
            raise _failure(error, "read", shown(path)) from error

    def _walk(self) -> Generator[None]:
        """Fill the buffer; each step is a full one."""
        yield from self._visit(None, self._top, b"")
        while self._levels:
            level = self._levels[-1]
            name = next(level.names, None)
            if name is None:
                os.close(self._levels.pop().fd)
                continue
            path = level.path + b"/" + name if level.path else name
            with contextlib.suppress(FileNotFoundError):  # it has vanished
                yield from self._visit(level.fd, name, path)

    def _visit(self, directory: int | None, name: bytes, path: bytes) -> Iterator[None]:
        self._path = path
        status = os.stat(name, dir_fd=directory, follow_symlinks=directory is None)
        match stat.S_IFMT(status.st_mode):
            case stat.S_IFREG:
                yield from self._visit_file(directory, name, path)
            case stat.S_IFDIR:
                self._enter(directory, name, path)
            case stat.S_IFLNK:
                self._put_entry(Symlink, path, status, target=os.readlink(name, dir_fd=directory))
            case stat.S_IFIFO:
                self._put_entry(Fifo, path, status)
        if self._fill >= _BATCH:
            yield

    def _visit_file(self, directory: int | None, name: bytes, path: bytes) -> Iterator[None]:
        fd = self._open(directory, name, _READ)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ESTALE, "it changed while it was read")
            identity = status.st_dev, status.st_ino
            first = self._links.get(identity)
            if first is not None:
                self._put_entry(Link, path, status, target=first)
                return
            if status.st_nlink > 1:
                self._links[identity] = path
            self._put_entry(File, path, status, size=status.st_size)
            yield from self._put_content(fd, status)
            self._put(tree.segment(status.st_size, 0))
        finally:
            os.close(fd)

    @staticmethod
    def _open(directory: int | None, name: bytes, flags: int) -> int:
        """Open something in a directory, or the top, which alone may be a symbolic link."""
        return os.open(name, flags if directory is None else flags | os.O_NOFOLLOW, dir_fd=directory)

    def _enter(self, directory: int | None, name: bytes, path: bytes) -> None:
        fd = self._open(directory, name, _OPEN_DIRECTORY)
        try:
            self._put_entry(Directory, path, os.fstat(fd))
            names = sorted(map(os.fsencode, os.listdir(fd)))
        except BaseException:
            os.close(fd)
            raise
        self._levels.append(_Level(fd, path, iter(names)))

    def _put_entry(self, kind: type[Entry], path: bytes, status: os.stat_result, **more: object) -> None:
        if self.entries >= self._limits.entries:
            message = f"there are more than {self._limits.entries} entries"
            raise ProtocolError(message, code="too_large")
        if path.count(b"/") >= self._limits.depth:
            message = f"{shown(path)}: more than {self._limits.depth} directories deep"
            raise ProtocolError(message, code="too_large")
        self.entries += 1
        entry = kind(
            path=path,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=max(-_MAX_TIME, min(status.st_mtime_ns, _MAX_TIME)),
            **more,
        )
        self._put(tree.encode(entry))

    def _put(self, data: bytes) -> None:
        self._buffer[self._fill : self._fill + len(data)] = data
        self._fill += len(data)

    def _put_content(self, fd: int, status: os.stat_result) -> Iterator[None]:
        """The parts of a file that hold data, up to where it ended when it was opened or ends now."""
        for start, end in _extents(fd, status):
            at = start
            while at < end:
                if self._fill + _LEAST > _BATCH:
                    yield
                content = self._fill + tree.SEGMENT_HEADER
                room = self._buffer[content : content + min(end - at, _BATCH - self._fill)]
                count = os.preadv(fd, [room], at)
                if not count:
                    return
                self._put(tree.segment(at, count))
                self._fill += count
                self.bytes += count
                at += count


def _extents(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where a file holds data: pairs of start and end."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that the rest is a hole
                raise
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield min(start, size), at


@dataclass
class _Open:
    """A file that is being written beside its final place."""

    entry: File
    fd: int
    directory: int
    temporary: bytes
    name: bytes
    end: int = 0

    def close(self) -> None:
        """Close it once; some file systems tell only now that they could not write it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Made(NamedTuple):
    """A directory whose mode and time are set in the end."""

    entry: Directory
    mode: int


class _Writer:
    """Writes the tree that a guest sends to the disk.

    The guest may send what it likes; nothing of it leads out of the target:

    - ``tree.Decoder`` lets through only paths below the top, each in a directory that came before it;
    - directories are opened one by one, each relative to the one above and never through a symbolic link
      (``O_NOFOLLOW``), whether they were made here or existed;
    - files, links and fifos are made under a name that the guest cannot know, in the open directory
      (``O_EXCL``), and renamed to their own: what had that name is replaced and never written through;
    - a hard link is made to a file that came in this tree, found in the same way, and follows no symbolic
      link;
    - there are no devices, and without ``archive`` no set-id bits, no owners and no more rights than the
      umask allows.

    Attributes:
        entries: records written so far.
        bytes: content written so far.
    """

    def __init__(self, target: bytes, name: bytes, *, archive: bool, limits: Limits) -> None:
        self.entries = 0
        self.bytes = 0
        self._target = target  # for messages: what the top becomes
        self._name = name
        self._archive = archive
        self._owners = archive and os.geteuid() == 0
        self._decoder = tree.Decoder(limits)
        self._base = -1  # the directory that the top is in, or that is the top if it has no name
        self._fds: list[int] = []  # the top and what leads to the directory that was used last
        self._names: list[bytes] = []
        self._file: _Open | None = None
        self._made: list[_Made] = []
        self._path = b""
        self._temporary = b".atoll-" + os.urandom(8).hex().encode()
        self._total = 0

    def open(self) -> None:
        """Find the place on the host."""
        if os.path.isdir(self._target):
            parent = self._target
            self._target = os.path.join(parent, self._name)
        else:
            parent, self._name = os.path.split(self._target.rstrip(b"/"))
            parent = parent or b"."
        try:
            self._base = os.open(parent, _OPEN_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            name = shown(parent)
            message = f"cannot write {shown(self._target)}: {name} is no directory"
            raise StoreError(message, code="missing", hint=f"make it first: mkdir -p {name}") from error
        except OSError as error:
            raise _failure(error, "write", shown(self._target)) from error

    def write(self, data: bytes) -> int:
        """Write the next piece; the size of the tree if it is a single file, else 0."""
        with self._named():
            for event in self._decoder.feed(data):
                if isinstance(event, tree.Content):
                    self._put_content(event)
                elif isinstance(event, FileEnded):
                    self._end_file()
                else:
                    self._path = event.path
                    self._put_entry(event)
                    self.entries += 1
        return self._total

    def finish(self) -> None:
        """Nothing follows: set what is left to be set of the directories, the deepest first."""
        self._decoder.finish()
        with self._named():
            for entry, mode in reversed(self._made):
                self._path = entry.path
                fd = self._directory(entry.path)
                self._set_owner(fd, entry)
                os.fchmod(fd, mode)
                os.utime(fd, ns=(entry.mtime, entry.mtime))

    def close(self) -> None:
        """Remove what is half-written and close all."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(file.temporary, dir_fd=file.directory)
        for fd in (self._base, *self._fds):
            if fd >= 0:
                os.close(fd)
        self._base = -1
        self._fds.clear()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = b"/".join(filter(None, (self._target.rstrip(b"/"), self._path)))
            raise _failure(error, "write", shown(path)) from error

    def _put_entry(self, entry: Entry) -> None:
        if isinstance(entry, Directory):
            self._put_directory(entry)
        elif not entry.path and not self._name:
            raise ProtocolError("the guest sent something else than the content of a directory")
        elif isinstance(entry, File):
            self._begin_file(entry)
        else:
            self._put_link(entry)

    def _put_directory(self, entry: Directory) -> None:
        """Make a directory, or use the one that is there, and be in it."""
        if not entry.path and not self._name:
            self._fds.append(os.dup(self._base))
            made = False
        else:
            parent, name = self._place(entry.path)
            made = True
            try:
                os.mkdir(name, (entry.mode | 0o700) & 0o777, dir_fd=parent)
            except FileExistsError:
                made = False
            self._fds.append(os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent))
            if entry.path:
                self._names.append(name)
        if self._archive:
            self._made.append(_Made(entry, self._allowed(entry)))
        elif made:
            granted = stat.S_IMODE(os.fstat(self._fds[-1]).st_mode)  # less the umask
            self._made.append(_Made(entry, granted & (entry.mode | 0o7000)))

    def _begin_file(self, entry: File) -> None:
        if not entry.path:
            self._total = entry.size
        directory, name = self._place(entry.path)
        fd = os.open(self._temporary, _CREATE, entry.mode & 0o777, dir_fd=directory)
        self._file = _Open(entry, fd, directory, self._temporary, name)

    def _put_content(self, content: tree.Content) -> None:
        assert self._file is not None
        offset, data = content
        while data:
            count = os.pwrite(self._file.fd, data, offset)
            offset, data = offset + count, data[count:]
            self.bytes += count
        self._file.end = offset

    def _end_file(self) -> None:
        file = self._file
        assert file is not None
        if file.end < file.entry.size:
            os.ftruncate(file.fd, file.entry.size)
        if self._archive:
            self._set_owner(file.fd, file.entry)
            os.fchmod(file.fd, self._allowed(file.entry))
        os.utime(file.fd, ns=(file.entry.mtime, file.entry.mtime))
        file.close()
        os.rename(file.temporary, file.name, src_dir_fd=file.directory, dst_dir_fd=file.directory)
        self._file = None

    def _put_link(self, entry: Entry) -> None:
        """Make a link or fifo beside its place and move it there."""
        source = os.dup(self._place(entry.target)[0]) if isinstance(entry, Link) else -1
        directory, name = self._place(entry.path)
        temporary = self._temporary
        try:
            if isinstance(entry, Link):
                os.link(
                    os.path.basename(entry.target),
                    temporary,
                    src_dir_fd=source,
                    dst_dir_fd=directory,
                    follow_symlinks=False,
                )
            else:
                self._make_special(entry, directory)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        finally:
            if source >= 0:
                os.close(source)

    def _make_special(self, entry: Entry, directory: int) -> None:
        """A symbolic link or fifo under the temporary name."""
        temporary = self._temporary
        if isinstance(entry, Symlink):
            os.symlink(entry.target, temporary, dir_fd=directory)
        else:
            os.mkfifo(temporary, entry.mode & 0o777, dir_fd=directory)
        if self._owners:
            os.chown(temporary, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        if self._archive and isinstance(entry, Fifo):
            fd = os.open(
                temporary, _READ | os.O_NOFOLLOW, dir_fd=directory
            )  # chmod(2) would follow what it was swapped for
            try:
                os.fchmod(fd, self._allowed(entry))
            finally:
                os.close(fd)
        os.utime(temporary, ns=(entry.mtime, entry.mtime), dir_fd=directory, follow_symlinks=False)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """The open directory that an entry belongs to, and its name there. Good until the next call."""
        if not path:
            return self._base, self._name
        directory, _, name = path.rpartition(b"/")
        return self._directory(directory), name

    def _directory(self, path: bytes) -> int:
        """A directory of the tree, opened from the top name by name; what leads to it stays open."""
        names = path.split(b"/") if path else []
        if names != self._names:
            while self._names != names[: len(self._names)]:
                self._names.pop()
                os.close(self._fds.pop())
            for name in names[len(self._names) :]:
                fd = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fds[-1])
                self._fds.append(fd)
                self._names.append(name)
        return self._fds[-1]

    def _allowed(self, entry: Entry) -> int:
        """The mode of an entry in an archive: set-id bits only together with their owner."""
        return entry.mode if self._owners else entry.mode & 0o777

    def _set_owner(self, fd: int, entry: Entry) -> None:
        if self._owners:
            os.fchown(fd, entry.uid, entry.gid)
