"""Carrying out a plan, one step after the other, with a note in the journal before and after each.

A step that is cut off anywhere is done again from its beginning by the next run: by the journal, and by marks
that it bears, that run knows what was begun at the target, and makes it anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import posixpath
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec

from atoll.containers.migration import inventory, matching
from atoll.containers.migration.digests import ImageScan, TreeDigest
from atoll.containers.migration.inventory import LABEL, Image, Volume
from atoll.containers.migration.journal import Entry, Journal, Journals, key
from atoll.containers.migration.plans import (
    ContainerStep,
    ImageStep,
    Kind,
    NetworkStep,
    Plan,
    Step,
    Tagged,
    VolumeStep,
)
from atoll.containers.migration.reading import Via
from atoll.containers.migration.remote import Remote
from atoll.errors import AtollError, EngineError
from atoll.events import Emit, TaskAdvanced, ignore, task

__all__ = ["Carrier", "Failure", "Outcome"]

_FILTER = {"filters": f'{{"label":["{LABEL}"]}}'}

#: What a container is called before all of it is noted.
_TEMPORARY = "atoll-migrating-{}"

_TASK = "migrate"

#: Bytes between two words of progress.
_STEP = 1 << 20


class Failure(msgspec.Struct, frozen=True):
    """An item that could not be carried although the plan had it."""

    kind: Kind
    name: str
    code: str
    message: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a plan.

    Attributes:
        carried: how many items were.
        bytes: that were read at the source.
        failures: items that were not.
    """

    carried: int
    bytes: int
    failures: tuple[Failure, ...]


