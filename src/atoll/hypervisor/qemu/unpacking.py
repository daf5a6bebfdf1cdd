"""A migration stream in a file in memory, taken apart into files in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence

from atoll.hypervisor.qemu.stream import PAGE, block_names, split

__all__ = ["put", "unpack"]

#: Bytes of the stream that are given back at once.
_GIVE_BACK = 4 << 20


def unpack(
    fd: int,
    images: Mapping[str, int],
    *,
    called: Mapping[str, str] | None = None,
    addresses: Mapping[str, int] | None = None,
) -> bytes:
    """Write the pages of some blocks of memory to their images, and empty the stream's file meanwhile.

    So both together take hardly more memory than the stream alone did.

    Args:
        fd: of the stream's file, in memory.
        images: files of zeroes, by the names of the blocks without the devices that they belong to.
        called: what the QEMU that goes on calls those that it gives another name.
        addresses: of the blocks, if the stream was written without ``x-ignore-shared``.

    Returns:
        A stream of what is left: the devices.

    Raises:
        OSError: an image cannot be written.
        StreamError: as ``atoll.hypervisor.qemu.stream.split``.
    """
    given_back = 0
    with mmap.mmap(fd, 0) as mapped, memoryview(mapped) as stream:
        names = {name: name.rpartition("/")[2] for name in block_names(stream, addressed=addresses is None)}
        names = {name: short for name, short in names.items() if short in images and _is_backend(name)}

        def write(name: str, offset: int, pages: Sequence[memoryview]) -> None:
            image = images[names[name]]
            done = os.pwritev(image, pages, offset)
            if done < len(pages) * PAGE:
                put(image, memoryview(b"".join(pages))[done:], offset + done)

        def give_back(end: int) -> None:
            nonlocal given_back
            end -= end % mmap.PAGESIZE
            if end - given_back >= _GIVE_BACK:
                mapped.madvise(mmap.MADV_REMOVE, given_back, end - given_back)
                given_back = end

        names |= {short: short for short in images.keys() - names.values()}  # which is an error
        new = {name: (called or {}).get(name, name) for name in names}
        placed = None if addresses is None else {name: addresses[short] for name, short in names.items()}
        devices = split(stream, new, write, addresses=placed, passed=give_back).devices
    os.truncate(fd, 0)
    return devices


def _is_backend(name: str) -> bool:
    """A block that QEMU made by itself, such as ``/rom@etc/acpi/tables``, begins with a stroke."""
    return not name.startswith("/")


def put(fd: int, data: memoryview, at: int = 0) -> None:
    """Write all of ``data`` to a file. Raises ``OSError``."""
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done
