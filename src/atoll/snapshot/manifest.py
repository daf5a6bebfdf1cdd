"""What a snapshot is, as its manifest says it. Pure."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from atoll.errors import StoreError, UsageError
from atoll.vm.chain import Layer

__all__ = ["Entry", "Kind", "Manifest", "check_labels", "check_name", "decode", "encode", "id_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

#: What a manifest may be large at most, bytes.
MOST = 8 << 20


class Kind(StrEnum):
    """What was written down."""

    MACHINE = "machine"
    SANDBOX = "sandbox"


class Entry(msgspec.Struct, frozen=True):
    """A file of a snapshot.

    Attributes:
        size: bytes.
        digest: as ``atoll.snapshot.digests.digest``.
    """

    size: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is. It is written last: what has none is none.

    Attributes:
        schema: version of this record.
        name: what its user calls it; no two of the same machine have it.
        kind: of what.
        machine: name that the machine had.
        machine_id: of the machine; it stays when that is renamed.
        parent: id of the snapshot from which the machine had gone on; empty if there was none.
        created: seconds since the epoch.
        description: the user's own words.
        labels: likewise.
        hypervisor: QEMU's version.
        cpu: what tells the host's CPU from others.
        accelerator: what executed its vCPUs.
        memory: bytes that the guest had.
        ram: whether the RAM is in it; else it is the disk alone.
        devices: what was plugged in, in the hypervisor's own words.
        packs: digest of the index of its packs; empty without RAM.
        layers: files that its disk consists of, the lowest first; empty if it has none of its own.
        size: of the disk, bytes.
        files: all others beside the packs, by their names, and the layers.
        stopped: seconds for which the vCPUs stood still.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    name: str
    kind: Kind
    machine: str
    machine_id: str
    parent: str = ""
    created: float
    description: str = ""
    labels: dict[str, str] = {}
    hypervisor: str = ""
    cpu: str = ""
    accelerator: str = ""
    memory: int = 0
    ram: bool = False
    devices: tuple[dict[str, Any], ...] = ()
    packs: str = ""
    layers: tuple[Layer, ...] = ()
    size: int = 0
    files: dict[str, Entry] = {}
    stopped: float = 0.0


def encode(manifest: Manifest) -> bytes:
    """The manifest as it is written."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def id_of(written: bytes) -> str:
    """The snapshot's id: 16 hex digits of the SHA-256 of its manifest, which so vouches for itself."""
    return hashlib.sha256(written).hexdigest()[:16]


def decode(written: bytes, name: str) -> Manifest:
    """The manifest of the snapshot whose id is ``name``.

    Raises:
        StoreError: ``store.corrupt`` or ``store.newer``.
    """
    hint = "`atoll snapshot rm` removes it"
    if id_of(written) != name:
        raise StoreError(f"the manifest of snapshot {name} was changed", code="corrupt", hint=hint)
    try:
        schema = msgspec.json.decode(written, type=_Versioned).schema
        if schema > Manifest.SCHEMA:
            message = f"snapshot {name} was made by a newer Atoll"
            raise StoreError(message, code="newer", hint="use that one")
        return msgspec.json.decode(written, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the manifest of snapshot {name} is corrupt: {error}"
        raise StoreError(message, code="corrupt", hint=hint) from error


class _Versioned(msgspec.Struct):
    schema: int


def check_name(name: str) -> str:
    """A name of a snapshot. Raises ``UsageError``: ``usage.snapshot``."""
    if not _NAME.fullmatch(name):
        hint = "use letters, digits, and . _ - but at the beginning; at most 63"
        raise UsageError(f"{name!r} cannot be a snapshot's name", code="snapshot", hint=hint)
    return name


def check_labels(labels: list[str]) -> dict[str, str]:
    """Labels of the form ``KEY=VALUE``. Raises ``UsageError``: ``usage.label``."""
    found: dict[str, str] = {}
    for label in labels:
        key, given, value = label.partition("=")
        if not key or not given:
            raise UsageError(f"{label!r} is no label", code="label", hint="write KEY=VALUE")
        found[key] = value
    return found
