"""Where a kernel and its modules come from: Debian's archive through apt, a package, or files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec

from atoll.errors import ImageError
from atoll.events import Emit, TaskAdvanced, Warned
from atoll.image import apt, deb, vmlinux
from atoll.image.architectures import PACKAGED
from atoll.image.kernel import Choice, Origin, stamp
from atoll.paths import Paths

__all__ = ["Material", "Source", "locate", "open_source"]

_CLOUD = "linux-image-cloud-{architecture}"


class Source(msgspec.Struct, frozen=True):
    """A kernel that has been found and can be opened.

    Attributes:
        origin: what it is.
        file: the package or kernel image on this host.
        modules: the directory of its modules, where it has one outside a package.
    """

    origin: Origin
    file: Path
    modules: Path | None = None


class Material(msgspec.Struct, frozen=True):
    """What a bundle is made of.

    Attributes:
        kernel: uncompressed and checked.
        release: its release.
        modules: a directory named as the release, or None for a kernel without modules.
    """

    kernel: bytes
    release: str
    modules: Path | None


def locate(paths: Paths, choice: Choice, *, refresh: bool, emit: Emit) -> Source:
    """Find what ``choice`` asks for, and fetch it if it is not here.

    Raises:
        PreflightError: the host has no apt.
        ImageError: it cannot be found, fetched or read.
    """
    if choice.kernel is None:
        return _from_apt(paths, choice.architecture, refresh=refresh, emit=emit)
    if choice.kernel.name.endswith(".deb"):
        fields = deb.control(choice.kernel)
        digest = stamp(choice.kernel).sha256
        origin = Origin(
            kind="package",
            name=fields.get("Package", ""),
            version=fields.get("Version", ""),
            sha256=digest,
        )
        return Source(origin, choice.kernel)
    return _from_file(choice.kernel, choice.modules)


def _from_apt(paths: Paths, architecture: str, *, refresh: bool, emit: Emit) -> Source:
    name = PACKAGED[architecture]
    state_place = apt.private_state(paths.cache, name)
    meta, state = apt.lookup(
        _CLOUD.format(architecture=name), name, private=state_place, fresh=refresh, emit=emit
    )
    real = kernel_package(meta.depends)
    if not real:
        raise ImageError(f"{meta.name} {meta.version} depends on no kernel image", code="apt")
    package = apt.show(state, real, name)
    if package is None:
        raise ImageError(f"no archive of this host has {real}", code="apt", hint="run `apt-get update`")
    try:
        file = apt.fetch(package, state, paths.downloads, emit=emit)
    except ImageError:
        if state.options:
            raise
        # The host's package lists may be older than what the mirror still has.
        return _from_apt(paths, architecture, refresh=True, emit=emit)
    origin = Origin(kind="debian", name=package.name, version=package.version, sha256=stamp(file).sha256)
    return Source(origin, file)


def kernel_package(depends: str) -> str:
    """The image package that a kernel metapackage depends on, or "" if none."""
    names = (part.split()[0].partition(":")[0] for part in depends.split(",") if part.split())
    return next((name for name in names if name.startswith("linux-image-")), "")


def _from_file(kernel: Path, modules: Path | None) -> Source:
    digest = hashlib.sha256(stamp(kernel).sha256.encode())
    if modules is not None:
        if not modules.is_dir():
            raise ImageError(f"{modules} is no directory", code="missing")
        for path in sorted(modules.rglob("*")):
            if path.is_file() and not path.is_symlink():
                digest.update(f"{path.relative_to(modules)}\0{stamp(path).sha256}\0".encode())
    origin = Origin(kind="file", name=str(kernel.absolute()), sha256=digest.hexdigest())
    return Source(origin, kernel, modules)


def open_source(source: Source, architecture: str, into: Path, *, emit: Emit) -> Material:
    """Unpack a source below ``into`` and check its kernel.

    Raises:
        ImageError: ``image.kernel``, ``image.package`` or ``image.modules``: it is damaged or not usable.
    """
    if source.origin.kind != "file":
        return _open_package(source.file, architecture, into, emit)
    kernel = vmlinux.extract(_read(source.file), architecture, name=str(source.file))
    release = vmlinux.release_of(kernel)
    return Material(kernel, release or "unknown", _modules_of(source, release, into, emit))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", code="missing") from error


def _open_package(file: Path, architecture: str, into: Path, emit: Emit) -> Material:
    emit(TaskAdvanced(task="kernel", note=f"unpacking {file.name}"))
    deb.unpack(
        file,
        into,
        wanted=lambda name: name.startswith(("boot/vmlinu", "lib/modules/", "usr/lib/modules/")),
    )
    images = sorted(into.glob("boot/vmlinu*"))
    if len(images) != 1:
        raise ImageError(f"{file} has {len(images)} kernels in /boot instead of one", code="package")
    kernel = vmlinux.extract(images[0].read_bytes(), architecture, name=f"{images[0].name} in {file.name}")
    release = images[0].name.partition("-")[2]
    places = [into / root / release for root in ("usr/lib/modules", "lib/modules")]
    return Material(kernel, release, next((place for place in places if place.is_dir()), None))


def _modules_of(source: Source, release: str, into: Path, emit: Emit) -> Path | None:
    """A copy of the modules for a kernel that was given as a file."""
    candidates = []
    if source.modules is not None:
        candidates = [source.modules / release, source.modules] if release else [source.modules]
    elif release:
        candidates = [Path("/lib/modules") / release]
    for place in candidates:
        if any((place / name).exists() for name in ("modules.dep", "modules.order", "kernel")):
            target = into / (release or "unknown")
            _copy(place, target)
            return target
    if source.modules is not None:
        hint = "give the directory that holds modules.dep or modules.order"
        raise ImageError(f"{source.modules} holds no modules for {release}", code="modules", hint=hint)
    emit(
        Warned(
            message=f"{source.file} comes without modules: all drivers that a guest needs must be built in",
            hint=f"install its modules in /lib/modules/{release}, or give a Debian kernel package instead",
        )
    )
    return None


def _copy(source: Path, target: Path) -> None:
    """Copy the regular files of a tree; links (``build``, ``source``) lead out of it and are left out."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
