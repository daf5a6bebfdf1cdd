"""What the host's apt knows: mirrors, suites, package versions; and packages through it, without root.

Everything runs through the ordinary clients (apt-get, apt-cache, apt-config) with the host's sources and
keys, so that what is fetched is authenticated as on the host. Where the host has no package lists, or for
another architecture, the lists are fetched into a state of Atoll's own (apt.conf(5), Dir::State).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atoll import process, store
from atoll.errors import ImageError, ProcessError
from atoll.events import Emit, TaskAdvanced, ignore
from atoll.image import deb

__all__ = [
    "Package",
    "State",
    "Target",
    "client_options",
    "debian_sources",
    "fetch",
    "lacking",
    "lookup",
    "parse_targets",
    "private_state",
    "scratch",
    "show",
    "suite_state",
    "targets",
]

_NO_APT = "this needs a Debian-like host; elsewhere give a kernel with --kernel, or a package"

#: Settings of the host's apt that are needed to reach its mirrors and to believe them.
_CLIENT_SETTINGS = (
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-Date",
    "Acquire::Check-Valid-Until",
    "Acquire::ForceIPv",
    "Acquire::Retries",
)


#: The task for which packages are fetched unless the caller says so.
_KERNEL = "kernel"

#: What a kernel package and the package lists of an archive take at most, bytes.
_PACKAGE_SPACE, _LISTS_SPACE = 128 << 20, 256 << 20


class Target(msgspec.Struct, frozen=True):
    """One index of packages that the host's apt uses.

    Attributes:
        uri: of the archive.
        release: its directory below ``dists``: ``bookworm-security``.
        component: main, contrib, ...
        architecture: Debian's name.
        origin: who makes the archive: ``Debian``.
    """

    uri: str
    release: str
    component: str
    architecture: str
    origin: str


class Package(msgspec.Struct, frozen=True):
    """One version of a package in an archive."""

    name: str
    version: str
    architecture: str
    depends: str
    sha256: str
    file: str


class State(msgspec.Struct, frozen=True):
    """Options that tell apt where its state is; none for the host's."""

    options: tuple[str, ...] = ()


def targets() -> tuple[Target, ...]:
    """The package indexes of the host; empty where there is no apt."""
    program = process.find("apt-get")
    if program is None:
        return ()
    layout = "\t".join(f"$({key})" for key in ("REPO_URI", "RELEASE", "COMPONENT", "ARCHITECTURE", "ORIGIN"))
    try:
        done = process.run([program, "indextargets", "--format", layout, "Created-By: Packages"])
    except ProcessError:
        return ()
    return parse_targets(done.stdout.decode(errors="replace"))


def parse_targets(text: str) -> tuple[Target, ...]:
    """The lines of ``targets``; one of another shape is skipped."""
    rows = (line.split("\t") for line in text.splitlines())
    return tuple(dict.fromkeys(Target(*row) for row in rows if len(row) == 5))


def debian_sources(known: tuple[Target, ...], suite: str) -> tuple[str, ...]:
    """Lines for sources.list(5) by which ``suite`` is to be had from the host's own mirrors.

    Updates and security fixes are included where the host uses them. Only ``main`` is used, so that the same
    image comes out whatever else the host has.

    Returns:
        Nothing if the host has no Debian archive: the tool's default mirror is then right.
    """
    debian = [
        target
        for target in known
        if target.origin == "Debian"
        and target.component == "main"
        and target.uri.partition(":")[0] in {"http", "https"}
    ]
    lines: list[str] = []
    bases = {target.release.partition("-")[0] for target in debian}
    base = suite if suite in bases else min(bases, default="")
    for target in debian:
        name, dash, kind = target.release.partition("-")
        rolling = suite in {"sid", "unstable", "experimental"}
        if name == base and not (rolling and dash) and kind in {"", "updates", "security"}:
            lines.append(f"deb {target.uri.rstrip('/')} {suite}{dash}{kind} main")
    return tuple(dict.fromkeys(lines))


