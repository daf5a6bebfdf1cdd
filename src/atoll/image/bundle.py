"""Building a kernel bundle (see `atoll.image.kernel` for what it is)."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.image import cpio, erofs, kernel, modindex, modules, sources
from atoll.image.kernel import Choice, FileRecord, Kernel, KernelBundle, Origin, Pointer
from atoll.image.recipe import CHANNEL, DATA, DEVICES, EMULATION, RARE, RECIPE, ROOT
from atoll.paths import Paths

__all__ = [
    "Selection",
    "agent_part",
    "build",
    "devices",
    "modules_part",
    "select",
]

#: What a bundle and the unpacked package take at most, bytes.
_SPACE = 512 << 20

_EPOCH = 1_577_836_800  # 2020-01-01: what is built from the same things shall have the same bytes
_DIRECTORIES = ("dev", "etc", "mnt", "proc", "run", "sys", "tmp")


class Selection(msgspec.Struct, frozen=True):
    """The modules of an initramfs, each list in load order; ``held`` is for what clones are made of.

    ``emulation`` is for guests that run programs of another architecture.
    """

    channel: tuple[modules.Module, ...]
    root: tuple[modules.Module, ...]
    held: tuple[modules.Module, ...]
    emulation: tuple[modules.Module, ...] = ()


def select(tree: modules.Tree) -> Selection:
    """Choose what the initramfs must hold.

    Raises:
        ImageError: ``image.modules``: the kernel lacks something that is needed.
    """
    channel = modules.plan(tree, CHANNEL)
    extra = tuple(name for name in DATA if name in tree.modules)
    loaded = {module.name for module in channel}
    root = tuple(module for module in modules.plan(tree, (*ROOT, *extra)) if module.name not in loaded)
    loaded |= {module.name for module in root}
    there = tuple(name for name in DEVICES if name in tree.modules)
    held = tuple(module for module in modules.plan(tree, there) if module.name not in loaded)
    wanted = (EMULATION,) if EMULATION in tree.modules else ()
    emulation = tuple(module for module in modules.plan(tree, wanted) if module.name not in loaded)
    return Selection(channel, root, held, emulation)


def devices(tree: modules.Tree) -> dict[str, tuple[str, ...]]:
    """For each driver of a device the files to load, in order; drivers that the kernel lacks are left out."""
    found: dict[str, tuple[str, ...]] = {}
    for name in (*DEVICES, *RARE, EMULATION):
        if tree.is_builtin(name):
            found[name] = ()
        elif name in tree.modules:
            found[name] = tuple(module.path for module in modules.plan(tree, (name,)))
    return found


def modules_part(selection: Selection, directory: Path | None) -> bytes:
    """The part of the initramfs that a new agent leaves as it is: directories, console, modules and lists."""
    entries = [cpio.directory(name) for name in _DIRECTORIES]
    entries.append(cpio.character_device("dev/console", 5, 1))
    every = (*selection.channel, *selection.root, *selection.held, *selection.emulation)
    for module in dict.fromkeys(every):
        assert directory is not None
        plain = modules.without_signature(modules.read_module(directory / module.path))
        entries.append(cpio.file(_inside(module), plain))
    lists = {
        "channel": selection.channel,
        "root": selection.root,
        "held": selection.held,
        "emulation": selection.emulation,
    }
    for name, chosen in lists.items():
        listing = "".join(f"/{_inside(module)}\n" for module in chosen)
        entries.append(cpio.file(f"modules/{name}", listing.encode()))
    return cpio.archive(entries)


def _inside(module: modules.Module) -> str:
    return f"modules/{module.name}.ko"


def agent_part(agent: bytes) -> bytes:
    """The part of the initramfs that holds the agent."""
    return cpio.archive([cpio.file("init", agent, 0o755)])


def _key(origin: Origin, architecture: str, agent: str) -> str:
    parts = (RECIPE, architecture, origin.sha256, agent)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def build(
    paths: Paths,
    choice: Choice,
    *,
    agent: Path | None = None,
    refresh: bool = False,
    emit: Emit = ignore,
) -> Kernel:
    """Build the bundle for ``choice``, one builder at a time, and make it the cached one.

    When only the agent has changed, kernel and modules are taken over from the former bundle.

    Raises:
        PreflightError: a program is missing.
        ImageError: the kernel cannot be fetched, read or used, or this installation has no agent.
        StoreError: the cache cannot be written.
    """
    agent = agent or kernel.agent_path(choice.architecture)
    if not agent.is_file():
        hint = "reinstall atoll; in a checkout, `pip install -e .` builds the agent"
        raise ImageError(f"the guest agent {agent} is missing", code="agent", hint=hint)
    with store.lock(paths.kernels / ".lock"):
        if not refresh:
            found = kernel.find(paths, choice, agent=agent)  # another process may have built it meanwhile
            if found is not None:
                return found
        with task(emit, "kernel", "Preparing the kernel"):
            return _build(paths, choice, agent, refresh=refresh, emit=emit)


def _build(paths: Paths, choice: Choice, agent: Path, *, refresh: bool, emit: Emit) -> Kernel:
    inputs = tuple(kernel.stamp(path) for path in (agent, choice.kernel, choice.modules) if path is not None)
    donor = None if refresh else _former(paths, choice)
    source = None
    if donor is None or choice.kernel is not None:
        source = sources.locate(paths, choice, refresh=refresh, emit=emit)
        origin = source.origin
        donor = _donor(paths, origin, choice.architecture)
    else:
        origin = donor.manifest.origin
    key = _key(origin, choice.architecture, inputs[0].sha256)
    if not _usable(paths, key):
        with store.staging(paths.kernels, key) as staged:
            if donor is not None:
                record = _from_donor(donor, staged)
            else:
                assert source is not None
                record = _from_source(source, choice.architecture, staged, emit)
            _complete(staged, record, key=key, agent=agent, agent_digest=inputs[0].sha256)
            store.publish(staged, paths.kernel(key))
    kernel.remember(paths, choice, key, inputs)
    return kernel.load(paths, key)


def _usable(paths: Paths, key: str) -> bool:
    try:
        kernel.verify(kernel.load(paths, key))
    except (StoreError, ImageError):
        return False
    return True


def _former(paths: Paths, choice: Choice) -> Kernel | None:
    """The bundle that ``choice`` led to before its agent changed."""
    try:
        former = kernel.load(paths, store.read_record(choice.pointer(paths), Pointer).key)
    except AtollError:
        return None
    return _donor(paths, former.manifest.origin, choice.architecture)


def _donor(paths: Paths, origin: Origin, architecture: str) -> Kernel | None:
    """A whole bundle of the same kernel, modules and format, with whatever agent."""
    for candidate in kernel.installed(paths):
        manifest = candidate.manifest
        made_here = manifest.key == _key(manifest.origin, architecture, manifest.agent)
        if made_here and manifest.origin.sha256 == origin.sha256 and manifest.architecture == architecture:
            try:
                kernel.verify(candidate)
            except ImageError:
                continue
            return candidate
    return None


def _from_donor(donor: Kernel, staged: Path) -> KernelBundle:
    for path in (donor.vmlinux, donor.modules):
        if path is not None:
            try:
                os.link(path, staged / path.name)
            except OSError:
                shutil.copyfile(path, staged / path.name)
    with donor.initramfs.open("rb") as file:
        (staged / "initramfs").write_bytes(file.read(donor.manifest.head))
    return donor.manifest


def _from_source(source: sources.Source, architecture: str, staged: Path, emit: Emit) -> KernelBundle:
    """Lay kernel and modules into ``staged``; the record lacks what ``_complete`` puts in."""
    store.require_space(staged, _SPACE)
    work = staged / "work"
    work.mkdir()
    material = sources.open_source(source, architecture, work, emit=emit)
    emit(TaskAdvanced(task="kernel", note="reading the modules"))
    tree = modules.read_tree(material.modules) if material.modules else modules.Tree({})
    selection = select(tree)
    head = modules_part(selection, material.modules)
    (staged / "initramfs").write_bytes(head)
    (staged / "vmlinux").write_bytes(material.kernel)
    if material.modules is not None:
        if not tree.indexed:
            for name, data in modindex.index_files(tree).items():
                (material.modules / name).write_bytes(data)
        emit(TaskAdvanced(task="kernel", note="packing the modules"))
        top = work / "modules"
        top.mkdir()
        material.modules.rename(top / material.release)
        _open_to_all(top)
        erofs.make(
            top,
            staged / "modules.erofs",
            epoch=_EPOCH,
            identity=uuid.uuid5(uuid.NAMESPACE_OID, source.origin.sha256),
            compression="lz4",  # 2 s faster than lz4hc, which saves little here
            root_owned=True,
            xattrs=False,
            emit=emit,
        )
    store.remove_tree(work)
    return KernelBundle(
        key="",
        architecture=architecture,
        release=material.release,
        origin=source.origin,
        agent="",
        files={},
        channel=tuple(module.name for module in selection.channel),
        root=tuple(module.name for module in selection.root),
        devices=devices(tree),
        head=len(head),
        created=0,
    )


def _open_to_all(top: Path) -> None:
    """Give a tree the permissions that it has in a guest, whatever the umask or the source had."""
    for path in (top, *top.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _complete(staged: Path, base: KernelBundle, *, key: str, agent: Path, agent_digest: str) -> None:
    """Add the agent to the initramfs in ``staged`` and write the manifest."""
    binary = agent.read_bytes()
    if hashlib.sha256(binary).hexdigest() != agent_digest:
        raise ImageError(f"{agent} changed while it was read", code="agent", hint="try again")
    with (staged / "initramfs").open("ab") as file:
        file.write(agent_part(binary))
    files: dict[str, FileRecord] = {}
    for path in sorted(staged.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = FileRecord(sha256=digest, size=path.stat().st_size)
    store.write_record(
        staged / "manifest.json",
        KernelBundle(
            key=key,
            architecture=base.architecture,
            release=base.release,
            origin=base.origin,
            agent=agent_digest,
            files=files,
            channel=base.channel,
            root=base.root,
            devices=base.devices,
            head=base.head,
            created=time.time(),
        ),
    )
