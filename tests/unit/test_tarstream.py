"""What the reader of passing archives says, against the standard library's writer."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers.migration.digests import ImageScan, TreeDigest
from atoll.errors import AtollError, EngineError
from atoll.image.tarstream import TarStream

KINDS = {
    "file": tarfile.REGTYPE,
    "hardlink": tarfile.LNKTYPE,
    "symlink": tarfile.SYMTYPE,
    "directory": tarfile.DIRTYPE,
    "fifo": tarfile.FIFOTYPE,
    "char": tarfile.CHRTYPE,
}
name = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=140)
entries = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        name,
        st.integers(0, 0o7777),
        st.integers(0, 1 << 31),
        st.binary(max_size=1500),
        st.dictionaries(st.sampled_from(["user.a", "security.capability"]), st.text("abc\n=", max_size=5)),
    ),
    max_size=6,
)


class Seen:
    def __init__(self):
        self.entries, self.contents = [], []

    def begin(self, entry):
        self.entries.append(entry)
        self.contents.append(b"")

    def data(self, piece):
        self.contents[-1] += bytes(piece)

    def end(self):
        self.entries[-1] = (self.entries[-1], self.contents[-1])


def archive(listed, kind=tarfile.PAX_FORMAT, *, root=None):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        if root is not None:
            info = tarfile.TarInfo(root)
            info.type, info.mode = tarfile.DIRTYPE, 0o1770
            tar.addfile(info)
        for what, called, mode, owner, content, xattrs in listed:
            info = tarfile.TarInfo(f"{root}/{called}" if root is not None else called)
            info.type, info.mode, info.uid, info.gid = KINDS[what], mode, owner, owner // 2
            info.mtime = 1_700_000_000
            if what == "file":
                info.size = len(content)
            if what == "hardlink":
                info.linkname = f"{root}/{called}" if root is not None else called
            if what == "symlink":
                info.linkname = called
            if what == "char":
                info.devmajor, info.devminor = 1, 3
            if kind == tarfile.PAX_FORMAT:
                info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def fed(reader, data, step):
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])


def tree(data, step=4096):
    digest = TreeDigest()
    fed(digest, data, step)
    return digest.finish()


@given(
    entries,
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 2000),
)
def test_it_reads_what_was_written_however_it_is_cut(listed, kind, step):
    data = archive(listed, kind)
    seen = Seen()
    stream = TarStream(seen)
    fed(stream, data, step)
    stream.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = tar.getmembers()
    assert len(seen.entries) == len(expected) == len(listed)
    for (entry, content), member, (what, called, *_, written, xattrs) in zip(
        seen.entries, expected, listed, strict=True
    ):
        assert (entry.name, entry.kind) == (called.encode(), what)
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert (entry.size, content) == ((len(written), written) if what == "file" else (0, b""))
        assert entry.link.decode() == member.linkname
        assert entry.mtime == 1_700_000_000
        if kind == tarfile.PAX_FORMAT:
            kept = {key.encode(): value.encode() for key, value in xattrs.items() if value}
            assert dict(entry.xattrs) == kept


@given(st.binary(max_size=3000), st.integers(0, 1400), st.integers(0, 255))
def test_what_is_no_archive_is_refused_in_order(junk, place, value):
    data = bytearray(archive([("file", "a", 0o644, 0, b"x" * 100, {}), ("fifo", "b", 0o600, 1, b"", {})]))
    for damaged in (junk, bytes(data[:place]), bytes(data[:place] + bytes((value,)) + data[place + 1 :])):
        stream = TarStream(Seen())
        try:
            stream.feed(damaged)
            stream.close()
        except AtollError as error:
            assert error.code == "image.archive"  # noqa: PT017 - either is right, nothing else is


def test_an_archive_that_is_cut_off_anywhere_is_noticed():
    data = archive([("file", "a", 0o644, 0, b"x" * 700, {})], tarfile.USTAR_FORMAT)
    for length in range(0, 512 + 1024 + 1, 128):
        stream = TarStream(Seen())
        stream.feed(data[:length])
        with pytest.raises(AtollError, match="cut off"):
            stream.close()


TREE = [
    ("directory", "d", 0o755, 0, b"", {}),
    ("file", "file\nname", 0o4755, 1000, b"content", {"user.a": "b"}),
    ("hardlink", "link", 0o644, 0, b"", {}),
    ("symlink", "soft", 0o777, 5, b"", {}),
]


def test_trees_are_the_same_whatever_their_directory_is_called():
    assert tree(archive(TREE, root="data"), 7) == tree(archive(TREE, root="srv"))


@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("which", range(2))
def test_any_difference_makes_another_tree(part, which):
    changed = list(TREE[which])
    changed[part] = ("fifo", "other", 0o640, 77, b"other", {"user.b": "c"})[part]
    if part == 4 and which == 0:
        return  # a directory has no content
    assert tree(archive([*TREE[:which], tuple(changed), *TREE[which + 1 :]], root="data")) != tree(
        archive(TREE, root="data")
    )


def test_an_archive_that_holds_more_than_the_directory_is_refused():
    outside = archive([("file", "a", 0o644, 0, b"", {})], root="data").replace(b"data/a", b"else/a")
    with pytest.raises(EngineError, match=r"checksum|more than"):
        tree(outside)
    with pytest.raises(EngineError, match="none of a directory"):
        tree(archive([("symlink", "data", 0o777, 0, b"", {})]))


def images(parts):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for called, content in parts.items():
            info = tarfile.TarInfo(called)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize("where", ["blobs/sha256/{}", "{}.json"])
def test_an_archive_of_images_promises_ids_and_a_changed_part_is_noticed(where):
    config = b'{"os": "linux"}'
    number = hashlib.sha256(config).hexdigest()
    place = where.format(number)
    listing = json.dumps([{"Config": place, "RepoTags": None, "Layers": []}]).encode()
    scan = ImageScan()
    fed(scan, images({place: config, "manifest.json": listing}), 100)
    assert scan.finish() == (f"sha256:{number}",)
    with pytest.raises(EngineError) as caught:
        ImageScan().feed(images({place: config + b" ", "manifest.json": listing}))
    assert caught.value.code == "engine.verify"
    scan = ImageScan()
    scan.feed(images({place: config}))
    with pytest.raises(EngineError, match="no list"):
        scan.finish()
