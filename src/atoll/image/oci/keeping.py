"""Images that consist of layers, on this host: taken in, given out again, verified.

Such an image is a directory like any other of the catalog, by the digest of its manifest:
``images/sha256-<digest>/`` with ``root.erofs``, which has the contents of all layers' files and behind them
the metadata of the one file system that they make; ``oci.json`` and ``config.json``, its manifest and its
configuration as they came; ``layers/<n>.index`` and ``.tape`` of each layer; and ``manifest.json``, written
last.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from atoll import store, threads
from atoll.errors import AtollError, ImageError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.image import catalog, packing
from atoll.image.architectures import PACKAGED, uname_of
from atoll.image.manifest import MANIFEST, ROOT, Image, ImageManifest, load
from atoll.image.oci import documents, layer, names, relocating, surveying
from atoll.image.oci.command import directories_of
from atoll.image.oci.documents import ImageConfig, Manifest, Platform
from atoll.image.oci.layer import Budget, place_of
from atoll.image.oci.merging import Tree
from atoll.image.oci.metadata import BLOCK, plan, superblock
from atoll.image.oci.offering import CONFIG, DOCUMENT
from atoll.image.oci.record import Layer, Origin
from atoll.image.oci.reference import Reference
from atoll.image.oci.runconfig import RunConfig
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.oci.space import Space, blocks
from atoll.image.oci.stopping import Stopping
from atoll.image.refusing import refuse
from atoll.paths import Paths

__all__ = ["MOST_BYTES", "add"]

#: Bytes that an image may unpack to.
MOST_BYTES = 64 << 30

#: Layers that are read at once: more is no faster, and registries dislike it.
_AT_ONCE = 4

_SPARE = 64 << 20

#: Seconds between two words on progress.
_INTERVAL = 0.1

#: Files by which programs take the guest for a container; exported containers have them.
_TRACES = (b".dockerenv", b"run/.containerenv")


def add(
    paths: Paths,
    offered: Offered,
    *,
    name: str,
    platform: Platform,
    references: Sequence[Reference] = (),
    most: int = MOST_BYTES,
    programs: Sequence[str] = (),
    emit: Emit = ignore,
) -> Image:
    """Take in an image; one that is here already is left as it is.

    Args:
        paths: where images are kept.
        offered: the image.
        name: for people.
        platform: of an image that does not say it.
        references: that mean it from now on.
        most: bytes that it may unpack to.
        programs: which are looked for in it, for its manifest.
        emit: told of progress.

    Raises:
        ImageError: ``image.archive``: it is damaged, too large, or not what a digest says.
        StoreError: ``store.full``, or it cannot be written.
    """
    while True:
        image = _have(paths, offered, name, platform, most, programs, emit)
        assert image.manifest.origin is not None
        with store.lock(catalog.lock_of(image.directory)):
            if not image.directory.is_dir():  # somebody has removed it just now
                continue
            for reference in references:
                names.point(paths, reference, image.manifest.architecture, image.manifest.origin.manifest)
        return image


def _have(
    paths: Paths,
    offered: Offered,
    name: str,
    platform: Platform,
    most: int,
    programs: Sequence[str],
    emit: Emit,
) -> Image:
    """The image, made if it is not here."""
    digest = documents.digest_of(offered.manifest) if offered.manifest else ""
    if digest and (known := _known(paths, digest)) is not None:
        return known
    key = catalog.directory_by(paths, digest or f"import-{secrets.token_hex(8)}")
    with store.lock(catalog.lock_of(key)):
        if digest and (known := _known(paths, digest)) is not None:
            return known  # another process has taken it in meanwhile
        try:
            with store.staging(paths.images, key.name) as staged:
                made = _make(paths, offered, staged, name, platform, most, programs, emit)
                return _published(paths, staged, key, made)
        finally:
            if not digest:
                catalog.lock_of(key).unlink(missing_ok=True)


def _published(paths: Paths, staged: Path, key: Path, made: ImageManifest) -> Image:
    """The image that was made in ``staged``, unless there is one already that was made of the same."""
    assert made.origin is not None
    final = catalog.directory_by(paths, made.origin.manifest)
    if final == key:
        store.publish(staged, final)
        return load(final)
    with store.lock(catalog.lock_of(final)):
        if _known(paths, made.origin.manifest) is None:
            store.publish(staged, final)
        return load(final)


def _known(paths: Paths, digest: str) -> Image | None:
    try:
        return load(catalog.directory_by(paths, digest))
    except AtollError:  # none, or a damaged one, which is made again
        return None


def _make(
    paths: Paths,
    offered: Offered,
    staged: Path,
    name: str,
    platform: Platform,
    most: int,
    programs: Sequence[str],
    emit: Emit,
) -> ImageManifest:
    """The image in ``staged``."""
    said = documents.config_of(offered.config) if offered.config else None
    sources = _with_diff_ids(offered.layers, said)
    total = sum(source.size or 0 for source in sources)
    store.require_space(staged, total + _SPARE)
    place_of(staged, 0).parent.mkdir()
    root = staged / ROOT
    with root.open("x+b") as file:
        space = Space(file.fileno(), staged, start=BLOCK, most=most)
        with task(emit, "layers", f"Unpacking {name}", total=total, unit="bytes"):
            layers = _Taking(paths, staged, space, _Progress(len(sources), emit)).all(sources)
        tree = _tree_of(staged, layers, said, whiteouts=offered.whiteouts)
        found = surveying.survey(tree, file.fileno(), programs)
        config, document = _documents(offered, layers, platform, found.architecture)
        start = blocks(space.end)
        system = _finish(file.fileno(), tree, start, layers)
    (staged / CONFIG).write_bytes(config)
    (staged / DOCUMENT).write_bytes(document)
    decoded = said or documents.config_of(config)
    manifest = ImageManifest(
        name=name,
        architecture=uname_of(decoded.architecture),
        distribution=found.distribution,
        suite=found.suite,
        digest=packing.digest_of(root) if programs else system,
        size=root.stat().st_size,
        created=time.time(),
        shell=found.shell,
        init=found.init,
        programs=found.programs,
        run=decoded.config,
        origin=Origin(
            manifest=documents.digest_of(document),
            config=documents.digest_of(config),
            index=offered.index_digest,
            layers=layers,
            metadata=start,
            system=system,
        ),
    )
    store.write_record(staged / MANIFEST, manifest)
    return manifest


def _tree_of(staged: Path, layers: tuple[Layer, ...], said: ImageConfig | None, *, whiteouts: bool) -> Tree:
    """What the layers come to, with what an image is to have, and not to have, when it is run."""
    tree = Tree(whiteouts=whiteouts)
    for number in range(len(layers)):
        tree.add_layer(layer.read_index(place_of(staged, number)))
    if not whiteouts:
        for trace in _TRACES:
            tree.remove(trace.split(b"/"))
    if said is not None:  # as engines make them when they run it; a VM need not
        for path in directories_of(said.config or RunConfig()):
            tree.make(path.encode(errors="replace"))
    return tree


def _with_diff_ids(sources: tuple[LayerSource, ...], said: ImageConfig | None) -> tuple[LayerSource, ...]:
    """The layers, each with the digest that the configuration says its tar has."""
    if said is None:
        return sources
    ids = said.rootfs.diff_ids
    if len(ids) != len(sources):
        raise refuse(f"its configuration has {len(ids)} layers, its manifest {len(sources)}")
    return tuple(
        msgspec.structs.replace(source, diff_id=diff_id) for source, diff_id in zip(sources, ids, strict=True)
    )


class _Progress:
    """How far all layers together are, told a few times a second.

    Args:
        layers: how many there are.
        emit: told.
    """

    def __init__(self, layers: int, emit: Emit) -> None:
        self._layers = layers
        self._emit = emit
        self._lock = threading.Lock()
        self._done = self._finished = 0
        self._settled = 0  # bytes of those that are there
        self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """So many bytes more have come."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told > _INTERVAL:
                self._told = now
                self._tell()

    def finish(self, size: int) -> None:
        """One more is there, of so many bytes, whether they came or were here."""
        with self._lock:
            self._finished += 1
            self._settled += size
            self._done = max(self._done, self._settled)
            self._tell()

    def _tell(self) -> None:
        note = f"{self._finished} of {self._layers} layers"
        self._emit(TaskAdvanced(task="layers", done=self._done, note=note))


