"""Writing a tree of files that a guest sends to the host's disk. The guest is not trusted."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from atoll.errors import ProtocolError, StoreError
from atoll.guest import tree
from atoll.guest.tree import Directory, Entry, Fifo, File, FileEnded, Limits, Link, Symlink, shown
from atoll.guest.tree_reader import disk_failure

__all__ = ["TreeWriter"]

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


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


class TreeWriter:
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
            raise disk_failure(error, "write", shown(self._target)) from error

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
            raise disk_failure(error, "write", shown(path)) from error

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
