"""What runs images of another architecture: found, brought to a guest, and named where it is missing."""

from __future__ import annotations

import shutil
import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from atoll import platforms, runtime, store
from atoll.cli import doctor
from atoll.cli.checks import Outcome
from atoll.config import load
from atoll.errors import ConfigError, ImageError, PreflightError, RegistryError
from atoll.hypervisor.model import Accelerator, Architecture, Disk, DiskFormat
from atoll.image import bundle, catalog, emulation, erofs, foreign, recipes
from atoll.image.kernel import host_architecture
from atoll.image.manifest import ImageManifest
from atoll.image.modules import Module, Tree
from atoll.vm import accelerator
from atoll.vm.cloning import identity_of
from atoll.vm.plan import Bootable, Shape, plan, plan_held

NATIVE = host_architecture()
OTHER = foreign.FOREIGN[NATIVE]
PLATFORM = foreign.PLATFORMS[OTHER]
NAME = foreign.interpreter(OTHER)
FILES = Bootable(
    Path("/k/vmlinux"),
    Path("/k/initramfs"),
    Path("/k/modules.erofs"),
    Path("/i/root.erofs"),
    Path("/e/qemu.erofs"),
)
SHAPE = Shape(Architecture.X86_64, Accelerator.TCG, vcpus=1, memory=512 << 20)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Settings of a host on which no QEMU is found, with nothing in its cache."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    config = load({"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}, environment={}, files=())
    return config.config


def program(architecture=NATIVE):
    """An executable that needs no library."""
    return foreign.refusal(architecture, "no")


def dynamic():
    """One that wants a loader."""
    data = bytearray(program())
    struct.pack_into("<I", data, 64, 3)  # the type of its one program header: PT_INTERP
    return bytes(data)


def put(config, data, name=f"{NAME}-static"):
    path = config.cache_dir.parent / "bin" / name
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def test_an_interpreter_that_is_missing_is_named_with_its_package_before_anything_is_fetched(bare):
    with pytest.raises(PreflightError, match=f"{PLATFORM} cannot be run: {NAME} is not installed") as caught:
        runtime.found(bare, root=OTHER)
    assert caught.value.code == "boot.preflight"
    assert "apt install qemu-user-static" in caught.value.hint
    assert not bare.paths.kernels.exists()


def test_for_a_whole_vm_the_qemu_that_is_missing_is_named_with_its_package(bare):
    with pytest.raises(PreflightError, match=f"qemu-system-{OTHER} is not installed") as caught:
        runtime.found(replace(bare, full=True), root=OTHER)
    assert caught.value.hint == f"apt install qemu-system-{'arm' if OTHER == 'aarch64' else 'x86'}"


def test_the_doctor_names_both_packages_and_fails_for_neither(bare):
    checks = list(doctor._check_platforms(bare))
    assert [check.outcome for check in checks] == [Outcome.NOTE, Outcome.NOTE]
    assert "apt install qemu-user-static" in checks[0].fix
    assert "apt install qemu-system-" in checks[1].fix
    put(bare, program())
    assert next(doctor._check_platforms(bare)).outcome is Outcome.OK


def test_an_image_of_an_architecture_that_nothing_emulates_is_refused(bare):
    with pytest.raises(ImageError, match="images of riscv64 cannot be run") as caught:
        runtime.found(bare, root="riscv64")
    assert caught.value.code == "image.platform"


