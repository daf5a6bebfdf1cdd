"""The layer that a machine's changes make over its image, and the configuration with it. Pure.

Sources: the OCI image specification 1.1, "Image Layer Filesystem Changeset" and "Image Configuration";
Docker's reference, ``docker container commit``, for the words that change a configuration.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from atoll.errors import UsageError
from atoll.image.local.tarheaders import (
    CHARACTER,
    DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    Entry,
)

__all__ = ["Change", "Planned", "State", "committed", "parse_change", "plan"]

_WHITEOUT = b".wh."

_KINDS = {
    "file": FILE,
    "directory": DIRECTORY,
    "symlink": SYMLINK,
    "fifo": FIFO,
    "character": CHARACTER,
    "block": DEVICE,
}

#: What a machine's own is, and no image's: what it mounts, who it is, and what Atoll wrote for it. With a
#: slash at its end: what is in the directory; with a star: all that begins so.
_OWN = (
    *(b"proc/", b"sys/", b"dev/", b"run/", b"tmp/", b"var/tmp/", b"lost+found", b"lost+found/"),
    *(b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"etc/.resolv.conf*", b"etc/machine-id"),
    *(b"var/lib/dbus/machine-id", b"var/lib/systemd/random-seed", b"etc/ssh/ssh_host_*"),
    *(b"usr/local/share/ca-certificates/atoll-host.crt", b"etc/profile.d/atoll-host.sh"),
    *(b"etc/apt/apt.conf.d/90atoll-host", b"etc/systemd/system.conf.d/atoll-host.conf"),
    *(b"lib/modules", b"lib/modules/", b"usr/lib/modules", b"usr/lib/modules/"),
    *(b"etc/pki/ca-trust/source/anchors/atoll-host.crt", b"etc/pki/trust/anchors/atoll-host.crt"),
)
#: There if the host gave its certificates, which then are in these, too.
_GIVEN = (
    b"usr/local/share/ca-certificates/atoll-host.crt",
    b"etc/pki/ca-trust/source/anchors/atoll-host.crt",
    b"etc/pki/trust/anchors/atoll-host.crt",
)
_BUNDLES = (b"etc/ssl/certs/", b"etc/pki/tls/certs/ca-bundle.crt", b"var/lib/ca-certificates/ca-bundle.pem")

_OWN_FILES = frozenset(own for own in _OWN if not own.endswith((b"/", b"*")))
_OWN_BEGINNINGS = tuple(own.rstrip(b"*") for own in _OWN if own.endswith((b"/", b"*")))

#: Attributes that are an overlay's, or of a security policy.
_NOT_TAKEN = (b"trusted.overlay.", b"security.selinux", b"security.ima", b"security.evm")


class State(msgspec.Struct, frozen=True, gc=False):
    """A file as it is.

    Attributes:
        type: as ``atoll.guest.survey`` has it.
        mode: permission bits.
        uid: of its owner; ``gid`` of its group.
        size: of a regular file, bytes.
        mtime: ns since the epoch.
        device: number of a device.
        target: of a symbolic link.
        xattrs: extended attributes, sorted.
        inode: of a file that has other names perhaps; 0 if it is not known.
    """

    type: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime: int = 0
    device: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    inode: int = 0


class Change(NamedTuple):
    """A file that was written.

    Attributes:
        path: below the root.
        here: as it is; None for one that is gone.
        same: it is a directory with nothing changed but what is in it.
    """

    path: bytes
    here: State | None
    same: bool = False


class Planned(NamedTuple):
    """An entry of the layer, and the file whose content follows it, if any."""

    entry: Entry
    content: bytes | None = None


def plan(changes: Sequence[Change]) -> list[Planned]:
    """The entries of a layer, in order: directories before what they hold, links behind what they link to."""
    own, beginnings = _OWN_FILES, _OWN_BEGINNINGS
    if any(path in _GIVEN and here is not None for path, here, _ in changes):
        beginnings += _BUNDLES
    found: list[tuple[Change, Planned]] = []
    left_out: set[bytes] = set()
    gone: tuple[bytes, ...] = ()
    first: dict[int, bytes] = {}
    for change in sorted(changes, key=lambda change: change.path.split(b"/")):
        path, here, _ = change
        if path in own or path.startswith(beginnings):
            left_out |= _parents(path)
            continue
        if gone and path.startswith(gone):
            continue
        if here is None or here.type != "directory":
            gone = (path + b"/",)  # what was below a directory that is gone, or that it took the place of
        if (planned := _planned(path, here, first)) is not None:
            found.append((change, planned))
    return _needed(found, left_out)


def _needed(found: Sequence[tuple[Change, Planned]], left_out: set[bytes]) -> list[Planned]:
    """Without directories that are there for nothing but what was left out, or has not changed."""
    kept: list[Planned] = []
    needed: set[bytes] = set()
    for change, planned in reversed(found):
        path = change.path
        idle = change.same or (path in left_out and path + b"/" not in _OWN_BEGINNINGS)
        if planned.entry.kind == DIRECTORY and idle and path not in needed:
            continue
        needed |= _parents(path)
        kept.append(planned)
    return kept[::-1]


def _parents(path: bytes) -> set[bytes]:
    parts = path.split(b"/")
    return {b"/".join(parts[:count]) for count in range(1, len(parts))}


def _planned(path: bytes, here: State | None, first: dict[int, bytes]) -> Planned | None:
    """The entry of a file; None for the root itself, and for sockets. ``first`` is by inode."""
    if here is None:
        parent, slash, name = path.rpartition(b"/")
        return Planned(Entry(name=parent + slash + _WHITEOUT + name, mode=0))
    if here.type not in _KINDS or not path:
        return None
    kind = _KINDS[here.type]
    if here.inode and here.inode in first:
        return Planned(Entry(name=path, kind=HARD_LINK, mode=here.mode, link=first[here.inode]))
    if here.inode:
        first[here.inode] = path
    entry = _entry(path, kind, here)
    return Planned(entry, path if entry.size else None)


def _entry(path: bytes, kind: bytes, here: State) -> Entry:
    nodes = kind in {CHARACTER, DEVICE}
    return Entry(
        name=path + (b"/" if kind == DIRECTORY else b""),
        kind=kind,
        mode=here.mode,
        uid=here.uid,
        gid=here.gid,
        size=here.size if kind == FILE else 0,
        mtime=here.mtime,
        link=here.target if kind == SYMLINK else b"",
        device=_device(here.device) if nodes else (0, 0),
        xattrs=tuple(one for one in here.xattrs if not one[0].startswith(_NOT_TAKEN)),
    )


def _device(number: int) -> tuple[int, int]:
    """Major and minor number (makedev(3))."""
    major = (number >> 8) & 0xFFF | (number >> 32) & ~0xFFF & 0xFFFF_FFFF
    return major, number & 0xFF | (number >> 12) & 0xFFFF_FF00


# The configuration.

_CHANGE = re.compile(r"([A-Za-z]+)\s+(.+)", re.DOTALL)


def parse_change(text: str) -> tuple[str, str]:
    """An instruction of a Containerfile that changes how an image is run: its word, and what it says.

    Raises:
        UsageError: ``usage.change``: it is none of those.
    """
    match = _CHANGE.fullmatch(text.strip())
    if match is None or match[1].upper() not in _APPLIED:
        hint = f"write one of {', '.join(sorted(_APPLIED))} and what it says, as 'CMD [\"/bin/app\"]'"
        raise UsageError(f"--change {text}: no change of an image", code="change", hint=hint)
    try:
        _APPLIED[match[1].upper()]({}, match[2].strip())
    except ValueError as error:
        raise UsageError(f"--change {text}: {error}", code="change", hint="see `docker commit`") from error
    return match[1].upper(), match[2].strip()


def committed(
    config: dict[str, Any],
    diff_id: str,
    *,
    changes: Sequence[tuple[str, str]],
    message: str,
    machine: str,
    created: str,
) -> dict[str, Any]:
    """An image's configuration with one layer more; what it says that nobody here knows stays.

    Args:
        config: of the image beneath, decoded.
        diff_id: digest of the layer's tar.
        changes: as ``parse_change`` gives them.
        message: what is said of it.
        machine: whose changes they are.
        created: RFC 3339.
    """
    run = dict(config.get("config") or {})
    for word, rest in changes:
        _APPLIED[word](run, rest)
    root = config.get("rootfs") or {}
    step = {"created": created, "created_by": f"atoll image commit {machine}", "comment": message}
    return {
        **config,
        "created": created,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [*root.get("diff_ids", ()), diff_id]},
        "history": [*(config.get("history") or ()), {key: value for key, value in step.items() if value}],
    }


def _words(text: str) -> list[str]:
    """A command: a list of JSON, or a line for the shell."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[str])
        except msgspec.MsgspecError:
            raise ValueError('write a list as ["/bin/app", "-x"]') from None
    return ["/bin/sh", "-c", text]


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError("write NAME=VALUE")
        found[name] = value
    return found


