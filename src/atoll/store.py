"""Durable, atomic, locked state on disk.

A file or directory is written beside its final place, flushed, renamed, and the directory that holds the
name is flushed too: after a crash either the old state is there or the new one (rename(2), fsync(2)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from atoll.errors import StoreError

__all__ = [
    "Stamp",
    "copy_data",
    "create",
    "data_ranges",
    "hold",
    "hold_directory",
    "is_held",
    "lock",
    "new_file",
    "publish",
    "read_record",
    "refusing",
    "remove_tree",
    "replace_by_link",
    "require_space",
    "staging",
    "stamp",
    "sync_directory",
    "write_file",
    "write_record",
]

T = TypeVar("T")


class Stamp(msgspec.Struct, frozen=True):
    """A file as it was: size in bytes, date in ns since the epoch."""

    size: int
    mtime_ns: int


#: Names that begin so are being written; a crash may leave them, the next writer of the name sweeps them.
_PARTIAL = ".partial-"

_ELSEWHERE = "free some space, or choose another place with ATOLL_DATA_DIR and ATOLL_CACHE_DIR"

#: Bytes copied at once: they stay in the processor's own cache between being read and being written.
_COPY_STEP = 256 << 10

#: Threads that copy. More wait for one another, as only one writes at a time.
_COPIERS = 2

#: Seconds after which a partial file has no writer any more; writing a record takes milliseconds.
_ABANDONED = 3600.0

#: For renameat2(2): paths are relative to the working directory; fail if the other is there; swap the two.
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


def _random_suffix() -> str:
    return os.urandom(4).hex()


def sync_directory(path: Path) -> None:
    """Make what was renamed, made or removed in a directory durable (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse(error: OSError, path: Path) -> StoreError:
    """Turn the errors that users meet into ones that say what to do."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = _ELSEWHERE
        return StoreError(f"no space left to write {path}", code="full", hint=hint)
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
        hint = "make it writable, or choose another place with ATOLL_DATA_DIR and ATOLL_CACHE_DIR"
        return StoreError(f"cannot write {path}: {error.strerror}", code="unwritable", hint=hint)
    return StoreError(f"cannot write {path}: {error.strerror}", code="io")


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what fails in the block, where ``path`` is written by other means than these, into an error.

    Raises:
        StoreError: as ``write_file``, instead of ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise _refuse(error, path) from error


def _partial(path: Path) -> Path:
    return path.with_name(f"{_PARTIAL}{path.name}-{_random_suffix()}")


def _sweep(path: Path, *, older_than: float = 0.0) -> None:
    """Remove what killed writers of ``path`` left beside it, if it is ``older_than`` so many seconds."""
    leftover = re.compile(re.escape(f"{_PARTIAL}{path.name}-") + "[0-9a-f]{8}")
    for entry in os.scandir(path.parent):
        if leftover.fullmatch(entry.name):
            with contextlib.suppress(FileNotFoundError):  # another writer swept it
                if time.time() - entry.stat(follow_symlinks=False).st_mtime >= older_than:
                    remove_tree(Path(entry.path))


def write_file(path: Path, data: bytes, *, mode: int = 0o644, parents: bool = True) -> None:
    """Replace ``path`` by ``data`` at once and for good.

    Args:
        path: the file.
        data: its content.
        mode: its permissions.
        parents: make its directory, too, if that is missing.

    Raises:
        StoreError: ``store.full``, ``store.unwritable`` or ``store.io``; the former content stands.
    """
    partial = _partial(path)
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path, older_than=_ABANDONED)
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise _refuse(error, path) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that has its name when the block has ended, for its owner's eyes, and all of it on its disk.

    Until then it has none, and nothing is left of it whoever is killed (open(2), ``O_TMPFILE``); where the
    file system cannot do that it has a hidden one. Of two that race for a name one wins.

    Raises:
        StoreError: ``store.already_exists``, at the beginning or at the end; else as ``write_file``.
    """
    if os.path.lexists(path):
        raise _taken(path)
    partial = None
    try:
        with refusing(path):
            try:
                fd = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
                _sweep(path, older_than=_ABANDONED)
                partial = _partial(path)
                fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                yield file
                file.flush()
                os.fsync(fd)
                _name(fd, partial, path)
            sync_directory(path.absolute().parent)
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _taken(path: Path) -> StoreError:
    return StoreError(f"{path} exists already", code="already_exists", hint="choose another name")


def _name(fd: int, partial: Path | None, path: Path) -> None:
    """Give an open file a name that nobody else has (linkat(2)). Raises ``StoreError``; ``OSError``."""
    try:
        if partial is None:
            directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # a directory makes Python call linkat(2), which follows the link that this name is
                os.link(str(fd), path, src_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(directory)
            return
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            _move(partial, path)  # the file system has no links
    except FileExistsError as error:
        raise _taken(path) from error


def write_record(path: Path, record: msgspec.Struct, *, parents: bool = True) -> None:
    """Write ``record`` as JSON that a person can read. Raises as ``write_file``."""
    text = msgspec.json.format(msgspec.json.encode(record, enc_hook=_plain), indent=2) + b"\n"
    write_file(path, text, parents=parents)


def replace_by_link(path: Path, source: Path) -> None:
    """Replace ``path`` by another name of ``source``, at once and for good; on a full disk, too.

    Neither may be written in place afterwards. Where the file system has no links it is copied.

    Raises:
        StoreError: as ``write_file``; the former content stands.
    """
    partial = _partial(path)
    try:
        if path.exists() and path.samefile(source):  # rename(2) would do nothing, and leave the third name
            return
        try:
            partial.hardlink_to(source)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}:
                raise
            write_file(path, source.read_bytes(), parents=False)
            return
        partial.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _refuse(error, path) from error


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record that ``write_record`` wrote.

    A record has a ``schema`` field; one from a newer Atoll is told apart from a corrupt one. Neither is
    touched. One from an older Atoll goes through ``kind.MIGRATIONS``: for each schema a function from its
    fields to those of the next; it is written anew when it is changed the next time.

    Raises:
        StoreError: ``store.missing``, ``store.corrupt``, ``store.newer`` or ``store.io``.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path} does not exist", code="missing") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", code="io") from error
    known = getattr(kind, "SCHEMA", 1)
    try:
        schema = msgspec.json.decode(data, type=_Versioned).schema
        if schema == known:
            return msgspec.json.decode(data, type=kind, dec_hook=_rich)
        if schema < known:
            return msgspec.convert(_migrated(msgspec.json.decode(data), schema, kind), kind, dec_hook=_rich)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = f"it was kept as it is; move {path} away to go on without it"
        raise StoreError(f"{path} is corrupt: {error}", code="corrupt", hint=hint) from error
    message = f"{path} has schema {schema}; this Atoll knows up to {known}"
    raise StoreError(message, code="newer", hint="use the newer Atoll that wrote it")


