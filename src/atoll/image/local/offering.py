"""What a user names that is at hand already, as an image that can be had: which of all forms it is.

The forms: an OCI layout as a directory or a tar; what ``docker save`` writes; a tar of a root file system; a
directory that is a root; standard input with any of these; an image or a container of a running engine.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from atoll import store
from atoll.errors import ImageError
from atoll.events import Emit, progress, task
from atoll.image.decompressing import CHUNK, HEAD, decompressed, kind_of
from atoll.image.local import engines, files, layout, saved, walking
from atoll.image.oci.documents import Platform
from atoll.image.oci.source import LayerSource, Offered, Stream
from atoll.image.refusing import refuse

__all__ = ["INPUT", "offer"]

#: The place that means standard input.
INPUT = "-"

#: Bytes of an archive at most.
MOST_BYTES = 64 << 30

_SPARE = 64 << 20
_TASK = "spool"


@contextmanager
def offer(
    place: str | Path,
    *,
    platform: Platform,
    name: str = "",
    emit: Emit,
    sockets: Sequence[Path] = (),
    environment: Mapping[str, str] = os.environ,
    most: int = MOST_BYTES,
) -> Iterator[Offered]:
    """The image at a place, for as long as the block lasts; what is kept of it meanwhile is gone then.

    Args:
        place: of a file or a directory; ``-``, ``docker://IMAGE`` or ``container:NAME``. One that begins
            with ``./`` is always a path.
        platform: which image is taken where there is one for each of several.
        name: of the image, where the archive has several; its digest will do.
        emit: told of progress and of what is left out.
        sockets: of engines that are asked if the Docker client uses none.
        environment: of the Docker client.
        most: bytes that an archive may have when it is unpacked.

    Raises:
        ImageError: ``image.missing``: there is no such place; ``image.archive``: it is damaged or of no form
            that is known; ``image.several`` and ``image.unknown``: the name is needed, or wrong;
            ``image.platform``: not for that platform; ``image.engine``; ``image.unreadable``.
        PreflightError: it is zstd, and the Python module for that is missing.
        StoreError: ``store.full``: there is no room for a copy of what cannot be read twice.
    """
    with ExitStack() as stack:
        text = os.fspath(place)
        if text.startswith((engines.IMAGE, engines.CONTAINER)):
            where = engines.socket_of(environment, Path.home(), sockets)
            fd = stack.enter_context(_spooled(engines.opened(where, text), text, most, emit))
        elif text == INPUT:
            fd = stack.enter_context(_seekable(0, "standard input", most, emit))
        else:
            fd = _open(text)
            stack.callback(os.close, fd)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                yield _directory(Path(text), platform, name, emit)
                return
            fd = stack.enter_context(_seekable(fd, text, most, emit))
        yield _archive(fd, text, platform, name, most, stack)


def _open(text: str) -> int:
    try:
        return os.open(text, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        message = f"cannot read {text}: {error.strerror}"
        raise ImageError(message, code="missing", hint="check the path") from error
    except ValueError as error:
        raise ImageError(f"{text!r} is no path", code="missing", hint="check the path") from error


def _directory(place: Path, platform: Platform, name: str, emit: Emit) -> Offered:
    inside = files.InDirectory(place)
    known = _known(inside)
    if known is not None:
        return known(inside, platform=platform, name=name)
    _no_name(name, str(place))
    tree = walking.Tree(place, emit)
    return Offered(layers=(LayerSource(open=tree.open),), whiteouts=False)


def _known(found: files.Files) -> Callable[..., Offered] | None:
    if layout.is_layout(found):
        return layout.offered
    if saved.is_saved(found):
        return saved.offered
    return None


def _no_name(name: str, place: str) -> None:
    if name:
        hint = "leave --name out"
        raise ImageError(
            f"{place} is a root file system, not an archive of images", code="unknown", hint=hint
        )


@contextmanager
def _seekable(fd: int, name: str, most: int, emit: Emit) -> Iterator[int]:
    """The descriptor itself if it is of a file, or of a copy of what comes from it."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        yield fd
        return
    if stat.S_ISDIR(mode) or os.isatty(fd):
        raise refuse(f"{name} is no archive", hint="give it a tar, as in `docker save IMAGE | atoll ...`")
    with _spooled(_unbuffered(fd), name, most, emit) as copy:
        yield copy


class _Descriptor:
    """What comes from a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        return os.read(self._fd, size)


@contextmanager
def _unbuffered(fd: int) -> Iterator[Stream]:
    yield _Descriptor(fd)


def _temporary() -> BinaryIO:
    """A file without a name where there is room: it is gone with its descriptor, whoever is killed."""
    with store.refusing(_scratch()):
        return tempfile.TemporaryFile(dir=_scratch())


def _scratch() -> Path:
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - as apt.scratch


@contextmanager
def _spooled(source: AbstractContextManager[Stream], name: str, most: int, emit: Emit) -> Iterator[int]:
    """A descriptor of a copy of what can be read only once."""
    with _temporary() as copy:
        with source as stream, task(emit, _TASK, f"Reading {name}", unit="B"):
            told = progress(emit, _TASK)
            tee = _Tee(stream, copy, most)
            while tee.read(CHUNK):
                told(tee.tell())
        copy.flush()
        yield copy.fileno()


class _Tee:
    """A stream that is kept as it passes, with a position that can be moved forward.

    Args:
        stream: it.
        copy: where it is kept.
        most: bytes.
    """

    def __init__(self, stream: Stream, copy: BinaryIO, most: int) -> None:
        self._stream, self._copy, self._most = stream, copy, most
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, /) -> int:
        while self._at < position and self.read(min(CHUNK, position - self._at)):
            pass
        return self._at

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if self._at % _SPARE + len(data) >= _SPARE:
            store.require_space(_scratch(), _SPARE)
        self._at += len(data)
        if self._at > self._most:
            raise refuse(f"the archive has more than {self._most >> 20} MiB")
        with store.refusing(_scratch()):
            self._copy.write(data)
        return data


class _Whole:
    """A file from its beginning, whose position can be moved."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, /) -> int:
        self._at = position
        return position

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data


def _archive(fd: int, name: str, platform: Platform, wanted: str, most: int, stack: ExitStack) -> Offered:
    """What a file is. A copy without compression is made if images are in it; ``stack`` closes that."""
    size = os.fstat(fd).st_size
    if kind_of(os.pread(fd, HEAD, 0)):
        inside = _compressed(fd, name, most, stack)
    else:
        members = files.index(_Whole(fd), name)
        inside = files.InTar(fd, members) if members is not None else None
    known = _known(inside) if inside is not None else None
    if known is not None:
        return known(inside, platform=platform, name=wanted)
    _no_name(wanted, name)
    layer = LayerSource(open=files.part_of(fd, 0, size).open, size=size)
    return Offered(layers=(layer,), whiteouts=False)


def _compressed(fd: int, name: str, most: int, stack: ExitStack) -> files.InTar | None:
    """The images in a compressed archive; None as soon as it is seen that it is none of images."""
    with ExitStack() as undo:
        copy = undo.enter_context(_temporary())
        members = files.index(_Tee(decompressed(_Whole(fd)), copy, 2 * most), name)
        if members is None:
            return None
        copy.flush()
        stack.push(undo.pop_all())
        return files.InTar(copy.fileno(), members)
