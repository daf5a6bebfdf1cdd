"""Kernel bundles: what a VM boots, found in a millisecond when it is there, built when it is not.

A bundle is a directory ``kernels/<key>/`` with

- ``vmlinux``: the uncompressed kernel (x86_64 ELF with PVH entry, or arm64 Image);
- ``initramfs``: the agent and the modules needed before the root is mounted, uncompressed
  (docs/reference/agent-protocol.md, section 7);
- ``modules.erofs``: all modules, to be mounted at ``/usr/lib/modules`` (absent for a kernel without modules);
- ``manifest.json``: the `KernelBundle` record.

The key is a digest of all that went in, so a bundle never changes. What a user asks for (the default, a
file) leads to a key through a small `Pointer` record that holds size and date of the files it was made from,
so that the way to a cached bundle costs a few system calls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError, UsageError
from atoll.events import Emit, ignore
from atoll.image.recipe import RECIPE
from atoll.paths import Paths, agent_path

__all__ = [
    "ARCHITECTURES",
    "Choice",
    "FileRecord",
    "Kernel",
    "KernelBundle",
    "Origin",
    "Pointer",
    "Stamp",
    "agent_path",
    "ensure",
    "find",
    "host_architecture",
    "installed",
    "load",
    "prune",
    "remember",
    "stamp",
    "verify",
]

ARCHITECTURES = ("x86_64", "aarch64")

_MANIFEST = "manifest.json"
_VMLINUX, _INITRAMFS, _MODULES = "vmlinux", "initramfs", "modules.erofs"


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a bundle; ``size`` in bytes."""

    sha256: str
    size: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a kernel came from.

    Attributes:
        kind: ``debian`` (the host's apt), ``package`` (a given .deb) or ``file``.
        name: of the package, or path of the file.
        version: of the package.
        sha256: of the package, or of the file and its modules.
    """

    kind: str
    name: str
    version: str = ""
    sha256: str


class KernelBundle(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a bundle.

    Attributes:
        schema: version of this record.
        key: the bundle's directory.
        architecture: ``x86_64`` or ``aarch64``.
        release: as uname(2) in the guest tells it.
        origin: where the kernel came from.
        agent: sha256 of the agent.
        files: by name.
        channel: modules loaded before the guest channel opens, in order.
        root: modules loaded before the root is mounted, in order.
        devices: for each driver that is loaded later the files, in order, below the modules' directory.
        head: bytes of the initramfs that hold the modules; the agent follows.
        created: seconds since the epoch.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    key: str
    architecture: str
    release: str
    origin: Origin
    agent: str
    files: dict[str, FileRecord]
    channel: tuple[str, ...]
    root: tuple[str, ...]
    devices: dict[str, tuple[str, ...]] = {}
    head: int
    created: float


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was: size in bytes, date in ns since the epoch, content (empty for a directory)."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that a choice leads to as long as its inputs and the recipe are unchanged."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    key: str
    inputs: tuple[Stamp, ...]
    recipe: str = ""


class Choice(msgspec.Struct, frozen=True):
    """What the user asks for.

    Attributes:
        architecture: of the guest.
        kernel: a kernel image or a Debian kernel package; None for Debian's cloud kernel by apt.
        modules: the directory with the modules of ``kernel``, or the one above it.
    """

    architecture: str
    kernel: Path | None = None
    modules: Path | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            hint = f"choose one of {', '.join(ARCHITECTURES)}"
            raise UsageError(f"{self.architecture} guests are not supported", code="architecture", hint=hint)
        if self.modules is not None and self.kernel is None:
            raise UsageError(
                "modules were given without their kernel", code="kernel", hint="add --kernel PATH"
            )

    def pointer(self, paths: Paths) -> Path:
        """The record that leads from this choice to a key."""
        if self.kernel is None:
            return paths.kernels / f"default-{self.architecture}.json"
        import hashlib  # noqa: PLC0415 - not for the default kernel

        wanted = f"{self.kernel.absolute()}\0{self.modules.absolute() if self.modules else ''}"
        digest = hashlib.sha256(wanted.encode(errors="surrogateescape")).hexdigest()[:16]
        return paths.kernels / f"choice-{digest}-{self.architecture}.json"


class Kernel(msgspec.Struct, frozen=True):
    """A bundle on disk, ready to boot."""

    directory: Path
    manifest: KernelBundle

    @property
    def vmlinux(self) -> Path:
        """For ``-kernel``."""
        return self.directory / _VMLINUX

    @property
    def initramfs(self) -> Path:
        """For ``-initrd``."""
        return self.directory / _INITRAMFS

    @property
    def modules(self) -> Path | None:
        """The EROFS with all modules, if the kernel has any."""
        return self.directory / _MODULES if _MODULES in self.manifest.files else None


def host_architecture() -> str:
    """The host's architecture by the name that Atoll uses."""
    machine = os.uname().machine
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)


def _digest(path: Path) -> str:
    import hashlib  # noqa: PLC0415 - not on the way to a cached bundle

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> Stamp:
    """``path`` as it is now.

    Raises:
        ImageError: ``image.missing``: it cannot be read.
    """
    try:
        state = path.stat()
        content = "" if path.is_dir() else _digest(path)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", code="missing") from error
    return Stamp(path=str(path.absolute()), size=state.st_size, mtime_ns=state.st_mtime_ns, sha256=content)


