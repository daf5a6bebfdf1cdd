"""Root file systems of others as images: a tar, as ``docker export`` writes it, or an OCI image layout.

The archive is not trusted. Its headers are read first and laid over one another as data, in
`atoll.image.layers`; from that a new archive is written, in which each directory stands before what is in it,
no path occurs twice and no link is in the way. Only this one is given to tar(1), so no name of the first
reaches the host's file system.
"""

from __future__ import annotations

import stat
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

import msgspec

from atoll import process, store
from atoll.errors import ImageError, ProcessError
from atoll.events import Emit, TaskAdvanced, Warned, task
from atoll.image import archive, erofs, layouts, packing
from atoll.image.archive import Budget
from atoll.image.layers import Node, Tree
from atoll.image.manifest import ImageManifest
from atoll.image.programs import measure
from atoll.image.refusing import refuse

__all__ = ["build"]

_INITS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init")
_SHELLS = ("/bin/bash", "/bin/sh")
_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
_PEEK = 1 << 16

#: Files by which programs take the guest for a container.
_TRACES = (".dockerenv", "run/.containerenv")

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF's e_machine
_SPARE = 64 << 20


class _Layer(msgspec.Struct, frozen=True):
    """One archive of entries: a part of a file, perhaps compressed."""

    path: Path
    span: layouts.Span
    name: str

    @contextmanager
    def entries(self, budget: Budget) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
        with ExitStack() as stack:
            view = stack.enter_context(layouts.View(self.path, self.span))
            stream = stack.enter_context(archive.decompressed(cast("IO[bytes]", view)))
            yield archive.entries(stream, self.name, budget)


def build(
    output: Path,
    file: Path,
    *,
    name: str,
    architecture: str,
    tag: str,
    emit: Emit,
    limit: int | None = None,
    programs: Sequence[str] = (),
) -> ImageManifest:
    """Import ``file`` into the EROFS ``output``.

    Args:
        output: the EROFS.
        file: the archive: tar, plain or compressed.
        name: of the image.
        architecture: of the host; which image is taken where there are several.
        tag: of the name.
        emit: told of progress.
        limit: bytes that its files may have together.
        programs: which are looked for in it, for its manifest.

    Raises:
        ImageError: ``image.missing``, ``image.archive`` or ``image.build``.
        PreflightError: a program is missing, or this user may not build.
        StoreError: ``store.full``.
    """
    process.require("mkfs.erofs", hint=erofs.INSTALL_HINT)
    prefix = packing.helper()
    most = limit or archive.MOST_BYTES
    with packing.workspace(prefix, _SPARE) as work, task(emit, "image", f"Importing {name}"):
        emit(TaskAdvanced(task="image", note="reading the archive"))
        whole = _plain(file, work, most)
        layers, whiteouts = _layers(whole, file.name, architecture, most)
        tree = _merge(layers, most, whiteouts=whiteouts)
        if tree.devices:
            emit(
                Warned(message=f"{tree.devices} device nodes were left out; the guest's kernel makes its own")
            )
        size = sum(node.size + 1024 for _, node in tree.walk())
        store.require_space(work, 2 * size + _SPARE)
        store.require_space(output.parent, size + _SPARE)
        clean = work / "clean.tar"
        peeked = _rewrite(layers, tree, clean, most)
        emit(TaskAdvanced(task="image", note="unpacking"))
        _unpack(clean, work, prefix, emit)
        clean.unlink()
        emit(TaskAdvanced(task="image", note="packing the root"))
        found = measure((work / "tree").resolve(), programs)
        packing.pack(work, output, prefix, name, emit)
    manifest = _manifest(tree, peeked, output, name=name, architecture=architecture, tag=tag)
    return msgspec.structs.replace(manifest, programs=found)


def _plain(file: Path, work: Path, most: int) -> Path:
    """The archive without compression: ``file`` itself, or a copy in ``work``."""
    try:
        with (
            file.open("rb") as raw,
            archive.damage_named(file.name),
            archive.decompressed(raw) as stream,
        ):
            return file if stream is raw else _copied(stream, work / "archive.tar", most)
    except OSError as error:
        if error.filename is None or Path(error.filename) != file:
            raise
        raise ImageError(
            f"cannot read {file}: {error.strerror}", code="missing", hint="check the path"
        ) from error


def _copied(stream: archive.Readable, target: Path, most: int) -> Path:
    done = 0
    with target.open("wb") as out:
        while data := stream.read(archive.CHUNK):
            out.write(data)
            done += len(data)
            if done > 2 * most:  # headers and padding count
                raise refuse(f"the archive unpacks to more than {done >> 20} MiB")
            if done % (64 << 20) < archive.CHUNK:
                store.require_space(target.parent, _SPARE)
    return target


def _layers(whole: Path, name: str, architecture: str, most: int) -> tuple[tuple[_Layer, ...], bool]:
    """What the archive consists of: itself, or the layers of the OCI image in it, which have whiteouts."""
    outer = _Layer(whole, layouts.Span(0, whole.stat().st_size), name)
    files = {}
    with outer.entries(Budget(most_bytes=most)) as found:
        for member, _ in found:
            if member.isreg():
                files[member.name.removeprefix("./")] = layouts.Span(member.offset_data, member.size)
    if layouts.is_layout(files):
        spans = layouts.layers_of(whole, files, architecture)
        return tuple(_Layer(whole, span, f"layer {n} of {name}") for n, span in enumerate(spans, 1)), True
    if "manifest.json" in files and any(path.endswith("/layer.tar") for path in files):
        hint = "use `docker export` of a container, or save it as an OCI layout"
        raise refuse(f"{name} is an image in Docker's old form", hint=hint)
    return (outer,), False