def client_options() -> tuple[str, ...]:
    """The host's settings for reaching mirrors (proxies, timeouts, leniency on dates) as ``Key "value"``."""
    program = process.find("apt-config")
    if program is None:
        return ()
    text = process.run([program, "dump", "--format", '%F "%v"%n']).stdout.decode(errors="replace")
    return tuple(
        line for line in text.splitlines() if line.startswith(_CLIENT_SETTINGS) and not line.endswith(' ""')
    )


def _own_state(
    root: Path, architecture: str, emit: Emit, *, sources: Path | None = None, doing: str = _KERNEL
) -> tuple[State, ProcessError | None]:
    """A private state with fresh package lists.

    An error is returned, not raised: what is wanted may be in a list that did come.

    Args:
        root: a directory for it.
        architecture: Debian's name.
        emit: told of progress.
        sources: a file of sources.list(5); the host's sources by default.
        doing: the task that this is a part of.
    """
    store.require_space(root, _LISTS_SPACE)
    for name in ("lists/partial", "archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    settings = {
        "Dir::State": root,
        "Dir::State::Lists": root / "lists",
        "Dir::State::Status": root / "status",
        "Dir::Cache": root,
        "Dir::Cache::Archives": root / "archives",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Acquire::Languages": "none",
        "APT::Update::Post-Invoke": "",
        "APT::Update::Post-Invoke-Success": "",
    }
    if sources is not None:
        settings |= {"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null"}
    options = [f"-o{key}={value}" for key, value in settings.items()]
    if os.geteuid() == 0:
        options.append("-oAPT::Sandbox::User=root")  # the state is in a directory that _apt cannot enter
    state = State(tuple(options))
    emit(TaskAdvanced(task=doing, note="fetching package lists"))
    try:
        process.run([_apt_get(), *options, "-q", "update", "--error-on=any"], emit=emit)
    except ProcessError as error:
        return state, error
    return state, None


def _apt_get() -> str:
    return process.require("apt-get", hint=_NO_APT)


def _show(state: State, names: list[str]) -> list[Package]:
    program = process.require("apt-cache", hint=_NO_APT)
    try:
        done = process.run([program, *state.options, "show", "--no-all-versions", *names])
    except ProcessError:
        return []
    return [
        Package(
            name=stanza["Package"],
            version=stanza["Version"],
            architecture=stanza["Architecture"],
            depends=stanza.get("Depends", ""),
            sha256=stanza.get("SHA256", ""),
            file=os.path.basename(stanza.get("Filename", "")),
        )
        for stanza in deb.parse_stanzas(done.stdout.decode(errors="replace"))
        if {"Package", "Version", "Architecture"} <= stanza.keys() and stanza.get("Filename")
    ]


def lookup(
    name: str, architecture: str, *, private: Path, fresh: bool = False, emit: Emit = ignore
) -> tuple[Package, State]:
    """The version of a package that apt would install, and the state to fetch it with.

    Args:
        name: the package.
        architecture: Debian's name of it.
        private: where a state of Atoll's own may be kept; made only if the host's does not have the package.
        fresh: use newly fetched package lists even if the host has some.
        emit: told of progress.

    Raises:
        PreflightError: the host has no apt.
        ImageError: ``image.apt``: the lists cannot be fetched, or no archive has the package.
    """
    _apt_get()  # none at all is told apart from one that lacks the package
    if not fresh:
        found = show(State(), name, architecture)
        if found is not None:
            return found, State()
    state, failure = _own_state(private, architecture, emit)
    found = show(state, name, architecture)
    if found is None and failure is not None:
        hint = "check the network and `apt-get update`; without either, give a kernel with --kernel"
        message = "cannot fetch the package lists"
        raise ImageError(message, code="apt", hint=hint, detail=failure.detail) from failure
    if found is None:
        raise lacking(name, architecture, hint="or give a kernel with --kernel")
    return found, state