class Carrier:
    """Carries out one plan. Belongs to one event loop.

    Args:
        source: from which; writable only if a container may be made there to read volumes.
        target: to which.
        journals: where it is noted; the caller holds their lock for the two.
        journal: what was done before.
        emit: told of progress.
    """

    def __init__(
        self,
        source: Remote,
        target: Remote,
        journals: Journals,
        journal: Journal,
        *,
        emit: Emit = ignore,
    ) -> None:
        self._source, self._target = source, target
        self._journals, self._journal = journals, journal
        self._emit = emit
        self._ids: dict[str, str] = {}
        self._helper = ""
        self._bytes = 0
        self._told = 0
        self._carried = 0

    async def carry(self, plan: Plan) -> Outcome:
        """Do all steps; what fails does not keep others from being done.

        Raises:
            EngineError: ``engine.unreachable``: one of the engines has gone.
            StoreError: the journal cannot be written.
        """
        self._ids = dict(plan.twins)
        failures: list[Failure] = []
        failed: set[str] = set()
        with task(self._emit, _TASK, "Migrating", total=plan.size, unit="B"):
            await self._sweep()
            try:
                for step in plan.steps:
                    try:
                        _require(step, failed)
                        await self._do(step)
                    except EngineError as error:
                        if error.code == "engine.unreachable":
                            raise
                        for name, failure in _failures(step, error):
                            failed.add(name)
                            failures.append(failure)
            finally:
                with contextlib.suppress(EngineError):  # the next run does it
                    await self._sweep()
        return Outcome(carried=self._carried, bytes=self._bytes, failures=tuple(failures))

    async def _do(self, step: Step) -> None:
        match step:
            case ImageStep():
                await self._images(step)
            case VolumeStep():
                await self._volume(step)
            case NetworkStep():
                await self._target.ask("POST", "/networks/create", body=step.network.wanted)
                self._carried += 1
            case ContainerStep():
                await self._container(step)

    def _note(self, kind: Kind, name: str, entry: Entry) -> None:
        self._journal = self._journals.note(self._journal, key(kind, name), entry)
        self._carried += entry.done

    # Images.

    async def _images(self, step: ImageStep) -> None:
        missing = [one for one in step.images if not one.present]
        loaded = await self._load(missing) if missing else ()
        for one in step.images:
            number = one.present or await self._verified(one.image, loaded)
            for tag in one.tags:
                name, _, label = tag.rpartition(":")
                await self._target.ask("POST", f"/images/{number}/tag", params={"repo": name, "tag": label})
            self._ids[one.image.id] = number
            self._note(Kind.IMAGE, one.image.id, Entry(done=True, target=number, digest=number))

    async def _load(self, images: list[Tagged]) -> tuple[str, ...]:
        """Bring the images over, without tags; the ids that their archive promises."""
        scan = ImageScan()
        note = ", ".join(one.tags[0] if one.tags else one.image.id[:19] for one in images)
        async with self._source.pull("/images/get", {"names": [one.image.id for one in images]}) as pieces:
            answer = await self._target.push(
                "POST", "/images/load", self._through(pieces, scan.feed, note), params={"quiet": "1"}
            )
        _require_loaded(answer)
        return scan.finish()

    async def _verified(self, image: Image, loaded: tuple[str, ...]) -> str:
        """The id at the target of an image that has just come."""
        for number in dict.fromkeys((image.id, *loaded)):
            try:
                found = inventory.image(await self._target.ask("GET", f"/images/{number}/json"))
            except EngineError as error:
                if error.code != "engine.not_found":
                    raise
            else:
                if found.layers == image.layers and matching.same(found, image):
                    return found.id
        message = f"the image {image.id[:19]} is another at the target"
        raise EngineError(message, code="verify", hint="run the same command again")

    # Volumes.

    async def _volume(self, step: VolumeStep) -> None:
        volume = step.volume
        self._note(Kind.VOLUME, volume.name, Entry(done=False))
        path = f"/volumes/{quote(volume.name, safe='')}"
        if step.again:
            await self._target.ask("DELETE", path)
        wanted = {
            "Name": volume.name,
            "Driver": volume.driver,
            "DriverOpts": volume.options,
            "Labels": volume.labels,
        }
        made = await self._target.ask("POST", "/volumes/create", body=wanted)
        digest = ""
        try:
            if step.content:
                digest = await self._content(volume, step.via)
        except AtollError:
            with contextlib.suppress(EngineError):  # the next run does it
                await self._target.ask("DELETE", path)
            raise
        self._note(
            Kind.VOLUME, volume.name, Entry(done=True, target=str(made.get("CreatedAt")), digest=digest)
        )

    async def _content(self, volume: Volume, via: Via | None) -> str:
        """Bring over what is in a volume; its digest, which the target's has, too."""
        async with contextlib.AsyncExitStack() as stack:
            if via is None:
                via = await stack.enter_async_context(self._reader(volume.name))
            base = posixpath.basename(via.path)
            helper = await stack.enter_async_context(
                _mounting(self._target, await self._empty_image(), volume.name, f"/{base}")
            )
            sent = TreeDigest()
            async with self._source.pull(
                f"/containers/{via.container}/archive", {"path": via.path}
            ) as pieces:
                await self._target.push(
                    "PUT",
                    f"/containers/{helper}/archive",
                    self._through(pieces, sent.feed, volume.name),
                    params={"path": "/"},
                )
            arrived = TreeDigest()
            async with self._target.pull(f"/containers/{helper}/archive", {"path": f"/{base}"}) as pieces:
                async for piece in pieces:
                    arrived.feed(piece)
            digest = sent.finish()
            if arrived.finish() != digest:
                message = f"the volume {volume.name} is another at the target"
                raise EngineError(message, code="verify", hint="run the same command again")
            return digest

    @asynccontextmanager
    async def _reader(self, volume: str) -> AsyncIterator[Via]:
        """A container at the source that mounts a volume, never started: as the user has allowed."""
        listed = await self._source.ask("GET", "/images/json")
        if not listed:
            raise EngineError("the source has no image of which to make a container", code="answer")
        number = min(listed, key=lambda one: int(one.get("Size") or 0))["Id"]
        async with _mounting(self._source, number, volume, "/atoll-volume") as helper:
            yield Via(helper, "/atoll-volume")

    async def _empty_image(self) -> str:
        """An image at the target without a file, for containers that only mount."""
        if not self._helper:
            archive = io.BytesIO()
            tarfile.open(fileobj=archive, mode="w").close()
            made = await self._target.ask(
                "POST",
                "/images/create",
                params={"fromSrc": "-", "changes": f"LABEL {LABEL}=1"},
                body=archive.getvalue(),
            )
            self._helper = str(made["status"])
        return self._helper

    # Containers.

    async def _container(self, step: ContainerStep) -> None:
        container = step.container
        wanted = msgspec.json.encode(step.body, order="deterministic")
        digest = f"sha256:{hashlib.sha256(wanted).hexdigest()}"
        entry = self._journal.find(key(Kind.CONTAINER, container.id))
        number = ""
        if entry is not None and not entry.done and await self._exists(entry.target):
            number = entry.target
            if entry.digest != digest:  # the source's is another by now
                await self._target.ask("DELETE", f"/containers/{number}", params={"force": "1"})
                number = ""
        if not number:
            number = await self._make(step)
            self._note(Kind.CONTAINER, container.id, Entry(done=False, target=number, digest=digest))
        found = await self._target.ask("GET", f"/containers/{number}/json")
        if str(found["Name"]).lstrip("/") != container.name:
            await self._target.ask("POST", f"/containers/{number}/rename", params={"name": container.name})
        if step.start:
            await self._target.ask("POST", f"/containers/{number}/start")
        self._note(Kind.CONTAINER, container.id, Entry(done=True, target=number, digest=digest))

    async def _make(self, step: ContainerStep) -> str:
        """A container under a name that says who made it, until the journal does."""
        name = _TEMPORARY.format(step.container.id[:12])
        with _ignoring("engine.not_found"):
            await self._target.ask("DELETE", f"/containers/{name}", params={"force": "1"})
        image = step.image or self._ids.get(step.container.image, step.container.image)
        made = await self._target.ask(
            "POST", "/containers/create", params={"name": name}, body={**step.body, "Image": image}
        )
        return str(made["Id"])

    async def _exists(self, number: str) -> bool:
        with _ignoring("engine.not_found"):
            if number:
                await self._target.ask("GET", f"/containers/{number}/json")
                return True
        return False

    # What all need.

    async def _through(
        self, pieces: AsyncIterator[bytes], look: Callable[[bytes], None], note: str
    ) -> AsyncIterator[bytes]:
        """Pass on what comes, looked at and counted."""
        async for piece in pieces:
            look(piece)
            self._bytes += len(piece)
            if self._bytes - self._told >= _STEP:
                self._told = self._bytes
                self._emit(TaskAdvanced(task=_TASK, done=self._bytes, note=note))
            yield piece

    async def _sweep(self) -> None:
        """Take away what this and killed runs made for themselves."""
        for remote in filter(_is_writable, (self._target, self._source)):
            for one in await remote.ask("GET", "/containers/json", params={"all": "1", **_FILTER}):
                with _ignoring("engine.not_found"):
                    await remote.ask("DELETE", f"/containers/{one['Id']}", params={"force": "1", "v": "1"})
        for one in await self._target.ask("GET", "/images/json", params=_FILTER):
            with _ignoring("engine.not_found", "engine.conflict"):
                await self._target.ask("DELETE", f"/images/{one['Id']}")
        self._helper = ""


