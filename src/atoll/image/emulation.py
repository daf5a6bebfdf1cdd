"""What runs programs of another architecture in a guest of this host's: QEMU's user emulation, on a disk.

The interpreter is the host's own, or one that was taken from Debian's package. It comes to guests on a small
read-only disk (EROFS), never from their image, so that an image without any program of its own runs, too:

- ``qemu-ARCHITECTURE``: the interpreter, which needs no library;
- ``register``: the line by which the guest's kernel calls it (docs/reference/agent-protocol.md, section 7.2).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import process, store
from atoll.errors import ImageError, PreflightError, StoreError
from atoll.events import Emit, ignore, task
from atoll.image.architectures import PACKAGED
from atoll.image.foreign import PACKAGE, PLATFORMS, interpreter, registration
from atoll.paths import Paths

__all__ = ["INSTALL_HINT", "Emulator", "ensure", "fetch", "find", "is_usable", "missing"]

#: The package has it without libraries on every Debian; on those since trixie another name leads to it.
INSTALL_HINT = "apt install qemu-user-static"

#: Counts changes of what is on the disk.
_FORMAT = 1

#: Where the guest's agent has the disk for the moment in which the kernel opens the interpreter.
_PLACE = "/emulator"

_EPOCH = 1_577_836_800  # 2020-01-01: the same interpreter gives the same bytes

#: Debian's suite whose interpreter is fetched; the host may be of any.
_SUITE = "trixie"

_TASK = "emulator"

#: Bytes that it takes at most, and the package with what is unpacked of it.
_SPACE, _FETCH_SPACE = 64 << 20, 512 << 20

#: Numbers of machines (ELF specification, ``e_machine``), and the program header that asks for a loader.
_MACHINES = {"x86_64": 62, "aarch64": 183}
_PT_INTERP = 3


class Emulator(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter on its disk.

    Attributes:
        schema: version of this record.
        architecture: of the programs that it runs.
        program: the interpreter on this host, as it was: size in bytes, date in ns since the epoch.
        key: digest of all that went in.
        disk: the EROFS.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    architecture: str
    program: str
    size: int
    mtime_ns: int
    key: str
    disk: Path


def find(paths: Paths, architecture: str, native: str) -> Path | None:
    """The interpreter for programs of ``architecture`` on this host: installed, else fetched; None for none.

    One that needs libraries does not count: in a guest there are none for it.
    """
    name = interpreter(architecture)
    installed = (process.find(program) for program in (f"{name}-static", name))
    places = (*(Path(path) for path in installed if path), _fetched(paths, architecture, native))
    return next((place for place in places if is_usable(place, native)), None)


def _fetched(paths: Paths, architecture: str, native: str) -> Path:
    return paths.emulators / native / interpreter(architecture)


def is_usable(program: Path, native: str) -> bool:
    """Whether ``program`` is an executable of this host's architecture that needs no library."""
    try:
        with program.open("rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:5] != b"\x7fELF\x02":
                return False
            (machine,) = struct.unpack_from("<H", head, 18)
            (at,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            file.seek(at)
            table = file.read(size * count)
    except (OSError, OverflowError, ValueError):  # of what it says of itself, too
        return False
    kinds = [table[start : start + 4] for start in range(0, len(table), size)] if size else []
    return machine == _MACHINES[native] and struct.pack("<I", _PT_INTERP) not in kinds


def missing(architecture: str) -> PreflightError:
    """No interpreter for programs of ``architecture`` is here."""
    name = interpreter(architecture)
    message = f"programs of {PLATFORMS[architecture]} cannot be run: {name} is not installed"
    hint = f"{INSTALL_HINT}; without root `atoll image emulator`; or run a whole VM of it: --full"
    return PreflightError(message, hint=hint)


def ensure(paths: Paths, architecture: str, *, native: str, emit: Emit = ignore) -> Emulator:
    """The disk with the interpreter for programs of ``architecture``; made if that has changed (0.1 s).

    Args:
        paths: where it is kept.
        architecture: of the programs.
        native: of the guest's kernel.
        emit: told of progress.

    Raises:
        PreflightError: no interpreter is here, or mkfs.erofs is missing.
        ImageError: ``image.build``.
        StoreError: it cannot be kept.
    """
    program = find(paths, architecture, native)
    if program is None:
        raise missing(architecture)
    record = paths.emulators / f"{architecture}-on-{native}.json"
    known = _known(record, program)
    if known is not None:
        return known
    with store.lock(paths.emulators / ".lock"):
        known = _known(record, program)  # another process may have made it meanwhile
        if known is not None:
            return known
        with task(emit, _TASK, f"Preparing the emulator of {PLATFORMS[architecture]}"):
            made = _make(paths, architecture, native, program, emit)
        store.write_record(record, made)
        return made


def _known(record: Path, program: Path) -> Emulator | None:
    try:
        known = store.read_record(record, Emulator)
        state, disk = program.stat(), known.disk.stat()
    except (StoreError, OSError):
        return None
    same = (known.program, known.size, known.mtime_ns) == (str(program), state.st_size, state.st_mtime_ns)
    return known if same and disk.st_size else None


def _make(paths: Paths, architecture: str, native: str, program: Path, emit: Emit) -> Emulator:
    import hashlib  # noqa: PLC0415 - once for each interpreter, as all of these
    import shutil  # noqa: PLC0415
    import uuid  # noqa: PLC0415

    from atoll.image import erofs  # noqa: PLC0415

    name = interpreter(architecture)
    line = registration(architecture, f"{_PLACE}/{name}").encode()
    store.require_space(paths.emulators, _SPACE)
    state = program.stat()
    with store.staging(paths.emulators, name) as staged:
        tree = staged / "tree"
        tree.mkdir()
        shutil.copyfile(program, tree / name)
        (tree / name).chmod(0o755)
        (tree / "register").write_bytes(line)
        with (tree / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"{_FORMAT}\n{native}\n{content}\n".encode() + line)
        key = digest.hexdigest()[:20]
        disk = paths.emulators / key / f"{name}.erofs"
        erofs.make(
            tree,
            staged / disk.name,
            epoch=_EPOCH,
            identity=uuid.uuid5(uuid.NAMESPACE_OID, key),
            compression="",  # its pages are read when programs fault on them
            root_owned=True,
            xattrs=False,
            emit=emit,
        )
        store.remove_tree(tree)
        store.publish(staged, disk.parent)
    return Emulator(
        architecture=architecture,
        program=str(program),
        size=state.st_size,
        mtime_ns=state.st_mtime_ns,
        key=key,
        disk=disk,
    )


def fetch(paths: Paths, architecture: str, *, native: str, emit: Emit = ignore) -> Path:
    """Take the interpreter from Debian's package, for this user and without root.

    Args:
        paths: where it is kept.
        architecture: of the programs that it runs.
        native: of this host.
        emit: told of progress.

    Raises:
        PreflightError: this host has no apt.
        ImageError: ``image.apt``: it cannot be fetched; ``image.package``.
        StoreError: it cannot be kept.
    """
    from atoll.image import apt, deb  # noqa: PLC0415 - asked for once

    place = _fetched(paths, architecture, native)
    packaged, file = PACKAGED[native], f"usr/bin/{interpreter(architecture)}"
    with task(emit, _TASK, f"Fetching {PACKAGE}"), store.lock(paths.emulators / ".lock"):
        store.require_space(paths.emulators, _FETCH_SPACE)
        with apt.suite_state(paths.cache, packaged, _SUITE, doing=_TASK, emit=emit) as state:
            package = apt.show(state, PACKAGE, packaged)
            if package is None:
                raise apt.lacking(PACKAGE, packaged)
            archive = apt.fetch(package, state, paths.downloads, doing=_TASK, emit=emit)
        with store.staging(place.parent, place.name) as staged:
            if not deb.unpack(archive, staged, wanted=file.__eq__):
                raise ImageError(f"{archive.name} has no {file}", code="package", hint=INSTALL_HINT)
            (staged / file).chmod(0o755)
            store.sync_file(staged / file)
            os.replace(staged / file, place)
            store.sync_directory(place.parent)
        archive.unlink(missing_ok=True)  # nobody builds with it again
    return place
