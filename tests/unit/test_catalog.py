import hashlib
import json
import shutil
import struct
import tarfile
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import store
from atoll.errors import ImageError, PreflightError, StoreError
from atoll.image import catalog, debian, machine, recipes
from atoll.image.manifest import ImageManifest, InstalledPackage
from atoll.image.programs import Program
from atoll.image.recipes import RECIPES, Flavour
from atoll.paths import Paths

MIRROR = "http://mirror.example/ubuntu"


@pytest.fixture
def home(tmp_path):
    return Paths(tmp_path / "data", tmp_path / "cache")


def root(content=b"x"):
    head = bytearray(4096)
    struct.pack_into("<IIIBBHQQ", head, 1024, 0xE0F5E1E2, 0, 0, 12, 0, 36, 5, 1000)
    struct.pack_into("<I", head, 1024 + 36, 2)
    return bytes(head) + content.ljust(4096, b"\0")


def manifest(name, suite, data):
    return ImageManifest(
        name=name,
        architecture="x86_64",
        distribution="debian",
        suite=suite,
        digest=hashlib.sha256(data).hexdigest(),
        size=len(data),
        created=1.0,
    )


def put(home, name="debian:trixie", data=None):
    data = data or root()
    reference = recipes.parse(name)
    directory = catalog.directory_of(home, reference, "x86_64")
    directory.mkdir(parents=True)
    (directory / "root.erofs").write_bytes(data)
    store.write_record(directory / "manifest.json", manifest(name, reference.tag, data))
    return directory


@pytest.fixture
def builds(monkeypatch):
    """A builder that takes no time; the list has what it was asked for."""
    asked = []

    def build(output, *, name, suite, architecture, recipe, mirror, emit):
        asked.append((name, suite, architecture))
        assert recipe is RECIPES[name.partition(":")[0]]
        assert mirror == ("" if recipe.distribution == "debian" else MIRROR)
        output.write_bytes(root())
        return manifest(name, suite, root())

    monkeypatch.setattr(debian, "build", build)
    return asked


def find(home, name):
    return catalog.find(home, name, architecture="x86_64")


def test_an_image_is_found_by_its_name_with_and_without_tag(home):
    directory = put(home)
    assert find(home, "debian").directory == directory
    assert find(home, "debian:trixie").root.read_bytes() == root()


def test_a_name_means_the_same_directory_everywhere(home):
    assert (
        catalog.directory_of(home, recipes.parse("debian:bookworm"), "aarch64").name
        == "debian+bookworm+aarch64"
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/b",
        "debian:..",
        "debian:a/b",
        "debian:",
        ":x",
        "A",
        "a b",
        "a\n",
        "a..b",
        "-a",
        "a:b:c",
    ],
)
def test_a_name_that_could_be_a_path_is_refused(name):
    with pytest.raises(ImageError) as caught:
        recipes.parse(name)
    assert caught.value.code == "image.name"


@given(st.text(max_size=80))
def test_any_name_is_safe_as_a_directory_or_refused(name):
    try:
        reference = recipes.parse(name)
    except ImageError:
        return
    directory = f"{reference.name}+{reference.tag}+x86_64"
    assert "/" not in directory
    assert not directory.startswith(".")
    assert len(directory) < 255
    assert recipes.parse(str(reference)) == reference


def test_an_unknown_image_is_answered_with_the_nearest_known_name(home):
    put(home, "mybox:1")
    with pytest.raises(ImageError) as caught:
        find(home, "debain")
    assert caught.value.code == "image.missing"
    assert "atoll image pull debain" in caught.value.hint
    assert "did you mean debian?" in caught.value.hint
    assert "mybox:1" in caught.value.hint


def test_an_image_that_is_not_built_yet_is_answered_with_the_command_that_builds_it(home):
    with pytest.raises(ImageError) as caught:
        find(home, "debian")
    assert caught.value.code == "image.missing"
    assert "atoll image build debian:trixie" in caught.value.hint


def damage_size(directory):
    (directory / "root.erofs").write_bytes(root()[:-1])


def damage_superblock(directory):
    (directory / "root.erofs").write_bytes(bytes(len(root())))


def damage_root_gone(directory):
    (directory / "root.erofs").unlink()


def damage_manifest(directory):
    (directory / "manifest.json").write_text("{")


def damage_manifest_gone(directory):
    (directory / "manifest.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_size, damage_superblock, damage_root_gone, damage_manifest, damage_manifest_gone]
)
def test_a_damaged_image_is_named_with_the_command_that_rebuilds_it_and_never_used(home, builds, damage):
    damage(put(home))
    for use in (find, lambda home, name: catalog.ensure(home, name, architecture="x86_64")):
        with pytest.raises(ImageError) as caught:
            use(home, "debian")
        assert caught.value.code == "image.corrupt"
        assert "atoll image build --force debian:trixie" in caught.value.hint
    assert builds == []
    assert next(listed.error.code for listed in catalog.installed(home)) in {"image.corrupt", "store.missing"}
    catalog.build(home, "debian", architecture="x86_64", force=True)
    catalog.verify(find(home, "debian"))