def _unchanged(before: Stamp) -> Stamp | None:
    """The stamp to keep if the content is what it was: ``before`` itself if not even the date differs."""
    try:
        state = os.stat(before.path)
    except OSError:
        return None
    if (state.st_size, state.st_mtime_ns) == (before.size, before.mtime_ns):
        return before
    if state.st_size != before.size or not before.sha256:
        return None
    now = stamp(Path(before.path))
    return now if now.sha256 == before.sha256 else None


def load(paths: Paths, key: str) -> Kernel:
    """The bundle with this key, its files being there in full size (their content is for ``verify``).

    Raises:
        StoreError: ``store.missing``, ``store.corrupt`` or ``store.newer``, about its manifest.
        ImageError: ``image.corrupt``: a file is missing or of another size.
    """
    directory = paths.kernel(key)
    kernel = Kernel(directory, store.read_record(directory / _MANIFEST, KernelBundle))
    for name, record in kernel.manifest.files.items():
        try:
            size = os.stat(directory / name).st_size
        except OSError as error:
            raise ImageError(f"{directory / name} is missing", code="corrupt") from error
        if size != record.size:
            raise ImageError(f"{directory / name} has {size} of {record.size} bytes", code="corrupt")
    return kernel


def find(paths: Paths, choice: Choice, *, agent: Path | None = None) -> Kernel | None:
    """The cached bundle for ``choice``, if there is one and nothing that it was made from has changed.

    Args:
        paths: where bundles are.
        choice: what is wanted.
        agent: the agent that it must hold; by default this installation's.
    """
    pointer = choice.pointer(paths)
    try:
        record = store.read_record(pointer, Pointer)
        kernel = load(paths, record.key)
    except (StoreError, ImageError):
        return None  # it is only a cache: whatever is wrong with it, a new one is built
    wanted = str((agent or agent_path(choice.architecture)).absolute())
    if not record.inputs or record.inputs[0].path != wanted or record.recipe != RECIPE:
        return None
    inputs: list[Stamp] = []
    for before in record.inputs:
        now = _unchanged(before)
        if now is None:
            return None
        inputs.append(now)
    if tuple(inputs) != record.inputs:
        remember(paths, choice, record.key, tuple(inputs))
    return kernel


def remember(paths: Paths, choice: Choice, key: str, inputs: tuple[Stamp, ...]) -> None:
    """Let ``choice`` lead to ``key`` until one of ``inputs``, the agent first, changes."""
    store.write_record(choice.pointer(paths), Pointer(key=key, inputs=inputs, recipe=RECIPE))


def ensure(
    paths: Paths,
    *,
    architecture: str | None = None,
    kernel: Path | None = None,
    modules: Path | None = None,
    agent: Path | None = None,
    refresh: bool = False,
    emit: Emit = ignore,
) -> Kernel:
    """The bundle to boot: the cached one, else built now (about 10 s, once).

    Args:
        paths: where bundles are.
        architecture: of the guest; the host's by default.
        kernel: a kernel image or Debian kernel package; Debian's cloud kernel through apt by default.
        modules: the modules of ``kernel``.
        agent: the guest agent; by default the one that this installation carries.
        refresh: ask apt for a newer kernel than the cached one.
        emit: told of progress.

    Raises:
        UsageError: an architecture or combination that cannot be.
        PreflightError: a program is missing.
        ImageError: the kernel cannot be fetched, read or used.
        StoreError: the cache cannot be written.
    """
    choice = Choice(architecture or host_architecture(), kernel, modules)
    found = None if refresh else find(paths, choice, agent=agent)
    if found is not None:
        return found
    from atoll.image import bundle  # noqa: PLC0415 - a cached bundle must cost no import

    return bundle.build(paths, choice, agent=agent, refresh=refresh, emit=emit)


def verify(kernel: Kernel) -> None:
    """Compare every file of a bundle with its digest.

    Raises:
        ImageError: ``image.corrupt``: one differs.
    """
    for name, record in kernel.manifest.files.items():
        path = kernel.directory / name
        try:
            found = _digest(path)
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}", code="corrupt") from error
        if found != record.sha256:
            hint = f"remove {kernel.directory}; the next start builds it again"
            raise ImageError(f"{path} is not what it was when it was built", code="corrupt", hint=hint)


def installed(paths: Paths) -> list[Kernel]:
    """All usable bundles, newest first."""
    found: list[Kernel] = []
    if paths.kernels.is_dir():
        for directory in sorted(paths.kernels.iterdir()):
            if directory.is_dir() and not directory.name.startswith("."):
                try:
                    found.append(load(paths, directory.name))
                except AtollError:
                    continue
    return sorted(found, key=lambda kernel: -kernel.manifest.created)


def prune(paths: Paths, *, keep: frozenset[str] = frozenset()) -> list[str]:
    """Remove the bundles that no choice leads to any more.

    Args:
        paths: where bundles are.
        keep: keys that machines or templates still use.

    Returns:
        The keys that were removed.
    """
    if not paths.kernels.is_dir():
        return []
    with store.lock(paths.kernels / ".lock"):
        wanted = set(keep)
        for pointer in paths.kernels.glob("*.json"):
            try:
                wanted.add(store.read_record(pointer, Pointer).key)
            except StoreError:
                continue
        removed = [
            directory.name
            for directory in sorted(paths.kernels.iterdir())
            if directory.is_dir() and not directory.name.startswith(".") and directory.name not in wanted
        ]
        for key in removed:
            store.remove_tree(paths.kernel(key))
        return removed
