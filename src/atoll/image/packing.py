"""From a tree of files with owners to an image: as root, or in a user namespace where files are a range's.

Without root the tree's files belong to the user's range of subordinate ids (subuid(5)); all that touches
them then runs under ``mmdebstrap --unshare-helper``, which maps the range as root's.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll import process, store
from atoll.errors import PreflightError
from atoll.events import Emit
from atoll.image import apt, erofs

__all__ = ["EPOCH", "HINT_UNSHARE", "digest_of", "helper", "make_tree", "pack", "workspace"]

EPOCH = 1_577_836_800  # 2020-01-01; 0 would make passwords expire and confuses tools
HINT_UNSHARE = (
    "building an image needs root or user namespaces: `apt install mmdebstrap uidmap`, and a line for this "
    "user in /etc/subuid and /etc/subgid; or build it as root"
)


def helper() -> tuple[str, ...]:
    """The words before a command that make it root over the tree's files; none for root itself.

    Raises:
        PreflightError: this user cannot have files of several owners.
    """
    if os.geteuid() == 0:
        return ()
    program = process.find("mmdebstrap")
    if program is None or process.find("newuidmap") is None:
        raise PreflightError("this user cannot build an image", hint=HINT_UNSHARE)
    return (program, "--unshare-helper")


@contextmanager
def workspace(prefix: tuple[str, ...], space: int) -> Iterator[Path]:
    """A scratch directory with room for ``space`` bytes, where the tree is to be ``tree``; gone afterwards.

    Raises:
        StoreError: ``store.full``.
    """
    work = apt.scratch()
    try:
        store.require_space(work, space)
        work.chmod(0o711)  # under another user's id the tools must get in; nobody may list it
        yield work
    finally:
        if prefix and (work / "tree").exists():
            # Its files belong to mapped users; the directory itself is removed with ours, ``work``.
            process.run([*prefix, "find", str((work / "tree").resolve()), "-mindepth", "1", "-delete"])
        store.remove_tree(work)


def make_tree(work: Path, prefix: tuple[str, ...]) -> Path:
    """The empty directory ``work/tree``, or a link there to it, of root's in the namespace of ``prefix``."""
    tree = work / "tree"
    if not prefix:
        tree.mkdir()
        return tree
    real = _writable(work) / "tree"
    process.run([*prefix, "mkdir", "-m755", str(real)])
    tree.symlink_to(real)
    return real


def _writable(work: Path) -> Path:
    """A directory in which any user may write who knows its name; ``work`` cannot be listed by others."""
    place = work / secrets.token_hex(16)
    place.mkdir()
    place.chmod(0o777)
    return place


def pack(work: Path, output: Path, prefix: tuple[str, ...], name: str, emit: Emit) -> None:
    """Make the image ``output`` of ``work``'s tree. Raises as ``erofs.make``."""
    made = output
    if prefix:
        made = _writable(work) / output.name
    erofs.make(
        (work / "tree").resolve(),
        made,
        epoch=EPOCH,
        identity=uuid.uuid5(uuid.NAMESPACE_OID, f"atoll image {name}"),
        exclude="^dev/.+",  # devtmpfs is mounted there
        prefix=prefix,
        emit=emit,
    )
    if made != output:
        output.write_bytes(made.read_bytes())


def digest_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
