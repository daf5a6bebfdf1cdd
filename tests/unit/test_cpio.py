"""The initramfs writer, read back by a reader written from the kernel's description of the format."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.image import cpio


def read(data):
    """Yield (name, fields, content) up to the trailer; checks alignment on the way."""
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        values = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        names = [
            "ino",
            "mode",
            "uid",
            "gid",
            "nlink",
            "mtime",
            "size",
            "dmajor",
            "dminor",
            "rmajor",
            "rminor",
            "namesize",
            "check",
        ]
        fields = dict(zip(names, values, strict=True))
        name = data[at + 110 : at + 110 + fields["namesize"]]
        assert name.endswith(b"\0")
        start = (at + 110 + fields["namesize"] + 3) & ~3
        content = data[start : start + fields["size"]]
        assert len(content) == fields["size"]
        at = (start + fields["size"] + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return
        yield name[:-1].decode(), fields, content


def test_files_links_nodes_and_directories_come_back_as_they_were_given():
    data = cpio.archive(
        [
            cpio.directory("dev"),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("init", b"\x7fELF", 0o755),
            cpio.symlink("bin/sh", "/init"),
        ]
    )
    found = {name: (fields, content) for name, fields, content in read(data)}
    assert list(found) == ["dev", "dev/console", "init", "bin", "bin/sh"]
    assert stat.S_ISCHR(found["dev/console"][0]["mode"])
    assert (found["dev/console"][0]["rmajor"], found["dev/console"][0]["rminor"]) == (5, 1)
    assert found["init"][0]["mode"] == stat.S_IFREG | 0o755
    assert found["init"][1] == b"\x7fELF"
    assert stat.S_ISLNK(found["bin/sh"][0]["mode"])
    assert found["bin/sh"][1] == b"/init"


def test_a_missing_parent_is_added_since_the_kernel_makes_none():
    names = [name for name, _, _ in read(cpio.archive([cpio.file("a/b/c", b"")]))]
    assert names == ["a", "a/b", "a/b/c"]


def test_nothing_of_the_builder_leaks_in():
    for _, fields, _ in read(cpio.archive([cpio.file("x", b"1"), cpio.file("y", b"2")])):
        assert fields["uid"] == fields["gid"] == fields["mtime"] == 0


@pytest.mark.parametrize("path", ["", "/etc", "../etc", "a/../b", "a//b", "a/", ".", "a\0b", "TRAILER!!!"])
def test_a_path_that_could_leave_the_root_is_refused(path):
    with pytest.raises(ValueError, match=r"path|name"):
        cpio.archive([cpio.file(path, b"")])


def test_a_path_is_refused_the_second_time():
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.file("a", b""), cpio.directory("a")])


NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=8))
def test_any_content_survives_and_inodes_are_unique(files):
    files = {path: data for path, data in files.items() if not any(o.startswith(f"{path}/") for o in files)}
    entries = [cpio.file(path, data) for path, data in files.items()]
    items = list(read(cpio.archive(entries)))
    assert {name: content for name, fields, content in items if stat.S_ISREG(fields["mode"])} == files
    inodes = [fields["ino"] for _, fields, _ in items]
    assert len(inodes) == len(set(inodes))
    assert cpio.archive(entries) == cpio.archive(entries)