def _plain(value: Any) -> str:
    """Paths are records' only values that JSON does not have."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record cannot hold {value!r}")


def _rich(kind: type[Any], value: Any) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"{value!r} is no {kind.__name__}")


class _Versioned(msgspec.Struct):
    """What all records have."""

    schema: int = 1


def _migrated(fields: dict[str, Any], schema: int, kind: type[Any]) -> dict[str, Any]:
    """Carry a record of an older Atoll up to today's schema, one step after the other."""
    migrations = getattr(kind, "MIGRATIONS", {})
    for number in range(schema, getattr(kind, "SCHEMA", 1)):
        migration = migrations.get(number)
        if migration is None:
            raise msgspec.ValidationError(f"no way leads up from schema {number}")
        try:
            fields = {**migration(fields), "schema": number + 1}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise msgspec.ValidationError(f"it is none of schema {number}: {error!r}") from error
    return fields


@contextmanager
def lock(path: Path, *, wait: float | None = None, parents: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (flock(2)); the file stays, the kernel frees a dead holder's lock.

    Args:
        path: the lock's file, made if it is missing.
        wait: seconds to wait for another holder; None waits for ever.
        parents: make its directory, too, if that is missing. False for a lock of the directory that it lies
            in, which may be removed by another holder: it must not come back.

    Raises:
        StoreError: ``store.busy`` when the time is over; ``store.missing``: its directory is not there and is
            not to be made; or as ``write_file``.
    """
    deadline = None if wait is None else time.monotonic() + wait
    fd = _locked(path, deadline, parents=parents)
    while not _is_at(fd, path):  # what it stood for was removed or renamed while this waited
        os.close(fd)
        fd = _locked(path, deadline, parents=parents)
    try:
        yield
    finally:
        os.close(fd)


def _locked(path: Path, deadline: float | None, *, parents: bool) -> int:
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError as error:
        raise StoreError(f"{path.parent} does not exist", code="missing") from error
    except OSError as error:
        raise _refuse(error, path) from error
    try:
        if deadline is None:
            fcntl.flock(fd, fcntl.LOCK_EX)
        else:
            _flock_until(fd, path, deadline)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _flock_until(fd: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{path} is held by another process", code="busy", hint="try again"
                ) from None
            time.sleep(0.05)
        else:
            return


#: ``struct flock`` of Linux on 64-bit machines, for open file description locks (fcntl(2)).
_FLOCK = struct.Struct("hhqqi4x")


def hold(path: Path) -> int | None:
    """Take the lock on ``path`` that lives as long as a process; None if another holds it.

    It belongs to the open file (fcntl(2), "open file description locks"): a child that inherits the
    descriptor holds it too, and the kernel frees it when the last of them is gone.

    Returns:
        The descriptor; closing it gives the lock back.

    Raises:
        StoreError: as ``write_file``.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refuse(error, path) from error
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return None
        raise _refuse(error, path) from error
    return fd


@contextmanager
def hold_directory(path: Path) -> Iterator[bool]:
    """Lock a directory itself, by whatever name it goes meanwhile; whether nobody else had it locked.

    The kernel frees the lock when this process ends (flock(2)).

    Raises:
        StoreError: as ``write_file``.
    """
    with refusing(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _is_free(fd)
    finally:
        os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_undisturbed(path: Path) -> int:
    """Open a file that nobody changes in place as long as the descriptor is open, whoever removes its name.

    That is what whoever changes such a file agrees to (``change_alone``).

    Raises:
        FileNotFoundError: it is not there, or is just being changed, since it was removed by that name.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def change_alone(fd: int) -> bool:
    """Whether an open file may be changed in place: it has one name, and nobody reads it undisturbed.

    As long as the descriptor is open nobody begins to. Who can read it by another name is seen by that, and
    who has lost that name since by a lock (flock(2)).
    """
    return _is_free(fd) and os.fstat(fd).st_nlink == 1


def is_held(path: Path) -> bool:
    """Whether some process holds ``path`` by ``hold``. Asking disturbs nobody who wants it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(fd)


@contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A fresh directory beside ``parent/name`` to build in; gone afterwards unless ``publish`` moved it.

    The caller holds the lock of ``name``: what earlier, killed builders of the same name left is swept first.

    Raises:
        StoreError: as ``write_file``.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent / name)
        path = _partial(parent / name)
        path.mkdir()
    except OSError as error:
        raise _refuse(error, parent) from error
    try:
        yield path
    except OSError as error:
        raise _refuse(error, path) from error
    finally:
        remove_tree(path)


def publish(staged: Path, final: Path) -> None:
    """Flush every file of ``staged`` and rename it to ``final``, replacing what was there.

    Raises:
        StoreError: as ``write_file``; ``final`` is then as it was.
    """
    try:
        _sync_tree(staged)
        if final.exists():
            _exchange(staged, final)
            sync_directory(final.parent)
            remove_tree(staged)
        else:
            staged.rename(final)
            sync_directory(final.parent)
    except OSError as error:
        raise _refuse(error, final) from error


def create(staged: Path, final: Path) -> None:
    """``publish`` where nothing may be there yet: of two that race for a name one wins.

    Raises:
        StoreError: ``store.already_exists``; else as ``write_file``.
    """
    try:
        _sync_tree(staged)
        staged.rename(final)  # fails if ``final`` is a directory that is not empty (rename(2))
        sync_directory(final.parent)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise StoreError(f"{final.name} exists already", code="already_exists") from error
        raise _refuse(error, final) from error


def _sync_tree(staged: Path) -> None:
    for file in staged.rglob("*"):
        if file.is_file() and not file.is_symlink():
            sync_file(file)
    sync_directory(staged)


def sync_file(file: Path) -> None:
    """Wait until all of ``file`` is on its disk. Raises ``OSError``."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories at once, by renameat2(2); in two steps where the file system cannot."""
    if _rename(one, other, _RENAME_EXCHANGE) == 0:
        return
    aside = _partial(other)
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def _move(one: Path, other: Path) -> None:
    """Rename a file to a name that nobody has. Raises ``OSError``."""
    code = _rename(one, other, _RENAME_NOREPLACE)
    if code:
        raise OSError(code, os.strerror(code), str(other))


def _rename(one: Path, other: Path, flags: int) -> int:
    """renameat2(2): 0, or why not."""
    import ctypes  # noqa: PLC0415 - rarely needed

    libc = ctypes.CDLL(None, use_errno=True)
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if not hasattr(libc, "renameat2"):
        return errno.ENOSYS
    return ctypes.get_errno() if libc.renameat2(*names, flags) else 0


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def copy_data(source: int, target: int) -> None:
    """Copy a sparse file into one that is empty, without its holes. Raises ``OSError``.

    Several threads copy: writers of a file wait for one another (shmem and ext4 lock the inode), but while
    one writes, another reads. A fifth quicker than sendfile(2) in one thread.

    Args:
        source: a descriptor to read from.
        target: a descriptor to write to, perhaps on another file system.
    """
    os.truncate(target, os.fstat(source).st_size)
    pieces = _pieces(source)
    first = next(pieces, None)
    if first is None:
        return
    second = next(pieces, None)
    if second is None:  # no thread starts for what is small
        _copy_pieces(source, target, iter((first,)))
        return
    from atoll import threads  # noqa: PLC0415 - for large files only

    work = functools.partial(_copy_pieces, source, target)
    threads.share(work, itertools.chain((first, second), pieces), threads=_COPIERS)


def data_ranges(fd: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data from ``start`` to ``end``, bytes (lseek(2)). Raises ``OSError``."""
    at, limit = start, os.fstat(fd).st_size if end is None else end
    while at < limit:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if at >= limit:
            return
        stop = min(os.lseek(fd, at, os.SEEK_HOLE), limit)
        yield at, stop
        at = stop


def _pieces(fd: int) -> Iterator[tuple[int, int]]:
    """Where the data of a sparse file are: offset and length, of at most ``_COPY_STEP``."""
    for start, end in data_ranges(fd):
        for at in range(start, end, _COPY_STEP):
            yield at, min(_COPY_STEP, end - at)


def _copy_pieces(source: int, target: int, pieces: Iterator[tuple[int, int]]) -> None:
    room = memoryview(bytearray(_COPY_STEP))
    for start, length in pieces:
        at, end = start, start + length
        while at < end and (count := os.preadv(source, [room[: end - at]], at)):
            done = 0
            while done < count:
                done += os.pwritev(target, [room[done:count]], at + done)
            at += count


def require_space(directory: Path, count: int) -> None:
    """Refuse to begin what would fill the disk half-way: some programs hang when it is full.

    Args:
        directory: where it will be written; it need not exist yet.
        count: bytes that it takes.

    Raises:
        StoreError: ``store.full``.
    """
    place = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    state = os.statvfs(place)
    free = state.f_bavail * state.f_frsize
    if free < count:
        message = f"no space left to write {directory}: {free >> 20} of {count >> 20} MiB are free"
        raise StoreError(message, code="full", hint=_ELSEWHERE)


def remove_tree(path: Path) -> None:
    """Remove a directory with all it holds, or a file; nothing happens if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            import shutil  # noqa: PLC0415 - rarely needed, and slow to load

            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink()


def _unless_gone(_: object, __: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    """Go on where another process removes the same tree."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
