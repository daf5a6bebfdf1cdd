"""Importing root file systems: what Atoll takes them for, and which may stand for one of its own."""

import hashlib
import io
import tarfile

import erofsreader
import pytest

from atoll.errors import ImageError
from atoll.events import ignore
from atoll.image import catalog
from atoll.image.local.importing import bring as bring_in
from atoll.image.oci.documents import platform_of
from atoll.image.recipes import RECIPES
from atoll.paths import Paths

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + (62).to_bytes(2, "little") + bytes(44)


def member(name, data=b"", kind=tarfile.REGTYPE, link="", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive_:
        for info, data in members:
            archive_.addfile(info, io.BytesIO(data))
    return out.getvalue()


SMALL = (
    member("./", kind=tarfile.DIRTYPE, mode=0o700),
    member("bin", kind=tarfile.SYMTYPE, link="usr/bin"),
    member("usr/bin/bash", ELF, mode=0o755),
    member("usr/bin/sh", kind=tarfile.SYMTYPE, link="bash"),
    member("usr/lib/systemd/systemd", ELF, mode=0o755),
    member("etc/os-release", b'ID=example\nVERSION_ID="7"\n'),
    member("home/someone/file", b"hello", uid=1000, gid=100, mode=0o640),
    member("home/someone/again", kind=tarfile.LNKTYPE, link="home/someone/file"),
    member("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member(".dockerenv"),
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return Paths(tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def bring(home, tmp_path):
    def bring(data, name="mine:1"):
        file = tmp_path / "given.tar"
        file.write_bytes(data)
        return bring_in(home, str(file), name, platform=platform_of("x86_64"), emit=ignore)

    return bring


def test_an_exported_container_becomes_an_image(bring, home):
    image = bring(tar(*SMALL))
    assert image.manifest.name == "mine:1"
    assert image.manifest.init == "/usr/lib/systemd/systemd"
    assert image.manifest.shell == "/bin/bash"
    assert (image.manifest.distribution, image.manifest.suite) == ("example", "7")
    assert image.manifest.architecture == "x86_64"
    catalog.verify(catalog.find(home, "mine:1", architecture="x86_64"))
    files = erofsreader.read(image.root)
    assert files[b"home/someone/file"] == files[b"home/someone/again"]
    assert files[b"home/someone/file"].content == b"hello"
    assert b".dockerenv" not in files


def test_a_name_that_is_atolls_is_refused(bring):
    with pytest.raises(ImageError) as caught:
        bring(tar(*SMALL), "debian-machine:trixie")
    assert caught.value.code == "image.name"


def test_a_damaged_imported_image_is_answered_with_the_command_that_imports_it(bring, home):
    image = bring(tar(*SMALL))
    image.root.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        catalog.find(home, "mine:1", architecture="x86_64")
    assert "atoll image import FILE mine:1" in caught.value.hint
    catalog.verify(bring(tar(*SMALL)))


def engine(**changes):
    """A root with all programs of the engine, but for ``changes``: members, or None to leave one out."""
    members = {
        name: member(f"usr/bin/{name}", b"\x7fELF" + name.encode(), mode=0o755)
        for name in RECIPES["engine"].programs
    }
    members |= {name.replace("_", "-"): changed for name, changed in changes.items()}
    return tar(member("etc/hostname", b"x"), *(entry for entry in members.values() if entry is not None))


def test_a_users_own_engine_is_an_image_of_that_name_if_it_has_every_program(bring):
    image = bring(engine(iptables=member("usr/bin/iptables", kind=tarfile.SYMTYPE, link="dockerd")), "engine")
    assert image.manifest.name == "engine:trixie"
    found = {program.name: program for program in image.manifest.programs}
    assert found["runc"].sha256 == hashlib.sha256(b"\x7fELFrunc").hexdigest()
    assert found["iptables"].path == "/usr/bin/dockerd"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (None, "runc is missing"),
        (member("usr/bin/runc", b"x", mode=0o644), "/usr/bin/runc is not executable"),
        (member("usr/bin/runc", kind=tarfile.DIRTYPE, mode=0o755), "/usr/bin/runc is no regular file"),
        (member("usr/bin/runc", b"", mode=0o755), "/usr/bin/runc is empty"),
        (member("usr/bin/runc", kind=tarfile.SYMTYPE, link="/../../../bin/no-such"), "runc is missing"),
    ],
)
def test_an_engine_that_lacks_a_program_is_not_imported(bring, home, changed, said):
    with pytest.raises(ImageError) as caught:
        bring(engine(runc=changed), "engine")
    assert caught.value.code == "image.program"
    assert said in caught.value.message
    assert catalog.installed(home) == []
