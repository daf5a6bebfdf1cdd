"""Debian packages: deb(5), an ar(5) archive of tar archives. Read here, so that no host needs dpkg."""

from __future__ import annotations

import contextlib
import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from atoll.errors import ImageError
from atoll.image import compression

__all__ = ["control", "members", "parse_stanzas", "unpack"]

_AR_MAGIC = b"!<arch>\n"


def _refuse(path: Path, why: str) -> ImageError:
    return ImageError(
        f"{path} is no whole Debian package: {why}", code="package", hint="get it again, or remove it"
    )


def members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each member of a package.

    Raises:
        ImageError: ``image.package``: it is truncated or no package.
    """
    size_of_file = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(8) != _AR_MAGIC:
        raise _refuse(path, "it is no ar archive")
    at = 8
    while at < size_of_file:
        file.seek(at)
        header = file.read(60)
        digits = header[48:58].strip()
        if len(header) < 60 or header[58:] != b"`\n" or not digits.isdigit():
            raise _refuse(path, "a member's header is damaged")
        size = int(digits)
        if at + 60 + size > size_of_file:
            raise _refuse(path, "it is truncated")
        yield header[:16].decode(errors="replace").strip().rstrip("/"), at + 60, size
        at += 60 + size + size % 2


class _Slice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._at = start
        self._end = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._at)
        data = self._file.read(min(len(buffer), self._end - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _open_tar(file: IO[bytes], name: str, start: int, size: int, path: Path) -> tarfile.TarFile:
    suffix = name.rpartition(".")[2]
    if suffix == "zst":
        file.seek(start)
        plain = compression.decompress(file.read(size), what=f"{name} in {path}", limit=4 * compression.LIMIT)
        return tarfile.open(fileobj=io.BytesIO(plain), mode="r|")
    mode = {"xz": "r|xz", "gz": "r|gz", "bz2": "r|bz2", "tar": "r|"}.get(suffix)
    if mode is None:
        raise _refuse(path, f"{name} is packed in no known way")
    # The overloads of tarfile.open want a literal mode each.
    return tarfile.open(fileobj=io.BufferedReader(_Slice(file, start, size)), mode=mode)  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise _refuse(path, str(error)) from error


def _member(path: Path, kind: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", code="package") from error
    with file, _named_failures(path):
        for name, start, size in members(file, path):
            if name.partition(".")[0] == kind:
                with _open_tar(file, name, start, size, path) as tar:
                    for item in tar:
                        yield tar, item
                return
        raise _refuse(path, f"it has no {kind}")


def parse_stanzas(text: str) -> list[dict[str, str]]:
    """The stanzas of a control file (deb-control(5)); folded lines are joined."""
    stanzas: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line[:1] in {" ", "\t"}:
                if key:
                    fields[key] += f"\n{line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            stanzas.append(fields)
    return stanzas


def control(path: Path) -> dict[str, str]:
    """The control fields of a package: Package, Version, Architecture and so on.

    Raises:
        ImageError: ``image.package``: it is truncated, damaged or no package.
    """
    for tar, item in _member(path, "control"):
        if posixpath.normpath(item.name) == "control":
            content = tar.extractfile(item)
            stanzas = parse_stanzas(content.read().decode(errors="replace")) if content else []
            if stanzas:
                return stanzas[0]
    raise _refuse(path, "it has no control file")


def unpack(path: Path, into: Path, *, wanted: Callable[[str], bool]) -> int:
    """Write the regular files of a package that are ``wanted``, owned by the caller; links are left out.

    Args:
        path: the package.
        into: the directory for them.
        wanted: is asked with each file's path, without a leading slash.

    Returns:
        The number of files.

    Raises:
        ImageError: ``image.package``: it is truncated, damaged, no package or has unsafe names.
    """
    count = 0
    for tar, item in _member(path, "data"):
        name = posixpath.normpath(item.name)
        if not item.isreg() or not wanted(name):
            continue
        if name.startswith(("/", "../")):
            raise _refuse(path, f"it would write {name}")
        content = tar.extractfile(item)
        assert content is not None
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            while piece := content.read(1 << 20):
                out.write(piece)
        count += 1
    return count
