"""The real thing: Debian's kernel through apt and a Debian root by mmdebstrap, kept between runs."""

import pytest
from builds import take_kernel

from atoll import process
from atoll.errors import ImageError, ProcessError
from atoll.image import catalog, debian, erofs, kernel, machine, vmlinux
from atoll.image.recipes import RECIPES
from atoll.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def agent(paths):
    """The installed agent, or any program in its place: nothing is booted here."""
    installed = kernel.agent_path(kernel.host_architecture())
    if installed.exists():
        return installed
    stand_in = paths.cache / "no-agent"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    if not stand_in.exists():
        stand_in.write_bytes(b"#!/bin/sh\n")
    return stand_in


@pytest.fixture(scope="session")
def made(paths, agent):
    return kernel.ensure(paths, agent=agent)


@pytest.fixture(scope="session")
def image(paths):
    return catalog.ensure(paths, "debian")


def test_debians_cloud_kernel_becomes_a_bundle(made):
    kernel.verify(made)
    assert made.manifest.origin.kind == "debian"
    assert "virtio_console" in made.manifest.channel
    assert {"virtio_blk", "erofs", "overlay"} <= set(made.manifest.root)
    assert vmlinux.release_of(made.vmlinux.read_bytes()) == made.manifest.release
    assert made.modules is not None
    erofs.check_file(made.modules)


def test_a_new_agent_needs_neither_network_nor_unpacking(paths, agent, tmp_path):
    own = Paths(data=tmp_path, cache=tmp_path)  # others use the first bundle meanwhile
    first = take_kernel(paths, own, agent=agent)
    other = tmp_path / "agent"
    other.write_bytes(b"another agent")
    second = kernel.ensure(own, agent=other)
    assert second.manifest.origin == first.manifest.origin
    assert second.vmlinux.samefile(first.vmlinux)
    assert kernel.prune(own) == [first.directory.name]


def test_the_debian_image_has_what_it_promises_and_nothing_of_the_host(image):
    catalog.verify(image)
    names = {package.name for package in image.manifest.packages}
    assert {"apt", "bash", *debian.PACKAGES} <= names
    assert "systemd" not in names
    assert 30_000_000 < image.manifest.size < 70_000_000
    assert erofs.check_file(image.root).inodes > 1000


@pytest.fixture(scope="session")
def machine_image(paths):
    return catalog.ensure(paths, "debian-machine")


def holds(image, path):
    """Whether the image has something at ``path``."""
    try:
        done = process.run(["dump.erofs", f"--path={path}", str(image.root)])
    except ProcessError:
        return False
    return b"NID" in done.stdout


def test_a_machines_image_has_systemd_and_no_keys_of_its_own(machine_image):
    catalog.verify(machine_image)
    assert machine_image.manifest.init == "/usr/lib/systemd/systemd"
    names = {package.name for package in machine_image.manifest.packages}
    assert {*debian.PACKAGES, *machine.PACKAGES} <= names
    assert "udev" not in names
    assert machine_image.manifest.size < 90_000_000
    assert holds(machine_image, machine_image.manifest.init)
    assert holds(machine_image, "/etc/ssh/sshd_config")
    for kind in ("rsa", "ecdsa", "ed25519"):
        assert not holds(machine_image, f"/etc/ssh/ssh_host_{kind}_key")


def test_a_suite_that_does_not_exist_is_named_with_the_tools_words(paths):
    with pytest.raises(ImageError) as caught:
        catalog.build(paths, "debian:nosuchsuite")
    assert caught.value.code == "image.build"
    assert caught.value.detail
    assert caught.value.hint


def test_two_builds_give_the_same_bytes(image, tmp_path_factory):
    manifest = debian.build(
        tmp_path_factory.mktemp("again") / "root.erofs",
        name=image.manifest.name,
        suite=image.manifest.suite,
        architecture=image.manifest.architecture,
        recipe=RECIPES[image.manifest.name.partition(":")[0]],
    )
    if manifest.packages != image.manifest.packages:
        pytest.skip("the archive has newer packages than the cached image")
    assert manifest.digest == image.manifest.digest
