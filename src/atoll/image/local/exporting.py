"""An image given away: as an OCI layout, a directory or a tar, or as ``docker load`` takes it.

The same image gives the same bytes. Docker's form is a layout, too, with the list beside it that every Docker
since 1.10 reads, and with layers that are not compressed, as such Dockers name a layer by its plain bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.events import Emit, progress, task
from atoll.image.decompressing import CHUNK, HEAD, decompressed, kind_of
from atoll.image.kernel import host_architecture
from atoll.image.local import naming
from atoll.image.local.tarheaders import DIRECTORY, END, Entry, header, padding
from atoll.image.oci import documents
from atoll.image.oci.documents import (
    CONFIG,
    INDEX,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    RootFs,
)
from atoll.image.oci.reference import parse
from atoll.image.oci.source import LayerSource, Offered, Stream
from atoll.image.oci.squeezing import Compression, squeezed
from atoll.image.refusing import refuse

__all__ = ["Form", "export"]

#: A tar of a layout; one for ``docker load``, too; the layout as a directory.
Form = Literal["oci", "docker", "oci-dir"]

_MEDIA_TYPES: dict[Compression, str] = {"none": LAYER, "gzip": LAYER_GZIP, "zstd": LAYER_ZSTD}
_KINDS: dict[str, Compression] = {"": "none", "gzip": "gzip", "zstd": "zstd"}
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOBS = "blobs/sha256"
_TASK = "export"


class _Loadable(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in Docker's list."""

    config: str
    repo_tags: tuple[str, ...]
    layers: tuple[str, ...]


class _Written(msgspec.Struct, frozen=True):
    """A layer that was written."""

    descriptor: Descriptor
    diff_id: str


class _Sink(Protocol):
    """Where files go."""

    def add(self, name: str, data: bytes) -> None:
        """A small file."""

    def spool(self) -> AbstractContextManager[BinaryIO]:
        """A file for a blob whose digest is not known yet; ``keep`` takes it within the block."""

    def keep(self, file: BinaryIO, digest: str, size: int) -> None:
        """Have what was written to such a file as a blob."""

    def pass_on(self, digest: str, size: int) -> AbstractContextManager[BinaryIO]:
        """What takes exactly ``size`` bytes of a blob whose digest is known."""


def export(
    offered: Offered,
    out: BinaryIO | Path,
    *,
    form: Form,
    names: Sequence[str] = (),
    layers: Compression | None = None,
    emit: Emit,
) -> str:
    """Write an image.

    Args:
        offered: it.
        out: a new file or directory, which has its name when it is whole; or a stream, such as a pipe.
        form: of what is written.
        names: references that it has there; by default those that it has. Those without a tag are left out.
        layers: how they are compressed; by default plain for ``docker``, else gzip. One that is compressed
            so already keeps its bytes, and if all do the manifest does, too.
        emit: told of progress.

    Returns:
        The digest of its manifest there.

    Raises:
        ImageError: ``image.archive``: the image is not what its digests say; ``image.name``: a name is none.
        StoreError: ``store.already_exists``, ``store.full``, ``store.unwritable`` or ``store.io``.
        OSError: the stream takes no more.
    """
    how: Compression = layers or ("none" if form == "docker" else "gzip")
    references = [parse(name).tagged() for name in names or offered.names]
    named = tuple(dict.fromkeys(str(each) for each in references if each.tag))
    with task(emit, _TASK, f"Exporting {named[0] if named else 'the image'}", unit="B"), ExitStack() as stack:
        sink: _Sink
        if form == "oci-dir":
            if not isinstance(out, Path):
                raise StoreError("a directory cannot be written to a stream", code="unwritable")
            sink = stack.enter_context(_directory(out))
        else:
            sink = stack.enter_context(_tar(out))
        return _write(offered, sink, how, named, docker=form == "docker", emit=emit)