def show(state: State, name: str, architecture: str) -> Package | None:
    """What the archive says of one package."""
    found = (item for item in _show(state, [name]) if item.architecture == architecture)
    return next(found, None)


@contextmanager
def suite_state(
    cache: Path, architecture: str, suite: str, *, doing: str, emit: Emit = ignore
) -> Iterator[State]:
    """A state of Debian's ``suite``, whichever one the host is of, for as long as it is used.

    Args:
        cache: where it may be kept meanwhile.
        architecture: Debian's name.
        suite: ``trixie``.
        doing: the task that this is a part of.
        emit: told of progress.

    Raises:
        PreflightError: the host has no apt.
        ImageError: ``image.apt``: it has no Debian archive, or the lists cannot be fetched.
    """
    _apt_get()
    lines = debian_sources(targets(), suite)
    if not lines:
        hint = f"add Debian's {suite} to the host's apt sources"
        raise ImageError("this host has no archive of Debian", code="apt", hint=hint)
    root = private_state(cache, f"{suite}-{architecture}")
    try:
        root.mkdir(parents=True)
        sources = root / "sources.list"
        sources.write_text("".join(f"{line}\n" for line in lines))
        state, failure = _own_state(root, architecture, emit, sources=sources, doing=doing)
        if failure is not None:
            message, hint = f"cannot fetch the package lists of {suite}", "check the network"
            raise ImageError(message, code="apt", hint=hint, detail=failure.detail) from failure
        yield state
    finally:
        store.remove_tree(root)


def lacking(name: str, architecture: str, *, hint: str = "") -> ImageError:
    """No archive has that package; ``hint`` is what else may help."""
    message = f"no archive of this host has {name} for {architecture}"
    first = "add Debian's archive to the host's apt sources"
    return ImageError(message, code="apt", hint=f"{first}, {hint}" if hint else first)


def fetch(
    package: Package, state: State, downloads: Path, *, doing: str = _KERNEL, emit: Emit = ignore
) -> Path:
    """The file of a package, from ``downloads`` or else fetched into it; its digest is that of the archive.

    Raises:
        ImageError: ``image.apt``: it cannot be fetched, or is not what the archive promised.
        StoreError: ``downloads`` cannot be written.
    """
    final = downloads / package.file
    if final.is_file() and _sha256(final) == package.sha256:
        return final
    emit(TaskAdvanced(task=doing, note=f"downloading {package.file}"))
    store.require_space(downloads, _PACKAGE_SPACE)
    with store.staging(downloads, package.name) as staged:
        options = ["-oAPT::Sandbox::User=root"] if os.geteuid() == 0 else []
        name = f"{package.name}:{package.architecture}={package.version}"
        try:
            process.run([_apt_get(), *state.options, *options, "-q", "download", name], cwd=staged, emit=emit)
        except ProcessError as error:
            hint = "check the network; without one, give a kernel with --kernel"
            raise ImageError(
                f"cannot download {package.name}", code="apt", hint=hint, detail=error.detail
            ) from error
        files = list(staged.glob("*.deb"))
        if len(files) != 1 or (package.sha256 and _sha256(files[0]) != package.sha256):
            raise ImageError(f"{package.name} is not what the archive promised", code="apt")
        files[0].replace(final)
    return final


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def private_state(cache: Path, architecture: str) -> Path:
    """A place for the state of Atoll's own, emptied of what an earlier use left."""
    path = cache / f"apt-{architecture}"
    store.remove_tree(path)
    return path


def scratch() -> Path:
    """A new directory for large temporary trees: TMPDIR, or else /var/tmp, which is seldom in memory."""
    return Path(tempfile.mkdtemp(prefix="atoll-", dir=os.environ.get("TMPDIR") or "/var/tmp"))  # noqa: S108
