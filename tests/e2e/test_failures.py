"""What goes wrong names its stage, says one line and a hint, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builds import take_image, take_kernel
from command import assert_error

from atoll import runtime
from atoll.image import catalog, cpio, kernel
from atoll.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def private(tmp_path, built, paths, environment):
    """Directories of this test alone with copies of the built kernel and image."""
    own = Paths(data=tmp_path / "data", cache=tmp_path / "cache")
    take_image(paths, own, "debian", copy=shutil.copy2)
    take_kernel(paths, own, copy=shutil.copy2)
    return {"ATOLL_DATA_DIR": str(own.data), "ATOLL_CACHE_DIR": str(own.cache)}


def test_no_qemu(atoll, private, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mkfs.erofs", "setpriv"):
        found = shutil.which(name, path="/usr/bin:/usr/sbin:/bin")
        (programs / name).symlink_to(found)
    # Administrators' directories are searched too; QEMU is in /usr/bin, which is left out here.
    done = atoll("run", "debian", "--", "true", env={**private, "PATH": str(programs)})
    assert_error(done, "boot.preflight", "qemu-system-")
    assert b"apt install qemu-system" in done.stderr


def test_a_truncated_kernel(atoll, built, tmp_path):
    broken = tmp_path / "vmlinux"
    broken.write_bytes(built.vmlinux.read_bytes()[: 20 << 20])
    assert_error(atoll("run", "--kernel", str(broken), "debian", "--", "true"), "image.kernel")


def test_an_initramfs_without_modules(atoll, private):
    bundle = kernel.ensure(paths_of(private))
    agent = kernel.agent_path(bundle.manifest.architecture).read_bytes()
    size = bundle.initramfs.stat().st_size
    archive = cpio.archive(
        [cpio.directory("dev"), cpio.character_device("dev/console", 5, 1), cpio.file("init", agent, 0o755)]
    )
    bundle.initramfs.write_bytes(archive.ljust(size, b"\0"))
    done = atoll("run", "--cold", "--boot-timeout", "30", "debian", "--", "true", env=private)
    assert_error(done, "boot.initramfs")


def test_a_corrupt_erofs_superblock(atoll, private):
    root = catalog.find(paths_of(private), "debian").root
    with root.open("r+b") as file:
        file.seek(1024)
        file.write(os.urandom(128))
    assert_error(
        atoll("run", "debian", "--", "true", env=private), "image.corrupt", "atoll image build --force"
    )


def test_a_corrupt_erofs_that_only_the_guest_can_see(atoll, private):
    root = catalog.find(paths_of(private), "debian").root
    with root.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (root.stat().st_size - 4096))
    done = atoll("run", "--boot-timeout", "60", "debian", "--", "true", env=private)
    text = done.stderr.decode()
    assert done.returncode != 0
    assert "Traceback" not in text
    assert re.search(r"^error\[(boot\.root|command\.exec)\]: ", text, re.MULTILINE), text


def test_too_little_memory(atoll, built):
    assert_error(atoll("run", "--memory", "48M", "debian", "--", "true"), "boot.preflight", "--memory")


def test_more_memory_than_the_host_has(atoll, built):
    done = atoll("run", "--memory", "8192G", "debian", "--", "true")
    assert_error(done, "boot.preflight", "memory")


@pytest.mark.parametrize("variable", ["ATOLL_DATA_DIR", "ATOLL_CACHE_DIR"])
def test_a_directory_that_cannot_be_written(atoll, private, tmp_path, variable):
    (tmp_path / "file").write_text("in the way")
    done = atoll("run", "debian", "--", "true", env={**private, variable: str(tmp_path / "file" / "below")})
    assert_error(done, "store.unwritable")


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a full file system needs root")
def test_a_full_disk(atoll, tmp_path, built, paths):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", place], check=True)
    try:
        done = atoll(
            "image", "build", "debian", env={"ATOLL_DATA_DIR": str(paths.data), "ATOLL_CACHE_DIR": str(place)}
        )
        assert_error(done, "store.full")
        left = [path for path in place.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
        assert left == []
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("name", "code", "fragment"),
    [
        ("debain", "registry.unreachable", "debian"),
        ("../etc", "image.name", ""),
        ("fedora", "registry.unreachable", ""),
    ],
)
def test_an_unknown_image(atoll, name, code, fragment):
    nowhere = {"ATOLL_DEFAULT_REGISTRY": "localhost:1"}
    assert_error(atoll("run", name, "--", "true", env=nowhere), code, fragment)


def test_a_guest_whose_kernel_panics_while_the_command_runs(atoll, built):
    done = atoll("run", "debian", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 20")
    assert_error(done, "boot.command")


def test_a_guest_that_powers_itself_off(atoll, built):
    done = atoll("run", "debian", "--", "sh", "-c", "echo o > /proc/sysrq-trigger; sleep 20")
    assert_error(done, "boot.command")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("run", "--cpus", "many", "debian"), 2),
        (("run", "--memory", "512", "debian"), 2),
        (("run", "--timeout", "soon", "debian"), 2),
        (("run", "--env", "=x", "debian"), 2),
        (("run", "--kernel", "/no/such/kernel", "debian"), 2),
    ],
)
def test_bad_options_are_one_error_line_and_a_hint(atoll, words, status):
    done = atoll(*words, "--", "true")
    assert done.returncode == status
    assert re.fullmatch(r"error\[[\w.]+\]: .+\nhint: .+\n", done.stderr.decode()), done.stderr


def test_an_unknown_variable_is_an_error_with_the_nearest_name(atoll):
    done = atoll("config", "show", env={"ATOLL_MEMROY": "1G"})
    assert done.returncode == 2
    assert b"did you mean memory?" in done.stderr


def paths_of(private):
    return Paths(data=Path(private["ATOLL_DATA_DIR"]), cache=Path(private["ATOLL_CACHE_DIR"]))


def test_kvm_that_cannot_be_used_is_refused_with_the_reason(atoll, config):
    from atoll.vm import accelerator

    candidate = runtime.candidate(config, runtime.host_architecture())
    verdict = accelerator.examine(candidate, config.paths.verdicts)
    done = atoll("run", "--accel", "kvm", "debian", "--", "true")
    if verdict.usable:
        assert done.returncode == 0
    else:
        assert_error(done, "boot.preflight", verdict.reason[:20])
        assert sys.platform == "linux"
