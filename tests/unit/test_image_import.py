"""Importing root file systems: what honest archives come to, and that hostile ones come to nothing."""

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile

import pytest

from atoll.errors import ImageError, StoreError
from atoll.image import archive, catalog, rootfs
from atoll.image.recipes import RECIPES
from atoll.paths import Paths

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.erofs"), reason="unpacks files of several owners"
)

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
        return catalog.import_rootfs(home, file, name)

    return bring


@pytest.fixture
def unpacked(monkeypatch):
    """The trees that would be packed, as {path: (type, mode, uid, gid, content or target)}."""
    trees = []
    pack = rootfs.packing.pack

    def look(work, *rest):
        top = work / "tree"
        tree = {}
        for path in sorted(top.rglob("*")):
            state = path.lstat()
            kind = "l" if path.is_symlink() else "d" if path.is_dir() else "f" if path.is_file() else "?"
            content = os.readlink(path) if kind == "l" else path.read_bytes() if kind == "f" else None
            tree[str(path.relative_to(top))] = (
                kind,
                state.st_mode & 0o7777,
                state.st_uid,
                state.st_gid,
                content,
            )
        trees.append((tree, top.stat().st_mode & 0o7777))
        pack(work, *rest)

    monkeypatch.setattr(rootfs.packing, "pack", look)
    return trees


def test_an_exported_container_becomes_an_image(bring, home, unpacked):
    image = bring(tar(*SMALL))
    assert image.manifest.name == "mine:1"
    assert image.manifest.init == "/usr/lib/systemd/systemd"
    assert image.manifest.shell == "/bin/bash"
    assert (image.manifest.distribution, image.manifest.suite) == ("example", "7")
    assert image.manifest.architecture == "x86_64"
    catalog.verify(catalog.find(home, "mine:1", architecture="x86_64"))
    (tree, mode), *_ = unpacked
    assert mode == 0o755
    assert tree["home/someone/file"] == ("f", 0o640, 1000, 100, b"hello")
    assert tree["home/someone/again"] == tree["home/someone/file"]
    assert tree["bin"][4] == "usr/bin"
    assert not {".dockerenv", "dev/null"} & set(tree)


@pytest.mark.parametrize("squeeze", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_compressed_archive_is_the_same_image(bring, squeeze):
    plain = bring(tar(*SMALL)).manifest.digest
    assert bring(squeeze(tar(*SMALL))).manifest.digest == plain


def test_zstd_is_read_where_its_module_is(bring):
    zstandard = pytest.importorskip("zstandard")
    plain = bring(tar(*SMALL)).manifest.digest
    assert bring(zstandard.compress(tar(*SMALL))).manifest.digest == plain
    with pytest.raises(ImageError):
        bring(zstandard.compress(tar(*SMALL))[:-40])


def layout(*layers, damage=None, platforms=("amd64",)):
    blobs = {}

    def blob(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    described = [blob(data) for data in layers]
    manifests = []
    for platform in platforms:
        manifest = blob(json.dumps({"layers": described, "note": platform}).encode())
        manifests.append({**manifest, "platform": {"architecture": platform, "os": "linux"}})
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"manifests": manifests}).encode(),
        **blobs,
    }
    if damage:
        damage(files, described)
    return tar(*(member(name, data) for name, data in files.items()))


LOWER = tar(*SMALL, member("etc/gone", b"x"), member("srv/old", b"x"))
UPPER = gzip.compress(
    tar(
        member("etc/.wh.gone"),
        member("srv/new", b"new"),
        member("srv/.wh..wh..opq"),
        member("etc/os-release", b"ID=up\n"),
    )
)


def test_the_layers_of_an_oci_layout_are_laid_over_one_another(bring, unpacked):
    image = bring(layout(LOWER, UPPER))
    assert image.manifest.distribution == "up"
    (tree, _), *_ = unpacked
    assert [path for path in tree if path.startswith("srv")] == ["srv", "srv/new"]
    assert "etc/gone" not in tree
    assert not any(".wh." in path for path in tree)


def swap_layer(files, described):
    files[f"blobs/{described[0]['digest'].replace(':', '/')}"] = tar(member("evil", b"x"))


def drop_layer(files, described):
    del files[f"blobs/{described[0]['digest'].replace(':', '/')}"]


def no_json(files, _described):
    files["index.json"] = b"\xff{"


def odd_digest(files, _described):
    files["index.json"] = b'{"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}'


def no_manifest(files, _described):
    files["index.json"] = b'{"manifests": []}'


@pytest.mark.parametrize("damage", [swap_layer, drop_layer, no_json, odd_digest, no_manifest])
def test_a_layout_whose_parts_do_not_fit_is_refused(bring, home, damage):
    with pytest.raises(ImageError) as caught:
        bring(layout(LOWER, damage=damage))
    assert caught.value.code == "image.archive"
    assert catalog.installed(home) == []