def _write(
    offered: Offered, sink: _Sink, how: Compression, names: tuple[str, ...], *, docker: bool, emit: Emit
) -> str:
    told = progress(emit, _TASK)
    sink.add("oci-layout", _LAYOUT)
    done: dict[str, _Written] = {}
    written = []
    before = 0
    for layer in offered.layers:
        one = _layer(layer, sink, how, done)
        written.append(one)
        before += one.descriptor.size
        told(before)
    text, config = _config(offered, tuple(one.diff_id for one in written))
    descriptor = Descriptor(CONFIG, documents.digest_of(text), len(text))
    manifest = _manifest(offered, descriptor, tuple(one.descriptor for one in written))
    digest = documents.digest_of(manifest)
    sink.add(_path(descriptor.digest), text)
    sink.add(_path(digest), manifest)
    kind = documents.manifest_of(manifest).media_type or MANIFEST
    platform = Platform(config.architecture, config.os, config.variant)
    described = Descriptor(kind, digest, len(manifest), platform=platform)
    index = Index(schema_version=2, media_type=INDEX, manifests=_entries(described, names))
    sink.add("index.json", documents.encode(index))
    if docker:
        paths = tuple(_path(one.descriptor.digest) for one in written)
        own = _Loadable(_path(descriptor.digest), tuple(parse(name).familiar for name in names), paths)
        sink.add("manifest.json", msgspec.json.encode((own,)))
    return digest


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _entries(image: Descriptor, names: tuple[str, ...]) -> tuple[Descriptor, ...]:
    """The image once for each of its names, as Docker and containerd have it."""
    return tuple(
        msgspec.structs.replace(image, annotations={naming.FULL_NAME: name, naming.REF_NAME: parse(name).tag})
        for name in names
    ) or (image,)


def _config(offered: Offered, diff_ids: tuple[str, ...]) -> tuple[bytes, ImageConfig]:
    """The image's configuration as it is, or one for a bare file system."""
    if offered.config:
        config = documents.config_of(offered.config)
        if config.rootfs.diff_ids != diff_ids:
            raise refuse("a layer is not what its digest says", hint="nothing was exported")
        return offered.config, config
    own = documents.platform_of(host_architecture())
    config = ImageConfig(architecture=own.architecture, os=own.os, rootfs=RootFs("layers", diff_ids))
    return documents.encode(config), config