def _merge(layers: Sequence[_Layer], most: int, *, whiteouts: bool) -> Tree:
    tree = Tree()
    budget = Budget(most_bytes=most)
    for number, layer in enumerate(layers):
        with layer.entries(budget) as entries:
            members = [member for member, _ in entries]
        tree.add_layer(members, number, whiteouts=whiteouts)
    for path in _TRACES:
        tree.remove(path)
    device_directory = tree.root.children.get("dev")
    if device_directory is not None and device_directory.kind == stat.S_IFDIR:
        device_directory.children.clear()
    if not tree.root.children:
        raise refuse("the archive has no files")
    return tree


class _Peeked:
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data + self._rest.read(size - len(data)) if len(data) < size else data
        return self._rest.read(size)


def _rewrite(layers: Sequence[_Layer], tree: Tree, target: Path, most: int) -> dict[tuple[int, int], bytes]:
    """Write ``tree`` as one archive to ``target``; the first bytes of files that tell what the system is."""
    paths: dict[tuple[int, int], list[tuple[str, Node]]] = {}
    last: list[tuple[str, Node]] = []
    heads = {
        node.content: b""
        for name in (*_SHELLS, *_RELEASES)
        if (node := tree.find(name)) is not None and node.content is not None
    }
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as out:
        for path, node in tree.walk():
            if node.kind == stat.S_IFDIR:
                out.addfile(_header(path, node, tarfile.DIRTYPE))
            elif node.content is not None:
                paths.setdefault(node.content, []).append((path, node))
            else:
                last.append((path, node))
        for number, layer in enumerate(layers):
            with layer.entries(Budget(most_bytes=most * 2)) as entries:
                for place, (member, content) in enumerate(entries):
                    _copy(out, paths.pop((number, place), []), member, content, heads, (number, place))
        if paths:
            raise refuse("the archive changed while it was read")
        for path, node in last:
            out.addfile(_header(path, node, tarfile.SYMTYPE if node.target else tarfile.FIFOTYPE))
    return heads


def _copy(
    out: tarfile.TarFile,
    places: list[tuple[str, Node]],
    member: tarfile.TarInfo,
    content: IO[bytes],
    heads: dict[tuple[int, int], bytes],
    key: tuple[int, int],
) -> None:
    """Write one file under all its paths."""
    if not places:
        return
    first, node = places[0]
    if member.size != node.size:
        raise refuse("the archive changed while it was read")
    with archive.damage_named(member.name):
        head = content.read(_PEEK) if key in heads else b""
    if key in heads:
        heads[key] = head
    try:
        with archive.damage_named(member.name):
            out.addfile(_header(first, node, tarfile.REGTYPE), cast("IO[bytes]", _Peeked(head, content)))
    except OSError as error:
        if error.errno is not None:
            raise
        raise refuse(f"the archive ends within {member.name!r}") from error
    for path, _ in places[1:]:
        link = _header(path, node, tarfile.LNKTYPE)
        link.linkname = first
        out.addfile(link)


def _header(path: str, node: Node, kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.type = kind
    header.mode, header.uid, header.gid = node.mode, node.uid, node.gid
    header.size = node.size if kind == tarfile.REGTYPE else 0
    header.linkname = node.target
    header.mtime = packing.EPOCH
    header.pax_headers = dict(node.xattrs)
    return header


def _unpack(clean: Path, work: Path, prefix: tuple[str, ...], emit: Emit) -> None:
    place = packing.make_tree(work, prefix)
    argv = ["tar", "--extract", "--file=-", f"--directory={place}", "--numeric-owner", "--same-owner"]
    argv += ["--preserve-permissions", "--delay-directory-restore", "--xattrs", "--xattrs-include=*"]
    argv += ["--warning=no-unknown-keyword", "--no-overwrite-dir"]
    try:
        with clean.open("rb") as stream:
            process.run([*prefix, *argv], stdin=stream, emit=emit)
    except ProcessError as error:
        hint = "a user's range of ids may be too small for the owners in the archive: import it as root"
        hint = hint if prefix else "see the lines of tar"
        raise ImageError(f"cannot unpack: {error}", code="build", hint=hint, detail=error.detail) from error
    process.run([*prefix, "chmod", "755", str(place)])


def _manifest(
    tree: Tree,
    heads: dict[tuple[int, int], bytes],
    output: Path,
    *,
    name: str,
    architecture: str,
    tag: str,
) -> ImageManifest:
    def program(path: str) -> bool:
        node = tree.find(path)
        return node is not None and node.content is not None and bool(node.mode & 0o111)

    def head(path: str) -> bytes:
        node = tree.find(path)
        return heads.get(node.content, b"") if node is not None and node.content is not None else b""

    shell = next(filter(program, _SHELLS), "")
    release = _release(next(filter(None, map(head, _RELEASES)), b""))
    machine = int.from_bytes(head(shell)[18:20], "little") if head(shell).startswith(b"\x7fELF") else 0
    return ImageManifest(
        name=name,
        architecture=_ELF_MACHINES.get(machine, architecture),
        distribution=release.get("ID", ""),
        suite=release.get("VERSION_CODENAME") or release.get("VERSION_ID") or tag,
        digest=packing.digest_of(output),
        size=output.stat().st_size,
        created=time.time(),
        tools={"mkfs.erofs": erofs.tool_version()},
        shell=shell,
        init=next(filter(program, _INITS), ""),
    )


def _release(text: bytes) -> dict[str, str]:
    """The fields of os-release(5)."""
    rows = (line.partition("=") for line in text.decode(errors="replace").splitlines())
    return {key.strip(): value.strip().strip("\"'")[:64] for key, equals, value in rows if equals}
