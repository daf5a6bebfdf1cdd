"""An image of a Containerfile: what ``atoll build`` does."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atoll import store
from atoll.building import bases, containerfile, context, outcome
from atoll.building.builder import NAME, Builder
from atoll.building.guest import CONTEXTS
from atoll.building.session import Session, began, refusal
from atoll.building.streaming import chunks
from atoll.building.wishes import Source, Wishes, arguments, variables
from atoll.config import Config
from atoll.errors import BuildError, FileMissingError
from atoll.events import Emit, OutputReceived, Warned, ignore, task
from atoll.image.kernel import host_architecture
from atoll.image.manifest import Image
from atoll.image.oci.documents import platform_of
from atoll.image.registry.carrying import named
from atoll.patience import to_its_end

__all__ = ["build"]

#: Where a build sees its context, which it cannot write.
_SHOW = """\
mkdir -p "$2" "$1" && mount --bind "$2" "$1" && mount -o remount,ro,bind "$1"
"""

#: Has the copy of a context, whose directory is the argument, begin to change.
_CHANGE = """\
cd "$1" && rm -f items && mkdir -p tree && cd tree || exit 1
[ ! -s ../removed ] || xargs -0 rm -rf -- < ../removed
tar -xpf - --no-same-owner && sync -f . && rm -f ../removed
"""

_STEP = re.compile(r"(?:\[[^]]*\] )?STEP \d+/\d+: .*")


async def build(config: Config, source: Source, wishes: Wishes, *, on_event: Emit = ignore) -> Image:
    """Build an image, and keep it on this host.

    Args:
        config: the settings.
        source: Containerfile and context.
        wishes: what is wanted of it.
        on_event: told of all that happens; what steps say comes as ``OutputReceived``.

    Raises:
        BuildError: ``build.failed``: a step fails; ``build.full``: there is no room; ``build.context``,
            ``build.ignore``: the context cannot be read; ``build.busy``, ``build.builder``: the builder
            cannot be used.
        RegistryError, ImageError: an image that it begins with cannot be had.
        StoreError: the image cannot be kept.
        AtollError: as ``Machine.start``, of the builder.
    """
    references = [named(name, config) for name in wishes.names]
    native = platform_of(host_architecture())
    wanted = containerfile.bases(source.text, variables(wishes, native), target=wishes.target)
    platform = wishes.platform or native
    builder = Builder(config, on_event=on_event)
    try:
        having = asyncio.to_thread(bases.have, config, wanted, platform, fresh=wishes.pull, emit=on_event)
        images = await to_its_end(having)
        await builder.ensure_ready()
        async with began(builder.machine) as session:
            ids = await bases.send(session, images, on_event)
            await _prepare(session, source, wishes)
            async with _shown(session, config, source, on_event):
                identifier = await _run(session, arguments(session.name, wishes, ids), on_event)
            return await outcome.take(session, config, identifier, references, platform, on_event)
    finally:
        await builder.close()


async def _prepare(session: Session, source: Source, wishes: Wishes) -> None:
    """Write what belongs to one build alone."""
    files = session.machine.files
    await files.write(f"{session.memory}/Containerfile", source.text.encode())
    await files.write(f"{session.memory}/ignore", b"")
    for number, secret in enumerate(wishes.secrets):
        await files.write(f"{session.memory}/secret.{number}", secret.value, mode=0o600)


@asynccontextmanager
async def _shown(session: Session, config: Config, source: Source, emit: Emit) -> AsyncIterator[None]:
    """Have the context be in the builder, where nobody else changes it as long as the block lasts."""
    ignored = await asyncio.to_thread(context.ignored_by, source.directory, source.file)
    key = context.key_of(source.directory)
    number = 0
    while True:  # each that is built at the same time has a copy of its own
        path = config.paths.build_slot(f"{key}-{number}")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (slot := store.hold(path)) is not None:
            break
        number += 1
    try:
        place = f"{CONTEXTS}/{key}-{number}"
        now = time.time_ns()
        items, strange = await asyncio.to_thread(context.survey, source.directory, ignored, now=now)
        if strange:
            emit(Warned(message=f"{len(strange)} sockets, pipes and devices of the context are left out"))
        await _update(session, source, place, items, emit)
        words = ["/bin/sh", "-c", _SHOW, "sh", f"{session.work}/context", f"{place}/tree"]
        await session.must(words, "the context cannot be shown to the build")
        yield
    finally:
        os.close(slot)


async def _update(
    session: Session, source: Source, place: str, items: list[context.Item], emit: Emit
) -> None:
    """Have the copy of a context be as the context is."""
    files = session.machine.files
    try:
        before = context.decode(await files.read(f"{place}/items"))
    except FileMissingError:
        before = []
        await session.must(["rm", "-rf", place], "an old context cannot be removed")
    planned = context.plan(before, items)
    if planned.removed or planned.sent or not before:
        size = sum(item.size for item in planned.sent)
        with task(emit, "context", f"Sending {len(planned.sent)} files of {source.directory}", total=size):
            await files.make_directory(place, parents=True, exist_ok=True)
            await files.write(f"{place}/removed", b"".join(path + b"\0" for path in planned.removed))
            words = ["/bin/sh", "-c", _CHANGE, "sh", place]
            feeding = chunks(context.tar(source.directory, planned.sent))
            await session.must(words, "the context cannot be sent", feeding=feeding)
    if before != items:
        await files.write(f"{place}/items", context.encode(items))


async def _run(session: Session, words: list[str], emit: Emit) -> str:
    """Have buildah build; the image's id."""
    step = ""

    def follow(line: str) -> None:
        nonlocal step
        if _STEP.fullmatch(line):
            step = line
        emit(OutputReceived(vm=NAME, execution=session.name, fd=1, text=f"{line}\n"))

    status, said = await session.run(words, on_line=follow)
    if status:
        last = next((line for line in reversed(said) if line.startswith("Error: ")), "")
        message = f"{step or 'the build'} failed: {last.removeprefix('Error: ') or f'status {status}'}"
        raise refusal(said) or BuildError(
            message,
            code="failed",
            hint="what the step said is above; steps before it are not repeated",
            detail="\n".join(said[-12:]),
        )
    identifier = (await session.machine.files.read_text(f"{session.memory}/id")).strip()
    return identifier.removeprefix("sha256:")
