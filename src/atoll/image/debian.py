"""The root images of Debian and Ubuntu, built by mmdebstrap(1): plain, for machines with systemd, the engine.

Debian comes from the host's own mirrors, Ubuntu from the one that is set. A plain image is for VMs whose init
is Atoll's agent: the essential packages, apt, and what a developer misses at once in a bare system; no
systemd, no kernel, no documentation. `atoll.image.machine` says what one for machines has beside. Nothing of
the host but the addresses of its mirrors goes in. The same package versions give the same bytes: all dates
are fixed, and caches, logs, backups, identities and device nodes are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path

import msgspec

from atoll import process, store
from atoll.errors import ImageError, PreflightError, ProcessError, StoreError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.image import apt, deb, engine, erofs, machine, packing, programs
from atoll.image.architectures import PACKAGED
from atoll.image.manifest import ImageManifest, InstalledPackage
from atoll.image.recipes import RECIPES, Flavour, Recipe

__all__ = ["CONTENTS", "PACKAGES", "Contents", "arguments", "build", "installed_packages", "ubuntu_sources"]

#: Beside the essential packages and apt (mmdebstrap's variant "apt").
PACKAGES = (
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "kmod",  # loads modules from the kernel bundle
    "less",
    "mount",
    "netbase",  # /etc/services and /etc/protocols
    "passwd",  # useradd and the like, which packages' scripts want
    "procps",
)

_LINES = 10  # "I:" lines that mmdebstrap writes
_UNDOCUMENTED = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)
_CLEAN = """
set -eu
cd "$1"
rm -f etc/resolv.conf etc/hostname etc/.pwd.lock etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/sub?id-
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/00atoll
rm -f var/cache/debconf/*-old var/lib/dpkg/*-old var/lib/systemd/random-seed
find var/log -type f -delete
: > etc/machine-id
printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n' > etc/hosts
"""
_UBUNTU_KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")  # the same place in the image

#: Packages' scripts are run where an image is built.
_HINT_FOREIGN = "this host itself must run its programs to build it: apt install arch-test qemu-user-static"

#: What an image, and the tree that it is made from, take at most, bytes.
_IMAGE_SPACE, _TREE_SPACE = 256 << 20, 1 << 30


class Contents(msgspec.Struct, frozen=True):
    """What of a distribution goes into an image.

    Attributes:
        variant: mmdebstrap's name for what it begins with.
        packages: beside those.
        excluded: patterns of files that are left out of packages.
        clean: for the shell, in the finished tree.
    """

    variant: str
    packages: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    clean: str = ""


#: By the flavour of a recipe.
CONTENTS = {
    Flavour.PLAIN: Contents("apt", PACKAGES),
    Flavour.MACHINE: Contents("apt", (*PACKAGES, *machine.PACKAGES), clean=machine.CLEAN),
    Flavour.ENGINE: Contents(engine.VARIANT, engine.PACKAGES, engine.EXCLUDED, engine.CLEAN),
}


def arguments(
    suite: str,
    architecture: str,
    tree: Path,
    *,
    mode: str,
    sources: tuple[str, ...],
    options: tuple[str, ...],
    flavour: Flavour = Flavour.PLAIN,
    overlay: Path | None = None,
) -> list[str]:
    """The arguments of mmdebstrap.

    Args:
        suite: ``trixie``.
        architecture: Debian's name.
        tree: the directory to make.
        mode: mmdebstrap's mode.
        sources: lines for sources.list; mmdebstrap's own default if there are none.
        options: settings for the apt that runs during the build.
        flavour: of the image.
        overlay: for a machine's image, the archive of `machine.write_archive`.
    """
    contents = CONTENTS[flavour]
    hooks = [f"tar-in {shlex.quote(str(overlay))} /"] if overlay is not None else []
    argv = [
        f"--variant={contents.variant}",
        f"--mode={mode}",
        "--format=directory",
        f"--architectures={architecture}",
        f"--include={','.join(contents.packages)}",
        *(f"--aptopt={option}" for option in options),
        f"--extract-hook={_settings_of_dpkg(contents.excluded)}",
        *(f"--customize-hook={hook}" for hook in (*hooks, _CLEAN + contents.clean)),
        suite,
        str(tree),
    ]
    return [*argv, *sources]


def _settings_of_dpkg(excluded: tuple[str, ...]) -> str:
    """A script that has dpkg leave out files, and not wait for the disk: an unfinished tree is thrown away.

    mmdebstrap unpacks the essential packages itself, and then has dpkg do it again. Told of the files, it
    would pass each package through a filter, a fourth of all the work: they are removed in between instead.
    """
    options = (*_UNDOCUMENTED, *(f"path-exclude={pattern}" for pattern in excluded))
    out, kept = (
        " -o ".join(
            f"-path {shlex.quote(f'.{option.removeprefix(kind)}')}"
            for option in options
            if option.startswith(kind)
        )
        for kind in ("path-exclude=", "path-include=")
    )
    return rf"""
set -eu
cd "$1"
printf '%s\n' {shlex.join(options)} > etc/dpkg/dpkg.cfg.d/99mmdebstrap
echo force-unsafe-io > etc/dpkg/dpkg.cfg.d/00atoll
find ./usr \( {out} \) ! \( {kept} \) \( ! -type d -o -empty \) -delete
"""


def ubuntu_sources(mirror: str, suite: str, *, keyring: Path = _UBUNTU_KEYRING) -> tuple[str, ...]:
    """Lines for sources.list(5) by which ``suite`` of Ubuntu is to be had from ``mirror``.

    Raises:
        ImageError: ``image.mirror``: none is set, or it is no address.
        PreflightError: the host has not the keys of Ubuntu's archive.
    """
    if not mirror:
        hint = "set ubuntu_mirror in the configuration, or ATOLL_UBUNTU_MIRROR, to the address of one"
        raise ImageError("no mirror of Ubuntu is set", code="mirror", hint=hint)
    if not re.fullmatch(r"(?:https?|file|ftp)://?[!-~]+", mirror):
        hint = "ubuntu_mirror is the address of the archive: its directory that has dists and pool"
        raise ImageError(f"{mirror!r} is no address of a mirror", code="mirror", hint=hint)
    if not keyring.exists():
        raise PreflightError("the keys of Ubuntu's archive are missing", hint="apt install ubuntu-keyring")
    return tuple(
        f"deb [signed-by={keyring}] {mirror.rstrip('/')} {suite}{pocket} main universe"
        for pocket in ("", "-updates", "-security")
    )


def build(
    output: Path,
    *,
    name: str,
    suite: str,
    architecture: str,
    recipe: Recipe = RECIPES["debian"],
    mirror: str = "",
    emit: Emit = ignore,
) -> ImageManifest:
    """Build the image into the file ``output``.

    Args:
        output: the EROFS.
        name: of the image, for its manifest.
        suite: of the distribution.
        architecture: of the guest. One that the host cannot run needs qemu-user with binfmt_misc.
        recipe: which distribution, and what for.
        mirror: of Ubuntu; Debian's are those of the host.
        emit: told of progress.

    Returns:
        The image's manifest.

    Raises:
        PreflightError: mmdebstrap or mkfs.erofs is missing, or this user may not build.
        ImageError: ``image.build`` with the tool's last lines; ``image.mirror``.
        StoreError: ``store.full``.
    """
    if recipe.distribution == "ubuntu":
        sources = ubuntu_sources(mirror, suite)
    else:
        sources = apt.debian_sources(apt.targets(), suite)
    program = process.require("mmdebstrap", hint="apt install mmdebstrap")
    process.require("mkfs.erofs", hint=erofs.INSTALL_HINT)
    prefix = packing.helper()
    store.require_space(output.parent, _IMAGE_SPACE)
    with packing.workspace(prefix, _TREE_SPACE) as work:
        argv = arguments(
            suite,
            PACKAGED[architecture],
            work / "tree",
            mode="unshare" if prefix else "auto",
            sources=sources,
            options=apt.client_options(),
            flavour=recipe.flavour,
            overlay=_overlay(work) if recipe.flavour is Flavour.MACHINE else None,
        )
        with task(emit, "image", f"Building {name}", total=_LINES + 1, unit="steps"):
            _bootstrap([program, *argv], emit)
            packages = installed_packages((work / "tree/var/lib/dpkg/status").read_text())
            emit(TaskAdvanced(task="image", done=_LINES, note="packing the root"))
            found = programs.measure(work / "tree", (*recipe.programs, *recipe.optional))
            packing.pack(work, output, prefix, name, emit)
    return ImageManifest(
        name=name,
        architecture=architecture,
        distribution=recipe.distribution,
        suite=suite,
        digest=packing.digest_of(output),
        size=output.stat().st_size,
        created=time.time(),
        packages=packages,
        tools={"mmdebstrap": _version(program), "mkfs.erofs": erofs.tool_version()},
        init=machine.INIT if recipe.flavour is Flavour.MACHINE else "",
        programs=found,
    )


def _overlay(work: Path) -> Path:
    place = work / "machine.tar"
    machine.write_archive(place)
    return place


def _bootstrap(argv: list[str], emit: Emit) -> None:
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith("I: "):
            done = min(done + 1, _LINES - 1)
            emit(TaskAdvanced(task="image", done=done, note=line[3:].partition("\n")[0]))

    env = {**os.environ, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(packing.EPOCH)}
    try:
        process.run(argv, env=env, on_line=follow, emit=emit)
    except ProcessError as error:
        if "No space left" in error.detail:
            hint = "free some space, or set TMPDIR to a place that has 500 MB"
            raise StoreError("no space left to build the image", code="full", hint=hint) from error
        hint = "check the network with `apt-get update`, and that the suite exists"
        if "unshare" in error.detail or "newuidmap" in error.detail:
            hint = packing.HINT_UNSHARE
        if "foreign architecture" in error.detail or "binfmt_misc" in error.detail:
            hint = _HINT_FOREIGN
        raise ImageError(
            f"cannot build the image: {error}", code="build", hint=hint, detail=error.detail
        ) from error


def installed_packages(status: str) -> tuple[InstalledPackage, ...]:
    """The packages that dpkg's status file says are installed."""
    return tuple(
        sorted(
            (
                InstalledPackage(
                    name=stanza["Package"],
                    version=stanza.get("Version", ""),
                    architecture=stanza.get("Architecture", ""),
                )
                for stanza in deb.parse_stanzas(status)
                if "Package" in stanza and stanza.get("Status", "").endswith(" installed")
            ),
            key=lambda package: (package.name, package.architecture),
        )
    )


def _version(program: str) -> str:
    words = process.run([program, "--version"]).stdout.decode(errors="replace").split()
    return words[-1] if words else ""
