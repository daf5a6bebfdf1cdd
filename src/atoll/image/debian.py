"""The root images ``debian`` and ``debian:SUITE``, built by mmdebstrap(1) from the host's own Debian mirrors.

The image is for machines whose init is Atoll's agent: Debian's essential packages, apt, and what a developer
misses at once in a bare system; no systemd, no kernel, no documentation. Nothing of the host but the
addresses of its mirrors goes in. The same package versions give the same bytes: all dates are fixed, and
caches, logs, backups, identities and device nodes are left out.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

from atoll import process, store
from atoll.errors import ImageError, PreflightError, ProcessError, StoreError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.image import apt, deb, erofs
from atoll.image.catalog import ImageManifest, InstalledPackage

__all__ = ["PACKAGES", "arguments", "build", "installed_packages"]

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

_EPOCH = 1_577_836_800  # 2020-01-01; 0 would make passwords expire and confuses tools
_LINES = 9  # "I:" lines that mmdebstrap writes
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
rm -f etc/apt/apt.conf.d/99mmdebstrap
rm -f var/cache/debconf/*-old var/lib/dpkg/*-old var/lib/systemd/random-seed
find var/log -type f -delete
: > etc/machine-id
printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n' > etc/hosts
"""
_HINT_UNSHARE = (
    "building an image needs root or user namespaces: `apt install uidmap`, and a line for this user in "
    "/etc/subuid and /etc/subgid; or build it as root"
)

#: What an image, and the tree that it is made from, take at most, bytes.
_IMAGE_SPACE, _TREE_SPACE = 256 << 20, 1 << 30


def arguments(
    suite: str,
    architecture: str,
    tree: Path,
    *,
    mode: str,
    sources: tuple[str, ...],
    options: tuple[str, ...],
) -> list[str]:
    """The arguments of mmdebstrap.

    Args:
        suite: ``trixie``.
        architecture: Debian's name.
        tree: the directory to make.
        mode: mmdebstrap's mode.
        sources: lines for sources.list; mmdebstrap's own default if there are none.
        options: settings for the apt that runs during the build.
    """
    argv = [
        "--variant=apt",
        f"--mode={mode}",
        "--format=directory",
        f"--architectures={architecture}",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt={option}" for option in _UNDOCUMENTED),
        *(f"--aptopt={option}" for option in options),
        f"--customize-hook={_CLEAN}",
        suite,
        str(tree),
    ]
    return [*argv, *sources]


def build(output: Path, *, name: str, suite: str, architecture: str, emit: Emit = ignore) -> ImageManifest:
    """Build the image into the file ``output``.

    Args:
        output: the EROFS.
        name: of the image, for its manifest.
        suite: of Debian.
        architecture: of the guest. One that the host cannot run needs qemu-user with binfmt_misc.
        emit: told of progress.

    Returns:
        The image's manifest.

    Raises:
        PreflightError: mmdebstrap or mkfs.erofs is missing, or this user may not build.
        ImageError: ``image.build`` with the tool's last lines.
        StoreError: ``store.full``.
    """
    program = process.require("mmdebstrap", hint="apt install mmdebstrap")
    process.require("mkfs.erofs", hint=erofs.INSTALL_HINT)
    as_root = os.geteuid() == 0
    if not as_root and process.find("newuidmap") is None:
        raise PreflightError("this user cannot build an image", hint=_HINT_UNSHARE)
    helper = [] if as_root else [program, "--unshare-helper"]
    argv_for = apt.DEBIAN_ARCHITECTURES[architecture]
    store.require_space(output.parent, _IMAGE_SPACE)
    work = apt.scratch()
    try:
        store.require_space(work, _TREE_SPACE)
        work.chmod(0o755)  # under another user's id mmdebstrap must get in
        tree = work / "tree"
        argv = arguments(
            suite,
            argv_for,
            tree,
            mode="auto" if as_root else "unshare",
            sources=apt.debian_sources(apt.targets(), suite),
            options=apt.client_options(),
        )
        with task(emit, "image", f"Building {name}", total=_LINES + 1, unit="steps"):
            _bootstrap([program, *argv], emit)
            packages = installed_packages((tree / "var/lib/dpkg/status").read_text())
            emit(TaskAdvanced(task="image", done=_LINES, note="packing the root"))
            _pack(tree, output, work, helper, name, emit)
    finally:
        if helper and (work / "tree").exists():
            # Its files belong to mapped users; the directory itself is removed with ours, ``work``.
            process.run([*helper, "find", str(work / "tree"), "-mindepth", "1", "-delete"])
        store.remove_tree(work)
    with output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ImageManifest(
        name=name,
        architecture=architecture,
        distribution="debian",
        suite=suite,
        digest=digest,
        size=output.stat().st_size,
        created=time.time(),
        packages=packages,
        tools={"mmdebstrap": _version(program), "mkfs.erofs": erofs.tool_version()},
    )


def _bootstrap(argv: list[str], emit: Emit) -> None:
    done = 0

    def follow(line: str) -> None:
        nonlocal done
        if line.startswith("I: "):
            done = min(done + 1, _LINES - 1)
            emit(TaskAdvanced(task="image", done=done, note=line[3:].partition("\n")[0]))

    env = {**os.environ, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": str(_EPOCH)}
    try:
        process.run(argv, env=env, on_line=follow, emit=emit)
    except ProcessError as error:
        if "No space left" in error.detail:
            hint = "free some space, or set TMPDIR to a place that has 500 MB"
            raise StoreError("no space left to build the image", code="full", hint=hint) from error
        hint = "check the network with `apt-get update`, and that the suite exists"
        if "unshare" in error.detail or "newuidmap" in error.detail:
            hint = _HINT_UNSHARE
        raise ImageError(
            f"cannot build the image: {error}", code="build", hint=hint, detail=error.detail
        ) from error


def _pack(tree: Path, output: Path, work: Path, helper: list[str], name: str, emit: Emit) -> None:
    made = output
    if helper:
        place = work / "out"
        place.mkdir()
        place.chmod(0o777)  # written to under a mapped user id; ``work`` has a name that nobody guesses
        made = place / output.name
    erofs.make(
        tree,
        made,
        epoch=_EPOCH,
        identity=uuid.uuid5(uuid.NAMESPACE_OID, f"atoll image {name}"),
        exclude="^dev/.+",  # devtmpfs is mounted there
        prefix=helper,
        emit=emit,
    )
    if made != output:
        output.write_bytes(made.read_bytes())


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
