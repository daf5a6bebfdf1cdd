"""Kernel bundles from made-up kernels without modules: nothing but files is needed."""

import os
import threading
import time

import kernels
import packages
import pytest

from atoll import events, store
from atoll.errors import ImageError, UsageError
from atoll.image import bundle, kernel
from atoll.image.modules import Module, Tree
from atoll.paths import Paths


@pytest.fixture
def home(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def agent(tmp_path):
    path = tmp_path / "agent"
    path.write_bytes(b"first agent")
    return path


@pytest.fixture
def vmlinuz(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(kernels.bzimage(kernels.PACKERS["xz"](kernels.elf())))
    return path


def build(home, agent, vmlinuz, **more):
    return kernel.ensure(home, architecture="x86_64", kernel=vmlinuz, agent=agent, **more)


def test_a_given_kernel_becomes_a_bundle(home, agent, vmlinuz):
    told = []
    made = build(home, agent, vmlinuz, emit=told.append)
    assert made.vmlinux.read_bytes() == kernels.elf()
    assert b"first agent" in made.initramfs.read_bytes()
    assert made.modules is None
    assert made.manifest.release == "6.1.0-test-amd64"
    assert [event.message for event in told if isinstance(event, events.Warned)]
    kernel.verify(made)


def test_the_second_time_the_bundle_is_there_and_quick(home, agent, vmlinuz):
    first = build(home, agent, vmlinuz)
    began = time.perf_counter()
    assert build(home, agent, vmlinuz) == first
    assert time.perf_counter() - began < 0.02  # about 0.2 ms; a busy machine may be slower


def test_a_new_agent_makes_a_new_bundle_and_keeps_the_kernel(home, agent, vmlinuz):
    first = build(home, agent, vmlinuz)
    agent.write_bytes(b"second agent")
    second = build(home, agent, vmlinuz)
    assert second.manifest.key != first.manifest.key
    assert b"second agent" in second.initramfs.read_bytes()
    assert second.vmlinux.samefile(first.vmlinux)
    kernel.verify(first)
    kernel.verify(second)


def test_an_agent_that_was_only_touched_changes_nothing(home, agent, vmlinuz):
    first = build(home, agent, vmlinuz)
    os.utime(agent, ns=(1, 1))
    assert kernel.find(home, kernel.Choice("x86_64", vmlinuz), agent=agent) == first
    os.utime(agent, ns=(2, 2))
    assert build(home, agent, vmlinuz) == first


def test_a_changed_kernel_makes_a_new_bundle(home, agent, vmlinuz):
    first = build(home, agent, vmlinuz)
    vmlinuz.write_bytes(kernels.elf(body=kernels.BANNER.replace(b"6.1.0", b"6.2.0")))
    assert build(home, agent, vmlinuz).manifest.release == "6.2.0-test-amd64"
    assert first.vmlinux.exists()


def test_another_recipe_makes_a_new_bundle(home, agent, vmlinuz, monkeypatch):
    first = build(home, agent, vmlinuz)
    for module in (kernel, bundle):
        monkeypatch.setattr(module, "RECIPE", "another")
    assert kernel.find(home, kernel.Choice("x86_64", vmlinuz), agent=agent) is None
    assert build(home, agent, vmlinuz).manifest.key != first.manifest.key


def test_a_damaged_bundle_is_built_again(home, agent, vmlinuz):
    made = build(home, agent, vmlinuz)
    made.vmlinux.write_bytes(b"short")
    assert kernel.find(home, kernel.Choice("x86_64", vmlinuz), agent=agent) is None
    again = build(home, agent, vmlinuz)
    assert again.manifest.key == made.manifest.key
    kernel.verify(again)


def test_a_corrupt_pointer_or_manifest_costs_only_a_rebuild(home, agent, vmlinuz):
    made = build(home, agent, vmlinuz)
    (made.directory / "manifest.json").write_text("{")
    kernel.verify(build(home, agent, vmlinuz))
    kernel.Choice("x86_64", vmlinuz).pointer(home).write_text("[]")
    kernel.verify(build(home, agent, vmlinuz))


def test_silent_damage_is_found_by_verify(home, agent, vmlinuz):
    made = build(home, agent, vmlinuz)
    data = bytearray(made.vmlinux.read_bytes())
    data[-1] ^= 1
    made.vmlinux.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        kernel.verify(made)
    assert caught.value.code == "image.corrupt"


def test_a_truncated_kernel_leaves_nothing_behind(home, agent, vmlinuz):
    vmlinuz.write_bytes(vmlinuz.read_bytes()[:-100])
    with pytest.raises(ImageError) as caught:
        build(home, agent, vmlinuz)
    assert caught.value.code == "image.kernel"
    assert [path.name for path in home.kernels.iterdir()] == [".lock"]


def test_an_installation_without_agent_says_what_to_do(home, tmp_path, vmlinuz):
    with pytest.raises(ImageError) as caught:
        build(home, tmp_path / "none", vmlinuz)
    assert caught.value.code == "image.agent"
    assert "install" in caught.value.hint


def test_builders_at_the_same_time_build_once(home, agent, vmlinuz):
    told = []
    results = []

    def one():
        results.append(build(home, agent, vmlinuz, emit=told.append))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made.manifest.key for made in results}) == 1
    assert len([event for event in told if isinstance(event, events.TaskStarted)]) == 1


