"""The root of the engine's machine: checked at each start, read as a whole only when it is another file."""

import hashlib
import os
import struct

import pytest
from machines import hosted_spec

from atoll import store
from atoll.containers import root
from atoll.errors import ImageError
from atoll.image import catalog, recipes
from atoll.image.kernel import host_architecture
from atoll.image.manifest import ImageManifest
from atoll.image.programs import Program
from atoll.image.recipes import RECIPES
from atoll.machine import registry
from atoll.machine.spec import Service
from atoll.paths import Paths

PROGRAMS = tuple(Program(name, f"/usr/bin/{name}", 1, 0o100755, "00") for name in RECIPES["engine"].programs)


def erofs(content):
    head = bytearray(4096)
    struct.pack_into("<IIIBBHQQ", head, 1024, 0xE0F5E1E2, 0, 0, 12, 0, 36, 5, 1000)
    struct.pack_into("<I", head, 1024 + 36, 2)
    return bytes(head) + content.ljust(4096, b"\0")


def manifest(data, programs=PROGRAMS):
    return ImageManifest(
        name="engine:trixie",
        architecture=host_architecture(),
        distribution="debian",
        suite="trixie",
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        created=1.0,
        programs=programs,
    )


@pytest.fixture
def paths(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def machine(paths):
    """A machine whose image is not in the catalog any more."""

    def fill(place):
        place.root.write_bytes(erofs(b"old"))
        store.write_record(place.image, manifest(erofs(b"old")))

    registry.add(paths, "docker", hosted_spec(service=Service("true")), fill)
    return registry.find(paths, "docker")


def publish(paths, content):
    directory = catalog.directory_of(paths, recipes.parse("engine"), host_architecture())
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "root.erofs").write_bytes(erofs(content))
    store.write_record(directory / "manifest.json", manifest(erofs(content)))


def test_a_root_that_is_whole_is_read_once(machine, monkeypatch):
    root.check(machine)
    monkeypatch.setattr(root.packing, "digest_of", lambda _: pytest.fail("it was read again"))
    root.check(machine)


def test_a_root_that_was_changed_is_refused_also_if_its_date_is_as_before(machine):
    root.check(machine)
    before = machine.place.root.stat()
    machine.place.root.write_bytes(erofs(b"bad"))
    os.utime(machine.place.root, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ImageError) as caught:
        root.check(machine)
    assert caught.value.code == "image.corrupt"
    assert "atoll image build --force engine:trixie" in caught.value.hint


def test_a_root_that_is_gone_is_refused(machine):
    machine.place.root.unlink()
    with pytest.raises(ImageError) as caught:
        root.check(machine)
    assert caught.value.code == "image.corrupt"


def test_a_root_without_one_of_the_programs_is_refused_by_its_name(machine):
    record = manifest(erofs(b"old"), tuple(program for program in PROGRAMS if program.name != "docker-init"))
    store.write_record(machine.place.image, record)
    with pytest.raises(ImageError) as caught:
        root.check(machine)
    assert caught.value.code == "image.program"
    assert "docker-init is missing" in caught.value.message


def test_the_catalogs_image_takes_the_place_of_an_older_or_damaged_root(paths, machine):
    root.renew(paths, machine)
    assert machine.place.root.read_bytes() == erofs(b"old")
    publish(paths, b"new")
    root.renew(paths, machine)
    assert machine.place.root.read_bytes() == erofs(b"new")
    root.check(machine)
    machine.place.root.unlink()
    machine.place.root.write_bytes(erofs(b"bad"))
    root.renew(paths, machine)
    assert machine.place.root.read_bytes() == erofs(b"new")
    root.check(machine)


def test_a_renewal_that_was_cut_off_is_done_again(paths, machine):
    publish(paths, b"new")
    machine.place.root.write_bytes(erofs(b"new"))  # and its manifest was not written
    root.renew(paths, machine)
    root.check(machine)
