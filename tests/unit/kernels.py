"""Made-up kernels for tests: right in all that is checked, and nothing else."""

import bz2
import gzip
import lzma
import struct

import lz4.block

BANNER = b"Linux version 6.1.0-test-amd64 (nobody@nowhere) #1\n\0"


def elf(*, machine=62, pvh=True, body=BANNER + bytes(5000)):
    """An ELF executable with one segment to load and a Xen note."""
    note = struct.pack("<III", 4, 8, 18 if pvh else 17) + b"Xen\0" + struct.pack("<Q", 0x1000000)
    at = 64 + 2 * 56
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x1000000, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, at, 0, 0, len(body), len(body), 4096)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at + len(body), 0, 0, len(note), len(note), 4)
    return header + load + notes + body + note


def lz4_legacy(data):
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def with_size(pack):
    return lambda data: pack(data) + struct.pack("<I", len(data))


PACKERS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": with_size(lzma.compress),
    "lzma": with_size(lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE)),
    "bzip2": with_size(bz2.compress),
    "lz4": with_size(lz4_legacy),
}


def bzimage(payload, *, version=0x020F, setup_sectors=3, offset=0x20):
    """A bzImage around a packed kernel (boot.rst, "The Real-Mode Kernel Header")."""
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload


def arm64_image(*, body=BANNER + bytes(500)):
    header = bytearray(64)
    header[56:60] = b"ARM\x64"
    return bytes(header) + body


def module(name, *, depends=(), extra=()):
    """A relocatable ELF object with a .modinfo section."""
    info = (
        b"\0".join(
            [
                f"name={name}".encode(),
                f"depends={','.join(depends)}".encode(),
                *(item.encode() for item in extra),
            ]
        )
        + b"\0"
    )
    names = b"\0.modinfo\0.shstrtab\0"
    table = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0)
    return header + info + names + sections
