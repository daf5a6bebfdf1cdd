"""An image of a machine: its image's layers, and one of what the machine has changed.

What it has changed is read of a snapshot of its disk, in a VM that boots none of it, and never on the host:
its file system was written by a guest. A machine whose image has no layers, as those of the images that Atoll
builds by itself, becomes an image of one layer, which has all.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec

from atoll import store
from atoll.config import Config
from atoll.errors import GuestError, ImageError, ProtocolError, StoreError
from atoll.events import Emit, progress, task
from atoll.guest.survey import End, Entry, Piece, Record, Survey
from atoll.image.architectures import PACKAGED
from atoll.image.local.tarheaders import END, header, padding
from atoll.image.manifest import Image, ImageManifest, load
from atoll.image.oci import documents, keeping, offering
from atoll.image.oci.committing import Change, Planned, State, committed, plan
from atoll.image.oci.documents import Descriptor, Manifest
from atoll.image.oci.reference import Reference
from atoll.image.oci.source import LayerSource, Offered
from atoll.machine import comparing
from atoll.machine.beside import beside
from atoll.paths import Paths
from atoll.patience import to_its_end
from atoll.snapshot.catalog import Snapshot, manifest_of

__all__ = ["base_of", "commit"]

#: The agent's own program in the VM.
_AGENT = "/proc/1/exe"

#: Bytes that are gathered before they are written, and room that is looked for.
_GATHER, _SPARE = 1 << 20, 64 << 20

_ZEROS = bytes(_GATHER)


def base_of(paths: Paths, manifest: ImageManifest) -> Image | None:
    """The image whose layers a machine's root is; None if that has none.

    Raises:
        ImageError: ``image.missing``: it is not here any more.
    """
    if manifest.origin is None:
        return None
    try:
        return load(paths.image(manifest.origin.manifest.replace(":", "-")))
    except (StoreError, ImageError) as error:
        message = f"the image {manifest.name}, of which the machine was made, is not here any more"
        hint = f"`atoll image pull {manifest.name}` brings it, if it is still the same"
        raise ImageError(message, code="missing", hint=hint) from error


async def commit(
    config: Config,
    snapshot: Snapshot,
    base: Image | None,
    *,
    references: Sequence[Reference],
    changes: Sequence[tuple[str, str]],
    message: str,
    emit: Emit,
) -> Image:
    """Make an image of a snapshot of a machine.

    Args:
        config: the settings.
        snapshot: it.
        base: as ``base_of`` has it.
        references: that mean the image from now on.
        changes: of how it is run (``atoll.image.oci.committing.parse_change``).
        message: what is said of it.
        emit: told of progress.

    Raises:
        BootError: the VM in which it is read does not come up.
        GuestError: a file cannot be read.
        StoreError: ``store.full``, or the image cannot be written.
    """
    machine = manifest_of(snapshot).machine
    manifest = await asyncio.to_thread(store.read_record, snapshot.place.image, ImageManifest)
    with store.staging(config.paths.images, f"commit-{secrets.token_hex(4)}") as staged:
        layer = staged / "layer.tar"
        with task(emit, "commit", f"Reading what {machine} has changed"):
            diff_id, size = await _read(config, snapshot, layer, everything=base is None, emit=emit)
        work = partial(
            _add, config, manifest, base, layer, diff_id, size, references, changes, message, machine, emit
        )
        return await to_its_end(asyncio.to_thread(work))


def _add(
    config: Config,
    manifest: ImageManifest,
    base: Image | None,
    layer: Path,
    diff_id: str,
    size: int,
    references: Sequence[Reference],
    changes: Sequence[tuple[str, str]],
    message: str,
    machine: str,
    emit: Emit,
) -> Image:
    beneath = offering.offer(base) if base is not None else Offered(layers=())
    former = msgspec.json.decode(beneath.config) if base is not None else _bare(manifest)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = committed(former, diff_id, changes=changes, message=message, machine=machine, created=created)
    data = msgspec.json.encode(made)
    own = LayerSource(open=partial(_opened, layer), digest=diff_id, size=size, diff_id=diff_id)
    layers = (*beneath.layers, own)
    document = Manifest(
        schema_version=2,
        media_type=documents.MANIFEST,
        config=Descriptor(documents.CONFIG, documents.digest_of(data), len(data)),
        layers=tuple(Descriptor(documents.LAYER, one.diff_id, one.size or 0) for one in layers),
    )
    offered = Offered(layers=layers, config=data, manifest=documents.encode(document))
    return keeping.add(
        config.paths,
        offered,
        name=references[0].short(config.default_registry),
        platform=documents.platform_of(manifest.architecture),
        references=references,
        emit=emit,
    )


def _opened(layer: Path) -> IO[bytes]:
    return layer.open("rb", buffering=0)


def _bare(manifest: ImageManifest) -> dict[str, Any]:
    """The configuration of an image that has none."""
    return {
        "architecture": PACKAGED.get(manifest.architecture, manifest.architecture),
        "os": "linux",
        "config": {"Cmd": [manifest.shell]},
    }


async def _read(
    config: Config, snapshot: Snapshot, target: Path, *, everything: bool, emit: Emit
) -> tuple[str, int]:
    """Write the layer to ``target``; the digest of its tar, and how many bytes it has."""
    async with AsyncExitStack() as stack:
        stack.enter_context(comparing.undisturbed(snapshot))
        name = f"commit-{secrets.token_hex(3)}"
        vm = await beside(config, name, (snapshot, snapshot), stack, emit)
        survey = Survey(vm.agent, _AGENT, *comparing.serials(shared=True)[0])
        records = await survey.records(everything=everything, patience=config.boot_timeout)
        planned = await asyncio.to_thread(plan, [_change(record) for record in records])
        total = sum(one.entry.size for one in planned)
        await asyncio.to_thread(store.require_space, target.parent, 2 * total + _SPARE)
        file = stack.enter_context(await asyncio.to_thread(target.open, "xb"))
        return await _write(survey, planned, _Writer(file, emit))


def _change(record: Record) -> Change:
    here, base = record.here, record.base
    if here is None:
        return Change(record.path, None)
    same = here.type == "directory" and base is not None and _owner(here) == _owner(base)
    return Change(record.path, _state(here), same)


def _owner(entry: Entry) -> tuple[object, ...]:
    return (entry.type, entry.mode, entry.uid, entry.gid, entry.xattrs)


def _state(entry: Entry) -> State:
    return State(
        type=entry.type,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        mtime=entry.mtime,
        device=entry.device,
        target=entry.target,
        xattrs=tuple(sorted(_attributes(entry.xattrs))),
        inode=int.from_bytes(entry.place[:8], "little"),
    )


def _attributes(packed: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    while packed:
        name, zero, rest = packed.partition(b"\0")
        size = int.from_bytes(rest[:4], "little")
        if not zero or len(rest) < 4 + size:
            raise ProtocolError("malformed extended attributes from the guest")
        found.append((name, rest[4 : 4 + size]))
        packed = rest[4 + size :]
    return found


class _Writer:
    """A file that is summed while it is written.

    Args:
        file: it.
        emit: told of how far it is.
    """

    def __init__(self, file: IO[bytes], emit: Emit) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._parts: list[bytes] = []
        self._held = 0
        self._advance = progress(emit, "commit")
        self.size = 0

    async def put(self, data: bytes) -> None:
        """Write ``data`` behind what was written."""
        self._parts.append(data)
        self._held += len(data)
        self.size += len(data)
        if self._held >= _GATHER:
            await self._flush()

    async def fill(self, count: int) -> None:
        """Write so many zeros."""
        while count > 0:
            await self.put(_ZEROS[: min(count, _GATHER)])
            count -= _GATHER

    async def finish(self) -> str:
        """Have all written; the digest."""
        await self._flush()
        return f"sha256:{self._digest.hexdigest()}"

    async def _flush(self) -> None:
        data, self._parts, self._held = b"".join(self._parts), [], 0
        await to_its_end(asyncio.to_thread(self._write, data))
        self._advance(self.size)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        with store.refusing(Path(self._file.name)):
            self._file.write(data)


async def _write(survey: Survey, planned: Sequence[Planned], writer: _Writer) -> tuple[str, int]:
    paths = [one.content for one in planned if one.content is not None]
    async with aclosing(survey.contents(paths)) as pieces:
        for one in planned:
            await writer.put(header(one.entry))
            if one.content is None:
                continue
            done = 0
            try:
                while isinstance(piece := await anext(pieces), Piece):
                    if piece.offset + len(piece.data) > one.entry.size:
                        raise ProtocolError("a file from the guest became larger")
                    await writer.fill(piece.offset - done)
                    await writer.put(piece.data)
                    done = piece.offset + len(piece.data)
            except StopAsyncIteration:
                raise ProtocolError("the contents of files from the guest were cut short") from None
            except GuestError as error:
                raise GuestError(
                    f"/{one.content.decode(errors='replace')}: {error.message}",
                    reason=error.reason,
                    errno=error.errno,
                ) from error
            assert isinstance(piece, End)
            await writer.fill(one.entry.size - done)
            await writer.fill(padding(one.entry.size))
    await writer.put(END)
    return await writer.finish(), writer.size
