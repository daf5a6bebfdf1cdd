"""Programs of another architecture: what the kernel is told, and what is said where none can be run."""

import os
import platform
import subprocess

import pytest

from atoll.image import foreign

#: The first 20 bytes of programs (ELF): of another system, a library that is a program, 32 bits, big-endian.
ARM64 = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00"
LINUX = ARM64[:7] + b"\x03" + ARM64[8:]
ANYWHERE = ARM64[:16] + b"\x03\x00\xb7\x00"
OTHERS = (
    ARM64[:16] + b"\x02\x00\x3e\x00",
    ARM64[:16] + b"\x01\x00\xb7\x00",
    ARM64[:4] + b"\x01" + ARM64[5:],
    ARM64[:5] + b"\x02" + ARM64[6:],
    b"#!/bin/sh\n".ljust(20),
)


def matches(line, data):
    """Whether the kernel would take ``data`` for a program that ``line`` is about (binfmt_misc)."""
    _, _, kind, offset, magic, mask, _, _ = line.split(":")
    assert (kind, offset) == ("M", "")
    wanted, care = (bytes.fromhex(part.replace("\\x", "")) for part in (magic, mask))
    return len(wanted) == len(care) <= len(data) and all(
        (byte ^ want) & bits == 0 for byte, want, bits in zip(data, wanted, care, strict=False)
    )


def test_only_programs_of_the_architecture_are_for_its_interpreter():
    line = foreign.registration("aarch64", "/usr/bin/qemu-aarch64")
    assert line.startswith(":qemu-aarch64:M::")
    assert line.endswith(":/usr/bin/qemu-aarch64:FPC")
    assert all(matches(line, program) for program in (ARM64, LINUX, ANYWHERE))
    assert not any(matches(line, program) for program in OTHERS)
    assert matches(foreign.registration("x86_64", "/x"), OTHERS[0])


def test_what_is_said_in_the_place_of_an_interpreter_is_a_program_itself(tmp_path):
    native = platform.machine()
    program = tmp_path / "says"
    program.write_bytes(foreign.refusal(native, "100% of it\\n is missing: `this` brings it"))
    program.chmod(0o755)
    done = subprocess.run([program, "/bin/x", "-v"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (126, b"")
    assert done.stderr == b"100% of it\\n is missing: `this` brings it\n"


@pytest.mark.parametrize("native", foreign.FOREIGN)
def test_each_architecture_has_a_program_that_is_its_own(native):
    program = foreign.refusal(native, "no")
    assert matches(foreign.registration(native, "/x"), program)
    assert program.endswith(b"no\n")


@pytest.mark.parametrize("native", foreign.FOREIGN)
@pytest.mark.parametrize("there", [True, False])
def test_the_shell_registers_what_is_there_or_what_says_that_it_is_not(tmp_path, native, there):
    place, programs = tmp_path / "binfmt", tmp_path / "bin"
    for directory in (place, programs):
        directory.mkdir()
    (place / "register").touch()
    name = foreign.interpreter(foreign.FOREIGN[native])
    if there:
        (programs / name).write_text("")
        (programs / name).chmod(0o755)
    script = foreign.register(native, str(tmp_path), "it is not").replace(foreign._PLACE, str(place))
    path = f"{programs}:{os.environ['PATH']}" if there else "/usr/bin:/bin"
    if not there and os.path.exists(f"/usr/bin/{name}"):
        pytest.skip("this host has it")
    script = f"modprobe() {{ :; }}\n{script}"
    subprocess.run(["/bin/sh", "-eu", "-c", script], check=True, env={"PATH": path})
    runs = programs / name if there else tmp_path / f"no-{name}"
    assert (place / "register").read_text() == foreign.registration(foreign.FOREIGN[native], str(runs))
    if not there:
        assert runs.read_bytes() == foreign.refusal(native, "it is not")
        assert os.access(runs, os.X_OK)