def test_pruning_keeps_what_is_in_use(home, agent, vmlinuz):
    used = build(home, agent, vmlinuz)
    agent.write_bytes(b"second")
    stale = build(home, agent, vmlinuz)
    agent.write_bytes(b"third!")
    current = build(home, agent, vmlinuz)
    assert kernel.prune(home, keep=frozenset({used.manifest.key})) == [stale.manifest.key]
    assert {made.manifest.key for made in kernel.installed(home)} == {
        used.manifest.key,
        current.manifest.key,
    }


def test_modules_without_a_kernel_and_unknown_architectures_are_refused(tmp_path):
    with pytest.raises(UsageError):
        kernel.Choice("x86_64", None, tmp_path)
    with pytest.raises(UsageError, match="riscv64"):
        kernel.Choice("riscv64")


def test_a_directory_without_modules_is_named(home, agent, vmlinuz, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no modules"):
        build(home, agent, vmlinuz, modules=tmp_path / "empty")


def test_a_package_that_is_cut_short_is_named(home, agent, tmp_path):
    path = tmp_path / "linux.deb"
    path.write_bytes(packages.deb({"./boot/vmlinuz-6.1": kernels.elf()})[:-400])
    with pytest.raises(ImageError) as caught:
        build(home, agent, path)
    assert caught.value.code == "image.package"


def test_a_package_without_a_kernel_is_named(home, agent, tmp_path):
    path = tmp_path / "linux.deb"
    path.write_bytes(packages.deb({"./etc/x": b""}))
    with pytest.raises(ImageError, match="0 kernels"):
        build(home, agent, path)


def module(name, *depends):
    return Module(name, f"kernel/{name}.ko", depends)


CLOUD = {
    "virtio_ring": module("virtio_ring"),
    "virtio": module("virtio", "virtio_ring"),
    "virtio_pci": module("virtio_pci", "virtio"),
    "virtio_console": module("virtio_console", "virtio"),
    "virtio_blk": module("virtio_blk", "virtio"),
    "erofs": module("erofs"),
    "overlay": module("overlay"),
}


def test_the_channel_comes_up_before_anything_else_is_loaded():
    chosen = bundle.select(Tree(CLOUD, ()))
    assert [item.name for item in chosen.channel] == ["virtio_ring", "virtio", "virtio_pci", "virtio_console"]
    assert [item.name for item in chosen.root] == ["virtio_blk", "erofs", "overlay"]


def test_ext4_is_loaded_last_where_it_is_a_module():
    chosen = bundle.select(Tree({**CLOUD, "ext4": module("ext4", "jbd2"), "jbd2": module("jbd2")}, ()))
    assert [item.name for item in chosen.root] == ["virtio_blk", "erofs", "overlay", "jbd2", "ext4"]


def test_a_kernel_without_a_needed_driver_is_named():
    with pytest.raises(ImageError, match="no module overlay"):
        bundle.select(Tree({name: item for name, item in CLOUD.items() if name != "overlay"}, ()))


def test_the_initramfs_lists_modules_by_absolute_path_in_load_order(tmp_path):
    (tmp_path / "kernel").mkdir()
    for name in CLOUD:
        (tmp_path / f"kernel/{name}.ko").write_bytes(kernels.module(name))
    data = bundle.modules_part(bundle.select(Tree(CLOUD, ())), tmp_path)
    assert b"/modules/virtio_ring.ko\n/modules/virtio.ko\n/modules/virtio_pci.ko\n" in data
    assert b"/modules/virtio_blk.ko\n/modules/erofs.ko\n/modules/overlay.ko\n" in data


def test_a_record_of_a_newer_atoll_is_not_mistaken(home, agent, vmlinuz):
    made = build(home, agent, vmlinuz)
    store.write_file(made.directory / "manifest.json", b'{"schema": 99}')
    assert kernel.installed(home) == []


def test_a_strict_umask_does_not_show_in_the_guest(tmp_path):
    (tmp_path / "top/kernel").mkdir(parents=True, mode=0o700)
    file = tmp_path / "top/kernel/a.ko"
    file.touch(mode=0o600)
    bundle._open_to_all(tmp_path / "top")
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.parent.stat().st_mode & 0o777 == 0o755