def test_an_interpreter_that_needs_libraries_is_none_for_a_guest(bare):
    put(bare, dynamic())
    assert emulation.find(bare.paths, OTHER, NATIVE) is None
    put(bare, program(OTHER))
    assert emulation.find(bare.paths, OTHER, NATIVE) is None
    usable = put(bare, program(), NAME)
    assert emulation.find(bare.paths, OTHER, NATIVE) == usable
    static = put(bare, program())
    assert emulation.find(bare.paths, OTHER, NATIVE) == static


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: program()[:60] + tail))
def test_no_file_is_too_strange_to_be_looked_at(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "strange"
    path.write_bytes(data)
    assert emulation.is_usable(path, NATIVE) in {True, False}


def test_the_disk_is_made_once_for_each_interpreter(bare, monkeypatch):
    if shutil.which("mkfs.erofs", path="/usr/bin:/usr/sbin") is None:
        pytest.skip("erofs-utils is not installed")
    first = put(bare, program())
    monkeypatch.setenv("PATH", f"{first.parent}:/usr/bin")
    made = emulation.ensure(bare.paths, OTHER, native=NATIVE)
    assert made.disk.parent == bare.paths.emulators / made.key
    stamp = made.disk.stat()
    assert emulation.ensure(bare.paths, OTHER, native=NATIVE) == made
    assert made.disk.stat().st_mtime_ns == stamp.st_mtime_ns
    assert foreign.registration(OTHER, f"/emulator/{NAME}").encode() in made.disk.read_bytes()
    first.write_bytes(program() + b"another")
    other = emulation.ensure(bare.paths, OTHER, native=NATIVE)
    assert other.key != made.key
    assert made.disk.exists()  # a VM may have it
    other.disk.unlink()
    assert emulation.ensure(bare.paths, OTHER, native=NATIVE).disk.exists()


def test_only_a_guest_with_a_foreign_root_has_the_disk():
    machine = plan("box", FILES, SHAPE)
    assert machine.disks[-1] == Disk(Path("/e/qemu.erofs"), "emulator", read_only=True)
    assert "atoll.emulator=emulator" in machine.cmdline
    own = plan("box", replace(FILES, emulator=None), SHAPE)
    assert [disk.serial for disk in own.disks] == ["root", "modules"]
    assert not any("emulator" in item for item in own.cmdline)
    assert plan("probe", replace(FILES, root=None), SHAPE).disks == ()


def test_a_boot_that_is_held_is_told_of_it_when_it_goes_on():
    machine = plan("box", FILES, SHAPE)
    held = plan_held(machine)
    assert held.disks[-1] == Disk(Path(), "emulator", DiskFormat.NONE, read_only=True)
    assert not any("emulator" in item for item in held.cmdline)
    assert identity_of(replace(machine, cmdline=machine.cmdline[:-1])).emulator == "emulator"


def test_the_module_is_in_the_initramfs_and_loaded_for_nobody_else():
    names = ("virtio_pci", "virtio_console", "virtio_blk", "erofs", "overlay", "binfmt_misc")
    tree = Tree({name: Module(name, f"kernel/{name}.ko") for name in names}, ())
    chosen = bundle.select(tree)
    assert [item.name for item in chosen.emulation] == ["binfmt_misc"]
    others = (*chosen.channel, *chosen.root, *chosen.held)
    assert "binfmt_misc" not in {item.name for item in others}
    assert bundle.devices(tree)["binfmt_misc"] == ("kernel/binfmt_misc.ko",)


def candidate(**said):
    return accelerator.Candidate(
        hypervisor=None,
        host=None,
        files=FILES,
        identity="kernel",
        architecture=Architecture(NATIVE),
        native=NATIVE,
        **said,
    )


def test_a_kernel_that_cannot_call_it_is_refused_with_the_module_that_it_lacks():
    platforms.require_emulation(candidate(devices={"binfmt_misc": ()}), Architecture(OTHER))
    with pytest.raises(PreflightError, match="the kernel lacks the module binfmt_misc") as caught:
        platforms.require_emulation(candidate(), Architecture(OTHER))
    assert "--full" in caught.value.hint


def test_a_foreign_guest_is_emulated_and_nothing_is_noted_of_this_host(tmp_path):
    told = []
    foreigner = accelerator.Candidate(
        hypervisor=None,
        host=None,
        files=FILES,
        identity="kernel",
        architecture=Architecture(OTHER),
        native=NATIVE,
    )
    chosen = accelerator.choose("auto", foreigner, tmp_path / "verdict", told.append)
    assert (chosen.accelerator, chosen.tsc_khz) == (Accelerator.TCG, None)
    assert f"{OTHER} guests are emulated on {NATIVE}" in chosen.reason
    assert not (tmp_path / "verdict").exists()
    with pytest.raises(PreflightError, match=f"{OTHER} guests are emulated"):
        accelerator.choose("kvm", foreigner, tmp_path / "verdict")


@pytest.mark.parametrize("said", ["linux/arm64", "arm64", "linux/ARM64/v8", "aarch64"])
def test_a_platform_has_several_names(said):
    assert load({"platform": said}, environment={}, files=()).config.platform == "linux/arm64"


@pytest.mark.parametrize("said", ["windows/amd64", "linux/riscv64", "linux/", "linux/arm/v7", 64])
def test_a_platform_that_cannot_be_run_is_refused(said):
    with pytest.raises(ConfigError, match="platform"):
        load({"platform": said}, environment={}, files=())


@pytest.fixture
def shelf(bare, tmp_path, monkeypatch):
    """Settings, and what has an image be here under a name for an architecture."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("erofs-utils is not installed")
    (tmp_path / "tree").mkdir()

    def add(name, architecture):
        directory = catalog.directory_of(bare.paths, recipes.parse(name), architecture)
        directory.mkdir(parents=True)
        root = directory / "root.erofs"
        erofs.make(tmp_path / "tree", root, epoch=0, identity=uuid.UUID(int=1), compression="")
        manifest = ImageManifest(
            name=str(recipes.parse(name)),
            architecture=architecture,
            distribution="",
            suite="",
            digest="",
            size=root.stat().st_size,
            created=0.0,
        )
        store.write_record(directory / "manifest.json", manifest)

    return bare, add


def test_without_a_platform_the_hosts_is_meant_and_another_only_for_want_of_it(shelf):
    config, add = shelf
    told = []
    add("tool", OTHER)
    assert runtime.ensure_image(config, "tool", told.append).manifest.architecture == OTHER
    assert [event.message for event in told] == [
        f"tool is here for {PLATFORM} only: its programs are emulated"
    ]
    add("tool", NATIVE)
    assert runtime.ensure_image(config, "tool", told.append).manifest.architecture == NATIVE
    named = replace(config, platform=PLATFORM)
    assert runtime.ensure_image(named, "tool", told.append).manifest.architecture == OTHER
    assert len(told) == 1


def test_an_image_that_is_not_here_for_the_platform_that_was_named_is_asked_for(shelf):
    config, add = shelf
    add("tool", NATIVE)
    asked = replace(config, platform=PLATFORM, default_registry="localhost:1")
    instead = {"tool": f"here for {foreign.PLATFORMS[NATIVE]}", "toll": "did you mean tool?"}
    for name, hint in instead.items():
        with pytest.raises(RegistryError) as caught:
            runtime.ensure_image(asked, name)
        assert caught.value.code == "registry.unreachable"
        assert hint in caught.value.hint
