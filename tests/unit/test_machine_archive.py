"""Machines in one file: what is in it comes back; what it says of the host is not taken."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile

import msgspec
import pytest
from archives import IMAGE, spec_of
from msgspec.structs import replace

from atoll import store
from atoll.errors import UsageError
from atoll.events import Warned
from atoll.hypervisor.model import Forward
from atoll.machine import archive, registry
from atoll.machine.spec import Service
from atoll.paths import Paths

ROOT, DISK = os.urandom(5000), bytes(1 << 20) + os.urandom(5000)


@pytest.fixture
def home(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def exported(home, tmp_path):
    """Writes a machine with that record to a file."""

    def export(**changes):
        def fill(place):
            place.root.write_bytes(ROOT)
            place.data.write_bytes(DISK)
            store.write_record(place.image, IMAGE)

        registry.add(home, "dev", spec_of(**changes), fill)
        with registry.change(home, "dev") as machine:
            archive.export_machine(machine, tmp_path / "file")
        return tmp_path / "file"

    return export


def forged(path, change):
    """The file with another manifest and record, whose digests are right."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    content = dict(members)
    manifest = msgspec.json.decode(content["manifest.json"], type=archive.ExportManifest)
    spec = msgspec.json.decode(content["machine.json"])
    manifest, spec = change(manifest, spec)
    content["machine.json"] = msgspec.json.encode(spec)
    digests = {**manifest.digests, "machine.json": hashlib.sha256(content["machine.json"]).hexdigest()}
    content["manifest.json"] = msgspec.json.encode(replace(manifest, digests=digests))
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_what_its_file_says_of_the_host_is_left_out_and_told(home, exported):
    service = Service(start="/bin/true")
    path = exported(forwards=(Forward(22, 22, address="0.0.0.0"),), service=service, env={"A": "b"})
    told = []
    assert archive.import_machine(home, path, "moved", told.append) == "moved"
    found = registry.find(home, "moved")
    assert (found.spec.forwards, found.spec.shares, found.spec.kernel) == ((), (), "")
    assert (found.spec.service, found.spec.env) == (None, {"A": "b"})
    assert found.spec.id != registry.find(home, "dev").spec.id
    assert (found.place.root.read_bytes(), found.place.data.read_bytes()) == (ROOT, DISK)
    warned = [event.message for event in told if isinstance(event, Warned)]
    assert ["ports" in warned[0], "kernel" in warned[1], len(warned)] == [True, True, 2]


def test_one_that_says_nothing_of_the_host_is_not_warned_of(home, exported):
    told = []
    archive.import_machine(home, exported(kernel=""), "moved", told.append)
    assert [event for event in told if isinstance(event, Warned)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"accel": "tcg,thread=single"},
        {"cpus": 0},
        {"memory": 1 << 60},
        {"disk": -1},
        {"boot_timeout": 1e300},
        {"workdir": "relative"},
        {"user": "a:b"},
        {"env": {"A=B": "c"}},
    ],
)
def test_a_record_that_atoll_does_not_write_is_refused(home, exported, changes):
    path = forged(exported(), lambda manifest, spec: (manifest, {**spec, **changes}))
    with pytest.raises(UsageError) as caught:
        archive.import_machine(home, path, "moved")
    assert caught.value.code == "usage.archive"
    assert sorted(os.listdir(home.machines)) == ["dev"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../up"},
        {"disk": 1 << 60},
        {"image": replace(IMAGE, name="a\nb")},
        {"extents": ((-1, 5),)},
    ],
)
def test_a_manifest_that_atoll_does_not_write_is_refused(home, exported, changes):
    path = forged(exported(), lambda manifest, spec: (replace(manifest, **changes), spec))
    with pytest.raises(UsageError) as caught:
        archive.import_machine(home, path, "moved")
    assert caught.value.code == "usage.archive"
    assert sorted(os.listdir(home.machines)) == ["dev"]
