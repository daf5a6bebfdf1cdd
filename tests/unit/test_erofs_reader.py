"""The tests' own reader of EROFS, compared with what mkfs.erofs was given."""

import os
import shutil
import stat
import subprocess

import erofsreader
import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.erofs"), reason="makes files of several owners"
)


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    top.mkdir(mode=0o755)
    for size in (0, 1, 4000, 4096, 4097, 70_000):
        (top / f"size-{size}").write_bytes(os.urandom(size))
    (top / "many").mkdir()
    for number in range(300):
        (top / "many" / f"a-name-of-some-length-{number}").touch()
    os.link(top / "size-1", top / "many" / "link")
    (top / "symlink").symlink_to("many/link")
    os.mkfifo(top / "fifo")
    os.mknod(top / "node", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.chown(top / "size-0", 70_000, 80_000)
    (top / "size-1").chmod(0o4755)
    for name in ("size-1", "size-4097", "many"):
        os.setxattr(top / name, "user.shared", b"the same value everywhere")
    os.setxattr(top / "size-0", "user.own", b"\0\xff")
    os.setxattr(top / "size-4096", "security.capability", bytes.fromhex("0100000200040000" + 12 * "00"))
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(0, number * 1_000_000_007 - 5), follow_symlinks=False)
    return top


@pytest.mark.parametrize(
    "options",
    [[], ["-Eforce-inode-extended,noinline_data"], ["--chunksize=4096"], ["-x1"]],
    ids=["usual", "plain", "chunks", "shared"],
)
def test_it_reads_what_was_written(tree, tmp_path, options):
    image = tmp_path / "image.erofs"
    subprocess.run(["mkfs.erofs", "-x2", *options, image, tree], check=True, capture_output=True)
    assert erofsreader.differences(erofsreader.tree_of(tree), erofsreader.read(image)) == []


def test_it_reads_compact_inodes(tree, tmp_path):
    image = tmp_path / "image.erofs"
    command = ["mkfs.erofs", "-Eforce-inode-compact", "-T5", "--all-root", image, tree]
    subprocess.run(command, check=True, capture_output=True)
    read, given = erofsreader.read(image), erofsreader.tree_of(tree)
    assert {path: (file.mode, file.xattrs) for path, file in given.items()} == {
        path: (file.mode, file.xattrs) for path, file in read.items()
    }
    assert {file.mtime for file in read.values()} == {5 * 10**9}
    assert read[b"size-70000"].content == given[b"size-70000"].content