def _manifest(offered: Offered, config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """The image's manifest as it is if it is right still, else a new one."""
    notes = None
    if offered.manifest:
        old = documents.manifest_of(offered.manifest)
        notes = old.annotations
        same = [one.digest for one in old.layers] == [one.digest for one in layers]
        if same and old.config.digest == config.digest:
            return offered.manifest
    made = Manifest(schema_version=2, media_type=MANIFEST, config=config, layers=layers, annotations=notes)
    return documents.encode(made)


def _layer(layer: LayerSource, sink: _Sink, how: Compression, done: dict[str, _Written]) -> _Written:
    """Write a layer, unless the image has the same one further down."""
    known = layer.digest or layer.diff_id
    if known and known in done:
        return done[known]
    kind = _kind(layer)
    digest = layer.digest or (layer.diff_id if kind == "none" else "")
    if kind == how and digest.startswith("sha256:") and layer.diff_id and layer.size is not None:
        written = _passed_on(layer, sink, how, digest, layer.size)
    else:
        written = _made(layer, sink, how)
    done[known or written.descriptor.digest] = written
    return written


def _kind(layer: LayerSource) -> Compression | None:
    with layer.open() as stream:
        head = b""
        while len(head) < HEAD and (data := stream.read(HEAD - len(head))):
            head += data
    return _KINDS.get(kind_of(head))


def _passed_on(layer: LayerSource, sink: _Sink, how: Compression, digest: str, size: int) -> _Written:
    """A layer whose bytes stay as they are."""
    sums = hashlib.sha256()
    total = 0
    with layer.open() as stream, sink.pass_on(digest, size) as file:
        while data := stream.read(CHUNK):
            total += len(data)
            if total > size:
                break
            sums.update(data)
            file.write(data)
        if total != size or f"sha256:{sums.hexdigest()}" != digest:
            raise refuse(f"the layer {digest} is not what its digest says", hint="nothing was exported")
    return _Written(Descriptor(_MEDIA_TYPES[how], digest, size), layer.diff_id)


class _Summed:
    """A stream whose bytes are summed up as they pass."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.sums = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.sums.update(data)
        return data

    @property
    def digest(self) -> str:
        return f"sha256:{self.sums.hexdigest()}"


def _made(layer: LayerSource, sink: _Sink, how: Compression) -> _Written:
    """A layer whose bytes are made anew."""
    with ExitStack() as stack:
        given = _Summed(stack.enter_context(layer.open()))
        plain = _Summed(decompressed(given))
        file = stack.enter_context(sink.spool())
        sums, size = hashlib.sha256(), 0
        for piece in squeezed(plain, how):
            file.write(piece)
            sums.update(piece)
            size += len(piece)
        while given.read(CHUNK):  # what follows a compressed stream counts
            pass
        for said, found in ((layer.digest, given.digest), (layer.diff_id, plain.digest)):
            if said.startswith("sha256:") and said != found:
                raise refuse(f"the layer {said} is not what its digest says", hint="nothing was exported")
        digest = f"sha256:{sums.hexdigest()}"
        sink.keep(file, digest, size)
    return _Written(Descriptor(_MEDIA_TYPES[how], digest, size), plain.digest)


class _Directory:
    """A layout that is a directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        (place / _BLOBS).mkdir(parents=True)
        self._spool = place / _BLOBS / "partial"

    def add(self, name: str, data: bytes) -> None:
        (self._place / name).write_bytes(data)

    def spool(self) -> AbstractContextManager[BinaryIO]:
        return self._spool.open("wb")

    def keep(self, file: BinaryIO, digest: str, size: int) -> None:
        assert size == file.tell()
        self._spool.rename(self._place / _path(digest))

    def pass_on(self, digest: str, size: int) -> AbstractContextManager[BinaryIO]:
        assert size >= 0
        return (self._place / _path(digest)).open("wb")


@contextmanager
def _directory(out: Path) -> Iterator[_Sink]:
    place = out.absolute()
    if os.path.lexists(place):
        raise StoreError(f"{out} exists already", code="already_exists", hint="choose another name")
    lock = place.with_name(f".{place.name}.lock")
    with store.lock(lock), store.staging(place.parent, place.name) as staged:
        try:
            yield _Directory(staged)
            store.create(staged, place)
        finally:
            lock.unlink()  # whoever waits for it sees that it is gone, and makes a new one


class _Tar:
    """A layout that is a tar."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        names = (b"blobs/", f"{_BLOBS}/".encode())
        out.writelines(header(Entry(name=name, kind=DIRECTORY, mode=0o755)) for name in names)

    def add(self, name: str, data: bytes) -> None:
        with self._entry(name, len(data)) as out:
            out.write(data)

    @contextmanager
    def _entry(self, name: str, size: int) -> Iterator[BinaryIO]:
        self._out.write(header(Entry(name=name.encode(), size=size)))
        yield self._out
        self._out.write(bytes(padding(size)))

    def spool(self) -> AbstractContextManager[BinaryIO]:
        return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - as apt.scratch

    def keep(self, file: BinaryIO, digest: str, size: int) -> None:
        file.seek(0)
        with self._entry(_path(digest), size) as out:
            shutil.copyfileobj(file, out, CHUNK)

    def pass_on(self, digest: str, size: int) -> AbstractContextManager[BinaryIO]:
        return self._entry(_path(digest), size)


@contextmanager
def _tar(out: BinaryIO | Path) -> Iterator[_Sink]:
    with ExitStack() as stack:
        file = stack.enter_context(store.new_file(out)) if isinstance(out, Path) else out
        yield _Tar(file)
        file.write(END)
        file.flush()