class _Taking:
    """All layers of an image, several at once."""

    def __init__(self, paths: Paths, staged: Path, space: Space, progress: _Progress) -> None:
        self._staged = staged
        self._space = space
        self._progress = progress
        self._budget = Budget()
        self._stop = Stopping()
        self._here = _layers_here(paths)

    def all(self, sources: Sequence[LayerSource]) -> tuple[Layer, ...]:
        """Take them in."""
        taken: dict[int, Layer] = {}

        def work(numbered: Iterator[tuple[int, LayerSource]]) -> None:
            try:
                for number, source in numbered:
                    taken[number] = self._take(number, source)
                    self._progress.finish(source.size or 0)
            except BaseException:
                self._stop.stop()
                raise

        try:
            threads.share(work, enumerate(sources), threads=max(1, min(_AT_ONCE, len(sources))))
        except layer.Cancelled:  # pragma: no cover - the failure itself comes first
            raise refuse("another layer could not be had") from None
        return tuple(taken[number] for number in range(len(sources)))

    def _take(self, number: int, source: LayerSource) -> Layer:
        place = place_of(self._staged, number)
        known = self._here.get(source.diff_id)
        if known is not None:
            image, at = known
            assert image.manifest.origin is not None
            try:
                relocating.relocate(place_of(image.directory, at), image.root, self._space, place)
                return image.manifest.origin.layers[at]
            except (ImageError, FileNotFoundError):  # damaged, or removed just now: it is had anew
                for left in place.parent.glob(f"{place.name}.*"):
                    left.unlink()
        return layer.receive(
            source, self._space, place, self._budget, advance=self._progress.advance, stop=self._stop
        )