def _env(run: dict[str, Any], text: str) -> None:
    pairs = _pairs(text)
    former = [line for line in run.get("Env") or () if line.partition("=")[0] not in pairs]
    run["Env"] = [*former, *(f"{name}={value}" for name, value in pairs.items())]


def _entrypoint(run: dict[str, Any], text: str) -> None:
    run["Entrypoint"] = _words(text)
    run.pop("Cmd", None)  # it was for the former one


def _cmd(run: dict[str, Any], text: str) -> None:
    run["Cmd"] = _words(text)


def _label(run: dict[str, Any], text: str) -> None:
    run["Labels"] = {**(run.get("Labels") or {}), **_pairs(text)}


def _expose(run: dict[str, Any], text: str) -> None:
    ports = [port if "/" in port else f"{port}/tcp" for port in text.split()]
    if not all(re.fullmatch(r"[0-9]{1,5}(?:-[0-9]{1,5})?/(?:tcp|udp|sctp)", port) for port in ports):
        raise ValueError("write PORT or PORT/udp")
    run["ExposedPorts"] = {**(run.get("ExposedPorts") or {}), **{port: {} for port in ports}}


def _volume(run: dict[str, Any], text: str) -> None:
    places = _words(text) if text.startswith("[") else text.split()
    run["Volumes"] = {**(run.get("Volumes") or {}), **{place: {} for place in places}}


def _workdir(run: dict[str, Any], text: str) -> None:
    if not text.startswith("/"):
        raise ValueError("write an absolute path")
    run["WorkingDir"] = text


def _user(run: dict[str, Any], text: str) -> None:
    run["User"] = text


def _stop_signal(run: dict[str, Any], text: str) -> None:
    run["StopSignal"] = text


_APPLIED = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
