"""A directory as a tar: what tar(1) makes of it is the directory."""

import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import erofsreader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.events import Warned, ignore
from atoll.image.local import tarheaders
from atoll.image.local.walking import Tree

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of several owners")


def tar_of(directory, emit=ignore, size=10_000):
    with Tree(directory, emit).open() as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    (top / "a" / "b").mkdir(parents=True)
    for size in (0, 1, 511, 512, 513, 300_000):
        (top / "a" / f"size-{size}").write_bytes(os.urandom(size))
    os.link(top / "a" / "size-513", top / "second")
    (top / "symlink").symlink_to("a/size-1")
    os.link(top / "symlink", top / "symlink-again", follow_symlinks=False)
    (top / "away").symlink_to("/etc")
    (top / "a" / ("long" * 60)).mkdir()
    (top / "a" / ("long" * 60) / ("name" * 60)).write_text("x")
    (top / "long-link").symlink_to("x/" * 150)
    Path(os.fsdecode(bytes(top) + b"/no-utf8-\xff")).write_text("odd")
    Path(os.fsdecode(bytes(top) + b"/no-utf8-\xfe" + b"-" * 150)).write_text("odd")
    os.mkfifo(top / "fifo")
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    return top


@AS_ROOT
def test_tar_makes_the_same_of_it(tree, tmp_path):
    os.mknod(tree / "node", stat.S_IFCHR | 0o620, os.makedev(259, 1000))
    os.chown(tree / "second", 70_000, 4_000_000_000)
    os.chown(tree / "symlink", 5, 6, follow_symlinks=False)
    (tree / "a" / "size-1").chmod(0o6755)
    os.setxattr(tree / "a", "user.binary", bytes(range(256)))
    os.setxattr(tree / "second", "security.capability", bytes.fromhex("0100000200040000" + 12 * "00"))
    os.setxattr(tree / "symlink", "trusted.of-a-link", b"x", follow_symlinks=False)
    times = (-1_500_000_000, 1, 999_999_999, 10**18 + 5, 9_000_000_000 * 10**9)
    for number, path in enumerate([tree, *sorted(tree.rglob("*"), key=lambda path: -len(path.parts))]):
        moment = times[number % len(times)]
        os.utime(path, ns=(moment, moment), follow_symlinks=False)
    target = tmp_path / "target"
    target.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "-p"]
    words = ["tar", "-x", *options, "--delay-directory-restore", "-C", target]
    subprocess.run(words, input=tar_of(tree), check=True)
    assert erofsreader.differences(erofsreader.tree_of(tree), erofsreader.tree_of(target)) == []


def test_the_same_directory_is_the_same_tar_however_it_is_read(tree):
    assert tar_of(tree) == tar_of(tree, size=77) == tar_of(tree, size=1 << 20)


def test_sockets_are_left_out_and_said_once(tree, monkeypatch):
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(tree)  # names of sockets are short
        sock.bind("socket")
    said = []
    source = Tree(tree, said.append)
    for _ in range(2):
        with source.open() as stream:
            data = b"".join(iter(lambda: stream.read(100_000), b""))
    assert b"socket\0" not in data
    (warned,) = said
    assert isinstance(warned, Warned)
    assert warned.message == "1 sockets were left out: socket"


@AS_ROOT
@pytest.mark.skipif(not shutil.which("unshare"), reason="mounts something that nobody else sees")
def test_other_file_systems_are_empty_directories(tmp_path):
    script = "import sys, test_local_walking as tests; tests.with_a_mount(sys.argv[1])"
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    command = ["unshare", "-m", sys.executable, "-c", script, tmp_path]
    subprocess.run(command, check=True, env=environment)


def with_a_mount(place):
    top = Path(place) / "top"
    (top / "mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-omode=750", "none", top / "mounted"], check=True)
    (top / "mounted" / "inside").touch()
    said = []
    data = tar_of(top, said.append)
    assert b"inside" not in data
    assert b"mounted/" in data
    assert "other file systems are mounted there: mounted" in said[0].message


def test_what_changes_while_it_is_read_stays_a_whole_archive_and_leads_nowhere_else(tmp_path):
    top, outside = tmp_path / "top", tmp_path / "outside"
    (top / "b").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (top / "a").write_bytes(b"a" * 1_000_000)
    (top / "c").write_text("gone")
    said = []
    with Tree(top, said.append).open() as stream:
        data = stream.read(20_000)
        os.truncate(top / "a", 500_000)
        (top / "b").rmdir()
        (top / "b").symlink_to(outside)
        (top / "c").unlink()
        data += b"".join(iter(lambda: stream.read(100_000), b""))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {member.name: (member.type, member.size) for member in tar}
    assert found.pop("a") == (tarfile.REGTYPE, 1_000_000)
    assert found == {".": (tarfile.DIRTYPE, 0), "b": (tarfile.SYMTYPE, 0)}
    assert [event.message for event in said] == [
        "1 files became shorter while they were read, and end with zeros: a"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tree):
    (tree / "a" / "size-1").chmod(0)
    with pytest.raises(ImageError) as caught:
        tar_of(tree)
    assert caught.value.code == "image.unreadable"


NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and name.strip(b"/"))
VALUES = st.binary(max_size=200)


@settings(max_examples=40)
@given(
    NAMES,
    st.sampled_from([tarheaders.FILE, tarheaders.SYMLINK, tarheaders.HARD_LINK]),
    st.integers(0, 2**32 - 2),
    st.integers(-(2**70), 2**70),
    st.integers(0, 2**63),
    st.dictionaries(st.from_regex(rb"user\.[a-z]{1,20}", fullmatch=True), VALUES, max_size=3),
)
def test_tarfile_reads_what_is_written(name, kind, owner, mtime, size, xattrs):
    entry = tarheaders.Entry(
        name=name.strip(b"/"),
        kind=kind,
        uid=owner,
        gid=owner // 2,
        mtime=mtime,
        size=size if kind == tarheaders.FILE else 0,
        link=b"" if kind == tarheaders.FILE else name,
        xattrs=tuple(sorted(xattrs.items())),
    )
    data = tarheaders.header(entry)
    assert len(data) % tarheaders.BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as tar:
        read = tar.next()
    assert os.fsencode(read.name) == entry.name
    assert (read.uid, read.gid, read.type) == (owner, owner // 2, kind)
    assert os.fsencode(read.linkname) == entry.link
    assert abs(read.mtime - mtime / 10**9) <= abs(mtime / 10**9) * 1e-9 + 1e-6
    if kind == tarheaders.FILE:
        assert read.size == size
    found = {key: value for key, value in read.pax_headers.items() if key.startswith("SCHILY")}
    assert {key[13:].encode(): os.fsencode(value) for key, value in found.items()} == xattrs
