"""Programs of another architecture in a guest: qemu-user, and how the guest's kernel comes to call it.

The kernel hands a program that it cannot run itself to an interpreter that was registered for its first bytes
(binfmt_misc: the kernel's Documentation/admin-guide/binfmt-misc.rst). Where the interpreter is missing a
program of a few instructions is registered in its place, which says so: no shell's "exec format error".
"""

from __future__ import annotations

import struct

from atoll.image.architectures import PACKAGED

__all__ = ["FOREIGN", "PACKAGE", "PLATFORMS", "interpreter", "refusal", "register", "registration"]

#: What a guest of one architecture emulates.
FOREIGN = {"x86_64": "aarch64", "aarch64": "x86_64"}

#: Debian's package of the interpreters; those of trixie and later need nothing beside.
PACKAGE = "qemu-user"

#: What Docker calls a guest's architecture.
PLATFORMS = {ours: f"linux/{name}" for ours, name in PACKAGED.items()}

#: Numbers of machines (ELF specification, ``e_machine``).
_MACHINES = {"x86_64": 62, "aarch64": 183}

#: ELFCLASS64, ELFDATA2LSB, EV_CURRENT, and nothing else said in ``e_ident``.
_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
_EXECUTABLE = 2

#: The system may be any, and of the type one bit: executables (2), and those that lie anywhere (3).
_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"

#: F: the interpreter is opened at once, so it is there in every container. P: programs see the name by which
#: they were called. C: set-user-ID programs are what they say, as they are for the same architecture.
_FLAGS = "FPC"

_PLACE = "/proc/sys/fs/binfmt_misc"

#: Where an executable is in memory, and the sizes of its two headers (ELF specification).
_BASE, _HEADERS = 0x400000, 64 + 56

#: Exit status of a command that was found and cannot be run (POSIX, Shell Command Language, 2.8.2).
_STATUS = 126


def interpreter(architecture: str) -> str:
    """The program that runs programs of ``architecture``, of ``PACKAGE``."""
    return f"qemu-{architecture}"


def registration(architecture: str, path: str) -> str:
    """What is written to binfmt_misc's ``register`` so that ``path`` runs programs of ``architecture``."""
    magic = _IDENT + struct.pack("<HH", _EXECUTABLE, _MACHINES[architecture])
    return f":{interpreter(architecture)}:M::{_escaped(magic)}:{_escaped(_MASK)}:{path}:{_FLAGS}"


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def register(native: str, directory: str, message: str) -> str:
    """Lines for the shell of a guest, as root, after which it runs what it emulates, or says why not.

    They may be run again. A kernel without binfmt_misc is left as it is.

    Args:
        native: architecture of the guest.
        directory: of the guest, there already: what says why not is written there.
        message: what it says where the interpreter is missing.
    """
    foreign = FOREIGN[native]
    name = interpreter(foreign)
    octal = "".join(f"\\{byte:03o}" for byte in refusal(native, message))
    before, after = registration(foreign, "\n").split("\n")
    return f"""\
modprobe -q binfmt_misc || :
[ -e {_PLACE}/register ] || mount -t binfmt_misc binfmt_misc {_PLACE} || :
if [ -e {_PLACE}/register ]; then
    runs=$(command -v {name}) || {{
        runs={directory}/no-{name}
        printf '{octal}' > "$runs"
        chmod 755 "$runs"
    }}
    [ ! -e {_PLACE}/{name} ] || echo -1 > {_PLACE}/{name}
    printf %s '{before}'"$runs"'{after}' > {_PLACE}/register || :
fi
"""


def refusal(native: str, message: str) -> bytes:
    """An executable of ``native`` that writes ``message``, of a few lines, to its standard error.

    It ends with status 126.
    """
    text = f"{message}\n".encode()
    assert len(text) < 1 << 16  # what one instruction holds on arm64
    body = {"x86_64": _x86_64, "aarch64": _aarch64}[native](len(text)) + text
    size = _HEADERS + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(_IDENT, _EXECUTABLE, _MACHINES[native], 1),
        *(_BASE + _HEADERS, 64, 0, 0),
        *(64, 56, 1, 0, 0, 0),
    )
    loaded = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)  # PT_LOAD, read and execute
    return header + loaded + body


def _x86_64(length: int) -> bytes:
    """``write(2, behind, length); exit(126)``: the text is behind the code (Intel SDM, volume 2)."""
    call = b"\x0f\x05"  # syscall
    # mov edx, length; syscall; mov eax, 60; mov edi, status; syscall
    last = struct.pack("<BI2sBIBI2s", 0xBA, length, call, 0xB8, 60, 0xBF, _STATUS, call)
    # mov eax, 1; mov edi, 2; lea rsi, [rip + behind]
    return struct.pack("<BIBI3si", 0xB8, 1, 0xBF, 2, b"\x48\x8d\x35", len(last)) + last


def _aarch64(length: int) -> bytes:
    """The same (Arm ARM, C6.2): ``movz x, #n`` is 0xd2800000 | n << 5 | x."""

    def move(register_: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register_

    call = 0xD4000001  # svc #0
    last = [move(2, length), move(8, 64), call, move(8, 93), move(0, _STATUS), call]
    distance = 4 * (len(last) + 1)
    behind = 0x10000000 | (distance & 3) << 29 | (distance >> 2) << 5 | 1  # adr x1, behind
    words = [move(0, 2), behind, *last]
    return struct.pack(f"<{len(words)}I", *words)