def test_silent_damage_is_found_by_verify(home):
    directory = put(home)
    (directory / "root.erofs").write_bytes(root(b"y"))
    image = find(home, "debian")
    with pytest.raises(ImageError) as caught:
        catalog.verify(image)
    assert caught.value.code == "image.corrupt"


def test_the_first_use_builds_the_image(home, builds):
    image = catalog.ensure(home, "debian:bookworm", architecture="x86_64")
    assert builds == [("debian:bookworm", "bookworm", "x86_64")]
    assert image.manifest.suite == "bookworm"
    assert catalog.ensure(home, "debian:bookworm", architecture="x86_64") == image
    assert len(builds) == 1


def test_builders_at_the_same_time_build_once(home, builds):
    threads = [
        threading.Thread(target=catalog.ensure, args=(home, "debian"), kwargs={"architecture": "x86_64"})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_an_image_that_is_removed_while_it_is_looked_at_is_not_there(home, monkeypatch):
    directory = put(home)
    load = catalog.load

    def removed(found):
        shutil.rmtree(found)
        return load(found)

    monkeypatch.setattr(catalog, "load", removed)
    with pytest.raises(ImageError) as caught:
        find(home, "debian")
    assert caught.value.code == "image.missing"
    assert not directory.exists()


def test_a_failed_build_leaves_nothing_that_looks_like_an_image(home, monkeypatch):
    def fail(output, **_rest):
        output.write_bytes(b"half")
        raise ImageError("no network", code="build")

    monkeypatch.setattr(debian, "build", fail)
    with pytest.raises(ImageError, match="no network"):
        catalog.ensure(home, "debian", architecture="x86_64")
    assert catalog.installed(home) == []
    with pytest.raises(ImageError) as caught:
        find(home, "debian")
    assert caught.value.code == "image.missing"


def test_a_full_disk_is_told_as_that(home, monkeypatch):
    def fail(output, **_rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(debian, "build", fail)
    with pytest.raises(StoreError) as caught:
        catalog.ensure(home, "debian", architecture="x86_64")
    assert caught.value.code == "store.full"


def test_a_place_that_cannot_be_written_is_told_as_that(tmp_path):
    (tmp_path / "data").write_text("a file where the directory should be")
    with pytest.raises(StoreError) as caught:
        catalog.ensure(Paths(tmp_path / "data", tmp_path / "cache"), "debian", architecture="x86_64")
    assert caught.value.code in {"store.unwritable", "store.io"}


def test_only_known_images_can_be_built(home):
    with pytest.raises(ImageError) as caught:
        catalog.build(home, "windows", architecture="x86_64")
    assert caught.value.code == "image.unknown"


def test_a_removed_image_is_gone(home):
    put(home)
    catalog.remove(home, "debian", architecture="x86_64")
    assert catalog.installed(home) == []
    with pytest.raises(ImageError) as caught:
        catalog.remove(home, "debian", architecture="x86_64")
    assert caught.value.code == "image.missing"


def test_an_image_of_another_architecture_is_another_image(home):
    put(home)
    with pytest.raises(ImageError, match="aarch64"):
        catalog.find(home, "debian", architecture="aarch64")


def test_inspection_tells_what_the_file_system_is(home):
    put(home)
    image, superblock = catalog.inspect(home, "debian", architecture="x86_64")
    assert image.manifest.distribution == "debian"
    assert superblock.inodes == 5


def test_the_tool_is_told_everything_that_makes_the_image_the_same_everywhere(tmp_path):
    argv = debian.arguments(
        "trixie",
        "amd64",
        tmp_path,
        mode="auto",
        sources=("deb http://mirror.example/debian trixie main",),
        options=('Acquire::Retries "3"',),
    )
    assert argv[-3:] == ["trixie", str(tmp_path), "deb http://mirror.example/debian trixie main"]
    assert '--aptopt=Acquire::Retries "3"' in argv
    hook = next(word for word in argv if word.startswith("--customize-hook="))
    for leak in ("resolv.conf", "hostname", "machine-id", "99mmdebstrap", "var/log"):
        assert leak in hook


def test_the_engines_image_has_neither_apt_nor_docker_client(tmp_path):
    argv = debian.arguments(
        "trixie", "amd64", tmp_path, mode="auto", sources=(), options=(), flavour=Flavour.ENGINE
    )
    assert "--variant=essential" in argv
    packages = next(word for word in argv if word.startswith("--include=")).partition("=")[2].split(",")
    assert {"docker.io", "containerd", "runc", "iptables"} <= set(packages)
    assert not {"docker-cli", "apt", "systemd-sysv"} & set(packages)
    [hook] = [word for word in argv if word.startswith("--extract-hook=")]
    assert "path-exclude=/usr/bin/ctr " in hook
    assert any("iptables" in word and "-legacy" in word for word in argv if "customize-hook" in word)


def test_an_image_that_lacks_a_program_is_named_with_what_brings_it(home):
    record = manifest("engine:trixie", "trixie", root())
    found = tuple(
        Program(name, f"/usr/bin/{name}", 1, 0o100755, "00")
        for name in RECIPES["engine"].programs
        if name != "runc"
    )
    with pytest.raises(ImageError) as caught:
        catalog.require_programs(msgspec.structs.replace(record, programs=found))
    assert caught.value.code == "image.program"
    assert "runc is missing" in caught.value.message
    assert "atoll image build --force engine:trixie" in caught.value.hint
    catalog.require_programs(manifest("debian:trixie", "trixie", root()))


def test_installed_packages_are_read_from_dpkg():
    status = (
        "Package: b\nStatus: install ok installed\nVersion: 2\nArchitecture: amd64\nDescription: x\n more\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n"
        "Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n"
    )
    assert debian.installed_packages(status) == (
        InstalledPackage(name="a", version="1", architecture="all"),
        InstalledPackage(name="b", version="2", architecture="amd64"),
    )


def test_a_machines_image_is_asked_for_as_any_other(home, builds):
    image = catalog.ensure(home, "debian-machine:trixie", architecture="x86_64")
    assert image.directory.name == "debian-machine+trixie+x86_64"
    assert catalog.ensure(home, "debian-machine", architecture="x86_64") == image
    catalog.ensure(home, "ubuntu-machine", architecture="x86_64", mirror=MIRROR)
    assert builds[1] == ("ubuntu-machine:noble", "noble", "x86_64")


def test_a_manifest_of_an_older_atoll_has_no_init(home):
    directory = put(home)
    file = directory / "manifest.json"
    record = json.loads(file.read_text())
    del record["init"]
    file.write_text(json.dumps(record))
    assert find(home, "debian").manifest.init == ""


def machine_arguments(tmp_path):
    return debian.arguments(
        "trixie",
        "amd64",
        tmp_path,
        mode="auto",
        sources=(),
        options=(),
        flavour=Flavour.MACHINE,
        overlay=tmp_path / "a b.tar",
    )


def test_a_machines_image_has_systemd_its_files_and_no_host_keys(tmp_path):
    argv = machine_arguments(tmp_path)
    packages = next(word for word in argv if word.startswith("--include=")).partition("=")[2].split(",")
    assert {*debian.PACKAGES, *machine.PACKAGES} == set(packages)
    hooks = [word.partition("=")[2] for word in argv if word.startswith("--customize-hook=")]
    assert hooks[0] == f"tar-in '{tmp_path}/a b.tar' /"
    assert "ssh_host_*" in hooks[1]
    assert "machine-id" in hooks[1]


def test_the_files_of_a_machines_image_are_the_same_bytes_each_time(tmp_path):
    machine.write_archive(tmp_path / "1")
    machine.write_archive(tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with tarfile.open(tmp_path / "1") as tar:
        members = {member.name: member for member in tar}
    assert {name for name, member in members.items() if not member.isdir()} == set(machine.entries())
    assert all((member.uid, member.gid, member.mtime) == (0, 0, 0) for member in members.values())
    generators = [name for name in members if "/system-generators/" in name]
    assert {members[name].mode for name in generators if members[name].isreg()} == {0o755}


def test_no_unit_that_a_user_may_want_is_masked():
    masked = {
        name.rpartition("/")[2]
        for name, content in machine.entries().items()
        if content == machine.Link("/dev/null")
        and name.count("/") == 3
        and name.startswith("etc/systemd/system/")
    }
    assert masked == {"tmp.mount"}


def test_ubuntu_comes_from_the_mirror_that_is_set(tmp_path):
    keys = tmp_path / "keys.gpg"
    keys.touch()
    lines = debian.ubuntu_sources(f"{MIRROR}/", "noble", keyring=keys)
    assert lines == tuple(
        f"deb [signed-by={keys}] {MIRROR} noble{pocket} main universe"
        for pocket in ("", "-updates", "-security")
    )


@pytest.mark.parametrize("mirror", ["", "mirror.example", "http://a b", "http://a\ndeb http://b", "--option"])
def test_ubuntu_without_a_mirror_is_refused_with_the_setting_that_is_missing(mirror, tmp_path):
    with pytest.raises(ImageError) as caught:
        debian.build(
            tmp_path / "out",
            name="ubuntu:noble",
            suite="noble",
            architecture="x86_64",
            recipe=RECIPES["ubuntu"],
            mirror=mirror,
        )
    assert caught.value.code == "image.mirror"
    assert "ubuntu_mirror" in caught.value.hint


def test_ubuntu_without_its_keys_is_refused_with_the_package_that_has_them(tmp_path):
    with pytest.raises(PreflightError) as caught:
        debian.ubuntu_sources(MIRROR, "noble", keyring=tmp_path / "none")
    assert "ubuntu-keyring" in caught.value.hint