def _is_writable(remote: Remote) -> bool:
    return remote.writable


@asynccontextmanager
async def _mounting(remote: Remote, image: str, volume: str, path: str) -> AsyncIterator[str]:
    """A container that has a volume at ``path`` and is never started."""
    wanted = {
        "Image": image,
        "Cmd": ["-"],
        "Labels": {LABEL: "1"},
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [
                {"Type": "volume", "Source": volume, "Target": path, "VolumeOptions": {"NoCopy": True}}
            ],
        },
    }
    made = await remote.ask("POST", "/containers/create", body=wanted)
    try:
        yield str(made["Id"])
    finally:
        with _ignoring("engine.not_found", "engine.unreachable"):
            await remote.ask("DELETE", f"/containers/{made['Id']}", params={"force": "1", "v": "1"})


@contextlib.contextmanager
def _ignoring(*codes: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        if error.code not in codes:
            raise


def _require_loaded(answer: bytes) -> None:
    """Raise ``EngineError`` if one of the lines of JSON that `/images/load` answers tells of an error."""
    for line in answer.splitlines():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = msgspec.json.decode(line)
            if isinstance(said, dict) and said.get("error"):
                raise EngineError(f"the target does not take the images: {said['error']}", code="answer")


def _require(step: Step, failed: set[str]) -> None:
    """Raise ``EngineError`` if a container needs what could not be carried: it would begin with nothing."""
    if isinstance(step, ContainerStep) and (lacking := sorted(step.needs & failed)):
        raise EngineError(f"what it needs could not be carried: {', '.join(lacking)}", code="needs")


def _failures(step: Step, error: AtollError) -> Iterator[tuple[str, Failure]]:
    """The items of a step that failed, with their keys."""
    match step:
        case ImageStep(images):
            named = [
                (Kind.IMAGE, one.image.id, one.tags[0] if one.tags else one.image.id[:19]) for one in images
            ]
        case VolumeStep(volume):
            named = [(Kind.VOLUME, volume.name, volume.name)]
        case NetworkStep(network):
            named = [(Kind.NETWORK, network.name, network.name)]
        case ContainerStep(container):
            named = [(Kind.CONTAINER, container.id, container.name)]
    for kind, name, shown in named:
        yield key(kind, name), Failure(kind, shown, error.code, error.message)