def _layers_here(paths: Paths) -> dict[str, tuple[Image, int]]:
    """The layers that images on this host have, by their diff_id."""
    return {
        each.diff_id: (listed.image, number)
        for listed in catalog.installed(paths)
        if listed.image is not None and listed.image.manifest.origin is not None
        for number, each in enumerate(listed.image.manifest.origin.layers)
    }


def _documents(
    offered: Offered, layers: tuple[Layer, ...], platform: Platform, found: str
) -> tuple[bytes, bytes]:
    """Configuration and manifest, made here if the image came without."""
    config = offered.config
    if not config:
        architecture = PACKAGED.get(found) or platform.architecture
        ids = tuple(one.diff_id for one in layers)
        made = ImageConfig(
            architecture=architecture,
            os=platform.os,
            rootfs=documents.RootFs("layers", ids),
            history=(documents.History(comment="imported"),),
        )
        config = documents.encode(made)
    if offered.manifest:
        return config, offered.manifest
    manifest = Manifest(
        schema_version=2,
        media_type=documents.MANIFEST,
        config=documents.Descriptor(documents.CONFIG, documents.digest_of(config), len(config)),
        layers=tuple(documents.Descriptor(documents.LAYER, one.diff_id, one.size) for one in layers),
    )
    return config, documents.encode(manifest)


def _finish(fd: int, tree: Tree, start: int, layers: tuple[Layer, ...]) -> str:
    """Write the metadata at byte ``start`` and the superblock; the digest of these and the layers'."""
    planned = plan(tree)
    digest = hashlib.sha256("".join(each.diff_id for each in layers).encode())
    head = superblock(planned, start, built=0, identity=digest.digest()[:16])
    digest.update(head)
    at = start
    for piece in planned.render(start):
        digest.update(piece)
        _write(fd, piece, at)
        at += len(piece)
    _write(fd, head, 0)
    os.ftruncate(fd, at)
    return digest.hexdigest()


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
