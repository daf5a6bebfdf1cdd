"""A kernel that QEMU boots directly, out of what distributions ship; every length is checked first.

Sources: the kernel's Documentation/arch/x86/boot.rst (header of a bzImage),
Documentation/arch/arm64/booting.rst (Image), drivers/firmware/efi/libstub/zboot-header.S (EFI zboot), the
ELF-64 object file format, and the Xen note XEN_ELFNOTE_PHYS32_ENTRY (xen/interface/elfnote.h), by which QEMU
enters an x86 ELF kernel (PVH).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from atoll.errors import ImageError
from atoll.image import compression

__all__ = ["extract", "release_of"]

_HINT = "the file is no whole Linux kernel; get it again, or give another with --kernel"
_ELF = b"\x7fELF"
_MACHINES = {"x86_64": 62, "aarch64": 183}
_PT_LOAD, _PT_NOTE = 1, 4
_PHYS32_ENTRY = 18
_ARM64_MAGIC = b"ARM\x64"
_RELEASE = re.compile(rb"Linux version ([0-9][0-9A-Za-z.+~_-]{0,63}) ")


def extract(data: bytes, architecture: str, *, name: str = "the kernel") -> bytes:
    """The kernel in the form in which QEMU boots it fastest.

    Args:
        data: a bzImage or ELF vmlinux (x86_64), an Image, Image.gz or EFI zboot (aarch64).
        architecture: ``x86_64`` or ``aarch64``.
        name: the file's name, for errors.

    Returns:
        An uncompressed ELF with a PVH entry (x86_64) or an Image (aarch64).

    Raises:
        ImageError: ``image.kernel``: it is truncated, damaged, of another architecture or no kernel.
    """
    if architecture not in _MACHINES:
        raise _refuse(f"{name}: Atoll boots no {architecture} kernels")
    try:
        return _x86(data, name) if architecture == "x86_64" else _arm64(data, name)
    except struct.error as error:
        raise _refuse(f"{name} ends before its header does") from error


def release_of(kernel: bytes) -> str:
    """The release (``6.1.0-56-cloud-amd64``) that an uncompressed kernel reports, or "" if it has none."""
    found = _RELEASE.search(kernel)
    return found[1].decode() if found else ""


def _refuse(message: str) -> ImageError:
    return ImageError(message, code="kernel", hint=_HINT)


def _unpack(payload: bytes, name: str) -> bytes:
    try:
        return compression.decompress(payload, what=name)
    except ImageError as error:
        raise _refuse(error.message) from error


def _x86(data: bytes, name: str) -> bytes:
    if data.startswith(_ELF):
        return _checked_elf(data, name)
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS" or data[0x1FE:0x200] != b"\x55\xaa":
        raise _refuse(f"{name} is neither an x86 bzImage nor an ELF vmlinux")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x0208:
        raise _refuse(f"{name} has boot protocol {version >> 8}.{version & 255:02}; 2.08 is needed")
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length < 8 or start + length > len(data):
        raise _refuse(f"{name} is truncated: it has {len(data)} bytes, its payload ends at {start + length}")
    payload = data[start : start + length]
    if payload.startswith(_ELF):
        return _checked_elf(payload, name)
    kernel = _unpack(payload, name)
    # The build appends the unpacked size to every kind of payload (scripts/Makefile.lib, size_append), but to
    # gzip, which has such a field itself.
    (size,) = struct.unpack_from("<I", payload, length - 4)
    if size != len(kernel):
        raise _refuse(f"{name} is damaged: it unpacks to {len(kernel)} bytes instead of {size}")
    return _checked_elf(kernel, name)


def _checked_elf(elf: bytes, name: str) -> bytes:
    """``elf`` itself, if it is a whole x86_64 executable with a PVH entry."""
    if len(elf) < 64 or not elf.startswith(_ELF + b"\x02\x01"):
        raise _refuse(f"{name} holds no 64-bit ELF kernel")
    (machine,) = struct.unpack_from("<H", elf, 18)
    if machine != _MACHINES["x86_64"]:
        raise _refuse(f"{name} is for another architecture (ELF machine {machine})")
    program_at, section_at = struct.unpack_from("<QQ", elf, 32)
    entry_size, count, section_size, sections = struct.unpack_from("<HHHH", elf, 54)
    if entry_size != 56 or not count or program_at + count * entry_size > len(elf):
        raise _refuse(f"{name} is truncated: its program headers are not inside the file")
    if section_at and section_at + section_size * sections > len(elf):
        raise _refuse(f"{name} is truncated: its section headers are not inside the file")
    entered = False
    loads = 0
    for index in range(count):
        kind, _flags, offset, _virtual, _physical, size = struct.unpack_from(
            "<IIQQQQ", elf, program_at + index * entry_size
        )
        if kind in {_PT_LOAD, _PT_NOTE} and offset + size > len(elf):
            raise _refuse(f"{name} is truncated: segment {index} ends at {offset + size} of {len(elf)} bytes")
        loads += kind == _PT_LOAD
        if kind == _PT_NOTE:
            entered |= any(
                owner == b"Xen\0" and note == _PHYS32_ENTRY
                for owner, note in _notes(elf[offset : offset + size])
            )
    if not loads:
        raise _refuse(f"{name} has nothing to load")
    if not entered:
        message = (
            f"{name} has no PVH entry (it was built without CONFIG_PVH), so QEMU cannot boot it directly"
        )
        raise ImageError(message, code="kernel", hint="use a kernel built with CONFIG_PVH=y")
    return elf


def _notes(data: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at + 12 <= len(data):
        owner_size, size, kind = struct.unpack_from("<III", data, at)
        yield data[at + 12 : at + 12 + owner_size], kind
        at += 12 + owner_size + (-owner_size % 4) + size + (-size % 4)


def _arm64(data: bytes, name: str) -> bytes:
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        offset, length = struct.unpack_from("<II", data, 8)
        if length < 8 or offset + length > len(data):
            raise _refuse(f"{name} is truncated: its payload ends at {offset + length} of {len(data)} bytes")
        data = _unpack(data[offset : offset + length], name)
    elif compression.kind_of(data):
        data = _unpack(data, name)
    if len(data) < 64 or data[56:60] != _ARM64_MAGIC:
        raise _refuse(f"{name} is no arm64 Image")
    if data[:2] == b"MZ":
        _check_pe(data, name)
    return data


def _check_pe(data: bytes, name: str) -> None:
    """An Image with an EFI stub is a PE file too; its section table tells where the file must end."""
    (pe,) = struct.unpack_from("<I", data, 60)
    if data[pe : pe + 4] != b"PE\0\0":
        raise _refuse(f"{name} is damaged: its EFI header is not where it should be")
    sections, optional_size = struct.unpack_from("<H12xH", data, pe + 6)
    table = pe + 24 + optional_size
    for index in range(sections):
        size, offset = struct.unpack_from("<II", data, table + index * 40 + 16)
        if offset + size > len(data):
            raise _refuse(f"{name} is truncated: it has {len(data)} bytes, a section ends at {offset + size}")
