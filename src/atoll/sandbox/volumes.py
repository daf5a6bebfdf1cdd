"""Directories of a sandbox whose content is somebody else's: the host's, or nobody's yet.

A sandbox with one of the host's is booted: what is cloned shares no memory with the daemon that serves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import AtollError, BootError, GuestError, UsageError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import end, wait_for_exit
from atoll.process import Process
from atoll.sandbox import vsock
from atoll.vm import serving
from atoll.vm.bootplan import Share
from atoll.vm.hostfiles import make_directories
from atoll.vm.life import Vm
from atoll.vm.state import StateError

__all__ = ["Mounted", "Wanted", "parse", "shaping"]

#: The driver that a guest needs for directories of the host.
_DRIVER = "virtiofs"

#: So many of them a sandbox may have: each takes a slot.
_MOST = 16

#: Seconds for a guest to find a device and mount it.
_PATIENCE = 15.0

#: Seconds between two attempts to mount: the device appears in the guest by itself.
_LOOK = 0.01

#: Seconds in which a daemon ends when its connection was closed.
_FAREWELL = 2.0

#: Bytes of what a daemon said that are told.
_SAID = 2000

#: errno(3), as the guest says it where there is no such device yet.
_EINVAL = 22


class Wanted(msgspec.Struct, frozen=True):
    """What was asked for.

    Attributes:
        shares: directories of the host.
        directories: of the sandbox alone, made where they are missing.
    """

    shares: tuple[Share, ...] = ()
    directories: tuple[str, ...] = ()

    def shaped(self, machine: Machine) -> Machine:
        """The same VM with places for the shares before those that it has, and memory for their servers."""
        slots = machine.slots + len(self.shares)
        return msgspec.structs.replace(machine, shared_memory=True, slots=slots)


def parse(volumes: Sequence[str]) -> Wanted:
    """``HOST:GUEST[:ro]`` or ``GUEST`` each.

    Raises:
        UsageError: ``usage.mount``: one is malformed, or its directory is not here; or they are too many.
    """
    shares: dict[str, Share] = {}
    directories = []
    for text in volumes:
        parts = text.split(":")
        if len(parts) == 1:
            directories.append(_guest_path(text, text))
            continue
        if len(parts) > 3 or (len(parts) == 3 and parts[2] not in {"ro", "rw"}):
            raise _malformed(text)
        place = _guest_path(text, parts[1])
        if place in shares:
            raise UsageError(f"{place} is named twice", code="mount", hint="a place has one content")
        shares[place] = Share(_host_path(text, parts[0]), place, parts[-1] == "ro")
    if len(shares) > _MOST:
        hint = "share a directory above several of them"
        raise UsageError(f"a sandbox has at most {_MOST} directories of the host", code="mount", hint=hint)
    # A directory within another one's place is mounted over it.
    return Wanted(tuple(share for _, share in sorted(shares.items())), tuple(directories))


def _malformed(text: str) -> UsageError:
    hint = "write HOST:GUEST, HOST:GUEST:ro, or GUEST for an empty directory of its own"
    return UsageError(f"{text}: no volume", code="mount", hint=hint)


def _guest_path(text: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/"):
        raise _malformed(text)
    if not parts or ".." in parts or "\0" in path:
        hint = "name an absolute path in the guest, not its root"
        raise UsageError(f"{path!r} is no place for a volume", code="mount", hint=hint)
    return "/" + "/".join(parts)


def _host_path(text: str, path: str) -> str:
    if "/" not in path and path not in {".", "..", "~"}:
        hint = f"sandboxes keep no named volumes: write ./{path or 'NAME'} for a directory of this host"
        raise UsageError(f"{text}: {path!r} is no path", code="mount", hint=hint)
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(full):
        raise UsageError(f"there is no directory {full}", code="mount", hint="make it, or name another one")
    return full


def shaping(socket: vsock.Wanted | None, volumes: Wanted | None) -> dict[str, Any]:
    """What ``runtime.launch`` is told of a VM that is not like its template; nothing for one that is.

    Args:
        socket: its virtio socket, which gets the last slot.
        volumes: its volumes.
    """
    devices = socket.devices if socket is not None else ()
    if volumes is None or not volumes.shares:
        return {"devices": devices, "shaped": socket.shaped} if socket is not None else {}

    def shaped(machine: Machine) -> Machine:
        return volumes.shaped(machine if socket is None else socket.shaped(machine))

    return {"devices": (*devices, _DRIVER), "shaped": shaped}


class Mounted:
    """The volumes of one sandbox, for as long as it is open.

    Args:
        wanted: which they are.
        vm: of the sandbox, which was made as ``Wanted.shaped`` says.
    """

    def __init__(self, wanted: Wanted, vm: Vm) -> None:
        self._wanted = wanted
        self._vm = vm
        self._daemons: list[Process] = []

    async def mount(self) -> None:
        """Have the guest have them. The caller closes this if it fails.

        Raises:
            StateError: ``state.share``: one cannot be shared.
            PreflightError: virtiofsd is not installed, or this user cannot run it.
            GuestError: a directory cannot be made.
        """
        await make_directories(self._vm.agent, self._wanted.directories)
        for slot, share in enumerate(self._wanted.shares):
            await self._plug(slot, share)
            await self._mount(slot, share)

    async def close(self) -> None:
        """See the end of those who served them, once the VM is gone. Closing twice is fine."""
        for daemon in self._daemons:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await wait_for_exit(daemon)
            await end(daemon)
        self._daemons.clear()

    async def _plug(self, slot: int, share: Share) -> None:
        log = os.memfd_create("atoll-share", os.MFD_CLOEXEC)
        try:
            # Root in the guest is this user on the host.
            with tempfile.TemporaryDirectory(prefix="atoll-") as place:
                daemon, sock = serving.serve_at(Path(place, "share"), log, share, (0, 0))
            self._daemons.append(daemon)
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._vm.freezable.plugging.plug_share(slot, _tag(slot), sock)
            finally:
                sock.close()  # from here on only QEMU is connected
        except (BootError, TimeoutError) as error:
            reason = error.message if isinstance(error, AtollError) else "the guest does not take it"
            said = os.pread(log, _SAID, max(0, os.fstat(log).st_size - _SAID)).decode(errors="replace")
            hint = "see the lines above; `atoll doctor` checks virtiofsd"
            message = f"{share.host} cannot be shared: {reason}"
            raise StateError(message, code="share", hint=hint, detail=said.strip()) from error
        finally:
            os.close(log)

    async def _mount(self, slot: int, share: Share) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self._vm.agent.mount(_DRIVER, _tag(slot), share.guest, read_only=share.read_only)
            except GuestError as error:
                if error.errno != _EINVAL or time.monotonic() > deadline:
                    message = f"{share.guest} cannot be mounted: {error.message}"
                    hint = "the guest's kernel needs virtiofs (CONFIG_VIRTIO_FS), as Debian's has it"
                    raise StateError(message, code="share", hint=hint) from error
                await asyncio.sleep(_LOOK)
            else:
                return


def _tag(slot: int) -> str:
    """What the guest calls the device; it is found by nobody else."""
    return f"atoll-share{slot}"
