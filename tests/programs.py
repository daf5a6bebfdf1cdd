"""Programs that tests run as they are: out of Debian's packages, or compiled; kept in the test cache."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from atoll import store
from atoll.containers import tools
from atoll.image import apt, deb
from atoll.image.architectures import PACKAGED
from atoll.image.kernel import host_architecture
from atoll.paths import Paths

#: What a program of a package is called there.
FILES = {
    "buildah": "usr/bin/buildah",
    "busybox-static": "bin/busybox",
    "docker-registry": "usr/bin/docker-registry",
    "skopeo": "usr/bin/skopeo",
    "umoci": "usr/bin/umoci",
}


def packaged(paths: Paths, package: str, machine: str = "") -> Path:
    """The program of a package of this host's own suite, for this host's architecture or another."""
    kept = paths.cache / "programs" / (f"{package}-{machine}" if machine else package)
    if not kept.exists():
        architecture = PACKAGED[machine or host_architecture()]
        found, state = apt.lookup(package, architecture, private=apt.private_state(paths.cache, architecture))
        archive = apt.fetch(found, state, paths.downloads)
        with store.staging(kept.parent, package) as staged:
            assert deb.unpack(archive, staged, wanted=FILES[package].__eq__)
            (staged / FILES[package]).chmod(0o755)
            (staged / FILES[package]).replace(kept)
        archive.unlink()
    return kept


def compiled(paths: Paths, source: Path) -> Path:
    """A static program of one source."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    kept = paths.cache / "programs" / f"{source.stem}-{digest[:16]}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        target = f"{os.uname().machine}-linux-musl"
        compiler = (
            ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc", "-target", target]
        )
        partial = kept.with_name(f".{kept.name}-{os.getpid()}")
        subprocess.run(
            [*compiler, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", partial, source], check=True
        )
        partial.replace(kept)
    return kept


def take_plugins(paths: Paths, home: Path, programs: Path) -> None:
    """Have Docker's client with its settings in ``home`` find what this host lacks of it and its plugins."""
    lacking = tools.missing(home)
    kept = {one: next(paths.tools.glob(f"{one.package}_*/{one.name}"), None) for one in lacking}
    tools.install(paths, [one for one, file in kept.items() if file is None], home, programs)
    for one, file in kept.items():
        if file is not None:
            link = (home / "cli-plugins" if one.plugin else programs) / one.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


def root(busybox: Path, *others: Path, lister: Path | None = None) -> bytes:
    """A tar archive of a root with busybox, for ``docker import``; ``others`` are programs, too.

    ``lister`` is the same busybox for this host, where that is for another one.
    """
    buffer = io.BytesIO()
    names = subprocess.run(
        [lister or busybox, "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("bin", "tmp", "root", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        for program in (busybox, *others):
            entry = tarfile.TarInfo(f"bin/{'busybox' if program == busybox else program.stem.split('-')[0]}")
            entry.size, entry.mode = program.stat().st_size, 0o755
            with program.open("rb") as file:
                archive.addfile(entry, file)
        for name in names:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
    return buffer.getvalue()