def test_of_several_architectures_the_hosts_is_taken_and_another_alone_is_not(bring):
    bring(layout(LOWER, platforms=("amd64", "arm64")))
    with pytest.raises(ImageError, match="0 images"):
        bring(layout(LOWER, platforms=("s390x",)))


def claims(size):
    """An archive of one header, whose file is not there."""
    info = tarfile.TarInfo("huge")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def claims_header(size):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def endless_headers():
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    return info.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024)


HOSTILE = {
    "absolute": tar(member("/etc/x", b"x")),
    "upward": tar(member("../../x", b"x")),
    "hard link outside": tar(member("x", kind=tarfile.LNKTYPE, link="/etc/passwd")),
    "hard link upward": tar(member("x", kind=tarfile.LNKTYPE, link="../../../etc/passwd")),
    "claims an exbibyte": claims(1 << 60),
    "claims more than there is": claims(1 << 30) + bytes(2048),
    "claims a negative size": claims(-5) + bytes(1024),
    "claims a huge header": claims_header(1 << 40),
    "endless headers": endless_headers(),
    "truncated": tar(*SMALL)[:2048],
    "damaged in the middle": tar(*SMALL)[:1024] + b"\xff" * 512 + tar(*SMALL)[1536:],
    "truncated gzip": gzip.compress(tar(*SMALL))[:-20],
    "damaged xz": lzma.compress(tar(*SMALL))[:60],
    "empty": b"",
    "only zeros": bytes(10240),
    "no tar": b"hello, world" * 500,
    "bzip2": b"BZh91AY&SY" + bytes(100),
    "docker's old form": tar(member("manifest.json", b"[]"), member("abc/layer.tar", b"x")),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_damaged_archive_is_refused_and_leaves_nothing(bring, home, tmp_path, data):
    with pytest.raises(ImageError) as caught:
        bring(data)
    assert caught.value.code == "image.archive"
    assert caught.value.hint
    assert catalog.installed(home) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"given.tar", "data"}


def test_a_link_that_leads_out_of_the_tree_is_never_followed_on_the_host(bring, tmp_path, unpacked):
    target = tmp_path / "victim"
    target.mkdir()
    bring(
        tar(
            member("evil", kind=tarfile.SYMTYPE, link=str(target)),
            member("evil/file", b"inside"),
            member("up", kind=tarfile.SYMTYPE, link="../../../../../.."),
            member(f"up{tmp_path}/victim/other", b"inside"),
            member("bin/sh", ELF, mode=0o755),
        )
    )
    assert list(target.iterdir()) == []
    (tree, _), *_ = unpacked
    assert tree[f"{str(target)[1:]}/file"][4] == tree[f"{str(target)[1:]}/other"][4] == b"inside"


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(home, tmp_path):
    file = tmp_path / "bomb.tar.gz"
    file.write_bytes(gzip.compress(tar(member("zeros", bytes(3 << 20)))))
    for data in (file.read_bytes(), gzip.decompress(file.read_bytes())):
        file.write_bytes(data)
        with pytest.raises(ImageError, match=r"more than|claims"):
            rootfs.build(
                tmp_path / "out", file, name="x:1", architecture="x86_64", tag="1", emit=print, limit=1 << 20
            )


def test_too_many_entries_are_refused(monkeypatch):
    monkeypatch.setattr(archive, "MOST_ENTRIES", 3)
    budget = archive.Budget(most_entries=3)
    with pytest.raises(ImageError, match="entries"):
        list(archive.entries(io.BytesIO(tar(*SMALL)), "x", budget))


def test_a_full_disk_is_told_before_anything_is_unpacked(bring, monkeypatch):
    def refuse(_place, count):
        if count > 100 << 20:
            raise StoreError("no space left", code="full")

    monkeypatch.setattr(rootfs.store, "require_space", refuse)
    monkeypatch.setattr(rootfs, "_unpack", None)
    with pytest.raises(StoreError) as caught:
        bring(tar(member("zeros", bytes(30 << 20))))
    assert caught.value.code == "store.full"


def test_a_file_that_is_not_there_and_a_name_that_is_atolls_are_refused(home, tmp_path, bring):
    with pytest.raises(ImageError) as caught:
        catalog.import_rootfs(home, tmp_path / "none.tar", "mine")
    assert caught.value.code == "image.missing"
    with pytest.raises(ImageError) as caught:
        bring(tar(*SMALL), "debian-machine:trixie")
    assert caught.value.code == "image.name"


def test_a_damaged_imported_image_is_answered_with_the_command_that_imports_it(bring, home):
    image = bring(tar(*SMALL))
    image.root.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        catalog.find(home, "mine:1", architecture="x86_64")
    assert "atoll image import FILE mine:1" in caught.value.hint


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
