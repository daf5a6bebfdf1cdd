"""Images of a snapshot: they come back as they were, are stored once, and damage is found wherever it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from array import array
from pathlib import Path

import pytest
import zstandard
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import StoreError
from atoll.snapshot import packs
from atoll.snapshot.chunks import CHUNK, FRAME, FRAME_CHUNKS, data_runs
from atoll.snapshot.index import Image, decode, encode
from atoll.snapshot.pack import MAGIC, Pack, encode_table
from atoll.snapshot.places import Places, place

ZERO = bytes(CHUNK)


def chunk(number):
    """A chunk like no other, which compresses well."""
    return number.to_bytes(8, "little").ljust(CHUNK, b"x")


def noise(number):
    """A chunk like no other, which does not compress."""
    return hashlib.shake_128(number.to_bytes(8, "little")).digest(CHUNK)


@contextlib.contextmanager
def memory(content=b""):
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)


def stored(directory, *contents, known=()):
    directory.mkdir(parents=True, exist_ok=True)
    with packs.Writer(directory, known) as writer:
        for number, content in enumerate(contents):
            with memory(content) as fd:
                assert writer.add(fd, len(content)) == number
        return writer.finish()


def restored(index, number=0, directory=None):
    with memory() as fd:
        packs.restore(index.images[number], directory or index.directory, fd)
        return os.pread(fd, os.fstat(fd).st_size, 0)


def refused(function, *arguments):
    with pytest.raises(StoreError) as caught:
        function(*arguments)
    return caught.value


def files(directory):
    return sorted(path.name for path in directory.iterdir())


PIECES = st.lists(
    st.tuples(st.integers(0, 12 * CHUNK), st.integers(1, 3 * CHUNK), st.sampled_from((0, 1, 2, "noise"))),
    max_size=6,
)


@given(size=st.integers(0, 12 * CHUNK), pieces=PIECES, short=st.integers(0, CHUNK))
def test_any_image_comes_back_as_it_was(size, pieces, short):
    with tempfile.TemporaryDirectory() as place, memory() as fd:
        os.ftruncate(fd, max(0, size - short))
        for at, length, kind in pieces:
            data = noise(at)[:length] if kind == "noise" else bytes([kind]) * length
            os.pwrite(fd, data, at)
        content = os.pread(fd, size, 0).ljust(size, b"\0")
        with packs.Writer(Path(place)) as writer:
            writer.add(fd, size)
            index = writer.finish()
        assert restored(packs.load(Path(place), index.digest)) == content
        assert packs.verify(Path(place), index) == ()


def test_zero_chunks_are_not_stored_and_equal_ones_once(tmp_path):
    first = chunk(1) + ZERO + chunk(2) + chunk(1) + ZERO
    index = stored(tmp_path, first, chunk(2) + chunk(3), ZERO)
    assert [pack.chunks for pack in index.packs] == [3]
    assert [restored(index, number) for number in range(3)] == [first, chunk(2) + chunk(3), ZERO]
    assert [image.data for image in index.images] == [3 * CHUNK, 2 * CHUNK, 0]


def test_what_is_all_zero_needs_no_pack(tmp_path):
    index = stored(tmp_path, bytes(5 * CHUNK + 1), b"")
    assert files(tmp_path) == ["index"]
    assert restored(index) == bytes(5 * CHUNK + 1)
    assert restored(index, 1) == b""


def test_an_image_of_several_frames_is_stored_in_its_order_whatever_thread_is_quickest(tmp_path):
    content = b"".join((chunk if number % 5 else noise)(number + 1) for number in range(3 * FRAME_CHUNKS + 7))
    one, other = stored(tmp_path / "one", content), stored(tmp_path / "other", content)
    assert restored(one) == content
    first, second = (index.directory / index.packs[0].file for index in (one, other))
    assert first.name != second.name
    assert first.read_bytes() == second.read_bytes()
    assert len(one.images[0].at) == 4  # a run for each frame


def test_the_last_chunk_is_filled_up_with_zeros(tmp_path):
    tail = b"tail" * 25
    content = tail.ljust(CHUNK, b"\0") + many(1, 20 * FRAME_CHUNKS - 1) + tail  # memory was used before
    index = stored(tmp_path, content)
    assert [pack.chunks for pack in index.packs] == [20 * FRAME_CHUNKS]
    assert restored(index) == content


def test_what_cannot_be_compressed_takes_no_more_than_itself(tmp_path):
    content = b"".join(map(noise, range(3)))
    index = stored(tmp_path, content)
    assert index.packs[0].size == len(MAGIC) + len(content) + index.packs[0].table_size
    assert restored(index) == content


def test_a_restored_file_has_the_holes_of_the_image(tmp_path):
    content = chunk(1) + bytes(4 << 20) + chunk(2)
    index = stored(tmp_path, content)
    with memory() as fd:
        packs.restore(index.images[0], tmp_path, fd)
        assert os.fstat(fd).st_blocks * 512 == 2 * CHUNK


def test_a_file_that_is_not_empty_is_not_restored_to(tmp_path):
    index = stored(tmp_path, chunk(1))
    with memory(b"x") as fd, pytest.raises(ValueError, match="not empty"):
        packs.restore(index.images[0], tmp_path, fd)


def test_files_are_for_their_owner_only(tmp_path):
    stored(tmp_path, chunk(1))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


# Damage.


def small(directory):
    """A snapshot of two images and few bytes, and their contents."""
    contents = (chunk(1) + ZERO + chunk(2), chunk(3)[:100])
    return stored(directory, *contents), contents


@contextlib.contextmanager
def flipped(path, at, mask):
    """A byte of a file in its place: a file that is written anew would be sent to the disk each time."""
    with path.open("r+b", buffering=0) as file:
        good = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([good[0] ^ mask]), at)
        yield
        os.pwrite(file.fileno(), good, at)


def outcome(function, *arguments):
    """What it returns, or the error's code."""
    try:
        return function(*arguments)
    except StoreError as error:
        return error.code


def test_a_flip_of_any_byte_is_found_and_never_restored(tmp_path):
    index, contents = small(tmp_path)
    for path in tmp_path.iterdir():
        for at in range(path.stat().st_size):
            with flipped(path, at, 1 << at % 8):
                faults = packs.verify(tmp_path, index)
                assert [fault.file for fault in faults] == [path.name], at
                assert faults[0].offset <= at
                if path.name == "index":
                    assert outcome(packs.load, tmp_path, index.digest) == "store.corrupt"
                    continue
                for number, content in enumerate(contents):  # a few bits of zstd's mean nothing
                    assert outcome(restored, index, number) in {"store.corrupt", content}
    assert packs.verify(tmp_path, index) == ()


def test_a_flip_in_a_frame_that_is_not_compressed_is_refused(tmp_path):
    index = stored(tmp_path, noise(1) + noise(2))
    path = tmp_path / index.packs[0].file
    for at in range(len(MAGIC), len(MAGIC) + 2 * CHUNK, 1999):
        with flipped(path, at, 0x10):
            assert refused(restored, index).code == "store.corrupt"
            assert [fault.offset for fault in packs.verify(tmp_path, index)] == [len(MAGIC)]


def test_a_file_that_is_too_short_or_too_long_or_gone_is_found_and_refused(tmp_path):
    index, _ = small(tmp_path)
    path = tmp_path / index.packs[0].file
    size = path.stat().st_size
    for length in (size + 1, *reversed(range(size))):
        os.truncate(path, length)
        assert [fault.file for fault in packs.verify(tmp_path, index)] == [path.name]
        assert refused(restored, index).code == "store.corrupt"
    path.unlink()
    assert [(fault.file, fault.what) for fault in packs.verify(tmp_path, index)] == [
        (path.name, "it is missing")
    ]
    error = refused(restored, index)
    assert (error.code, "missing" in error.message, bool(error.hint)) == ("store.corrupt", True, True)


def test_all_damaged_files_are_named(tmp_path):
    old = stored(tmp_path / "old", *(b"".join(map(noise, range(70))),))
    index = stored(tmp_path / "new", b"".join(map(noise, range(75))), known=[old])
    linked, new = (
        tmp_path / "new" / pack.file for pack in sorted(index.packs, key=lambda pack: -pack.chunks)
    )
    with linked.open("r+b") as file:
        for at in (100, FRAME + 100):
            file.seek(at)
            file.write(b"damage")
    new.unlink()
    (tmp_path / "new" / "index").unlink()
    faults = packs.verify(tmp_path / "new", index)
    assert {(fault.file, fault.offset) for fault in faults} == {
        ("index", 0),
        (new.name, 0),
        (linked.name, len(MAGIC)),
        (linked.name, len(MAGIC) + FRAME),
    }


def test_a_file_that_cannot_be_read_is_told_from_one_that_is_damaged(tmp_path):
    index, _ = small(tmp_path)
    (tmp_path / index.packs[0].file).unlink()
    (tmp_path / index.packs[0].file).mkdir()  # opens, but has no size and cannot be read
    assert refused(restored, index).code in {"store.corrupt", "store.io"}
    (tmp_path / "index").unlink()
    (tmp_path / "index").mkdir()
    assert refused(packs.load, tmp_path, index.digest).code == "store.io"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A small one, and its index file as it was."""
    directory = tmp_path_factory.mktemp("snapshot")
    small(directory)
    return directory, (directory / "index").read_bytes()


WORDS = st.sampled_from((b"\0", b"\1", b"\x7f", b"\xff", b"\xff" * 4, b"\0" * 4, b"\xff" * 8))


@examples(2)
@given(data=st.data())
def test_an_index_that_says_anything_is_refused_or_stays_in_its_bounds(snapshot, data):
    directory, good = snapshot
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        word = data.draw(WORDS)
        changed[at : at + len(word)] = word
    changed = bytes(changed[: data.draw(st.sampled_from((None, None, None, at)))])
    changed += data.draw(st.sampled_from((b"", b"", b"\0")))
    (directory / "index").write_bytes(changed)
    index = outcome(packs.load, directory, hashlib.sha256(changed).hexdigest())
    if index == "store.corrupt":
        return
    packs.verify(directory, index)
    for number, image in enumerate(index.images):
        if image.size < 1 << 24:
            with contextlib.suppress(StoreError):
                restored(index, number)


PACK = Pack("00" * 8, 70, 8 + 36 * 2 + 32 * 70 + 1000, bytes(32))


def image(size=200 * CHUNK, *, at=(), first=(), pack=(), count=()):
    return Image(size, (PACK,), array("I", at), array("I", first), array("H", pack), array("H", count))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (image(at=[0], first=[0], pack=[0], count=[0]), "frame"),
        (image(at=[0], first=[0], pack=[0], count=[65]), "frame"),
        (image(at=[0], first=[60], pack=[0], count=[5]), "frame"),
        (image(at=[0], first=[64], pack=[0], count=[7]), "no pack"),
        (image(at=[0], first=[1 << 31], pack=[0], count=[1]), "no pack"),
        (image(at=[0], first=[0], pack=[1], count=[1]), "no pack"),
        (image(at=[5, 5], first=[0, 1], pack=[0, 0], count=[1, 1]), "overlaps"),
        (image(at=[5, 6], first=[0, 1], pack=[0, 0], count=[2, 1]), "overlaps"),
        (image(at=[200], first=[0], pack=[0], count=[1]), "leaves its image"),
        (image(CHUNK + 1, at=[1], first=[0], pack=[0], count=[2]), "leaves its image"),
        (image((CHUNK << 32) + 1), "bytes"),
    ],
)
def test_an_index_with_a_wrong_run_is_refused(wrong, what):
    with pytest.raises(ValueError, match=what):
        decode(encode((PACK,), (wrong,)))


@pytest.mark.parametrize(
    "pack",
    [
        Pack("00" * 8, 0, 100, bytes(32)),
        Pack("00" * 8, 70, 100, bytes(32)),
        Pack("00" * 8, 1, 8 + 36 + 32 + CHUNK + 1, bytes(32)),
        Pack("00" * 8, (1 << 32) - 1, 1000, bytes(32)),
    ],
)
def test_an_index_with_an_impossible_pack_is_refused(pack):
    with pytest.raises(ValueError, match="cannot have"):
        decode(encode((pack,), ()))


def test_an_index_that_names_a_pack_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        decode(encode((PACK, PACK), ()))


def forged(directory, frames, lengths=None):
    """A pack whose digests are right, whatever is in it: one chunk in the last frame, all of zeros."""
    chunks = (len(frames) - 1) * FRAME_CHUNKS + 1
    zero = hashlib.sha256(ZERO).digest() * chunks
    digests = b"".join(hashlib.sha256(frame).digest() for frame in frames)
    table = encode_table(array("I", lengths or map(len, frames)), digests, zero)
    data = MAGIC + b"".join(frames) + table
    pack = Pack("ab" * 8, chunks, len(data), hashlib.sha256(table).digest())
    (directory / pack.file).write_bytes(data)
    return Image(CHUNK, (pack,), array("I", [0]), array("I", [0]), array("H", [0]), array("H", [1]))


def restore_forged(image, directory):
    with memory() as fd:
        packs.restore(image, directory, fd)
        return os.pread(fd, 2 * CHUNK, 0)


def test_what_a_frame_claims_of_its_size_is_not_heeded(tmp_path):
    small = zstandard.ZstdCompressionParameters(window_log=17)
    bomb = zstandard.ZstdCompressor(compression_params=small).compress(bytes(64 << 20))
    assert restore_forged(forged(tmp_path, [bomb]), tmp_path) == ZERO  # no more than a chunk was decompressed
    claims = bytearray(zstandard.ZstdCompressor().compress(ZERO))
    header = zstandard.frame_header_size(claims)
    claims[4:header] = b"\xe0" + (1 << 60).to_bytes(8, "little")  # a single segment of 2^60 bytes
    refused(restore_forged, forged(tmp_path, [bytes(claims)]), tmp_path)
    block = (CHUNK << 3 | 3).to_bytes(3, "little") + b"\0"  # the last: one byte, repeated (RFC 8878, 3.1.1.2)
    narrow, wide = (b"\x28\xb5\x2f\xfd\0" + window + block for window in (b"\x50", b"\x70"))  # 1 and 16 MiB
    assert restore_forged(forged(tmp_path, [narrow]), tmp_path) == ZERO
    assert "cannot be decompressed" in refused(restore_forged, forged(tmp_path, [wide]), tmp_path).message
    half = zstandard.ZstdCompressor().compress(bytes(CHUNK // 2))
    assert "cannot be decompressed" in refused(restore_forged, forged(tmp_path, [half]), tmp_path).message


@pytest.mark.parametrize("length", [0, 19, 21, CHUNK + 1, (1 << 32) - 1])
def test_a_table_whose_frames_do_not_fill_the_file_is_refused(tmp_path, length):
    image = forged(tmp_path, [bytes(20)], [length])
    assert "do not fill it" in refused(restore_forged, image, tmp_path).message


def test_a_table_with_a_frame_that_is_too_short_or_too_long_is_refused(tmp_path):
    for lengths in ([0, 40], [40, 0], [10, CHUNK + 1], [FRAME + 1, 20]):
        frames = [bytes(length) for length in lengths]
        image = forged(tmp_path, frames)
        assert "do not fill it" in refused(restore_forged, image, tmp_path).message


# Earlier snapshots.


def many(first, count):
    return b"".join(map(chunk, range(first, first + count)))


def test_what_an_earlier_snapshot_has_is_linked_and_outlives_it(tmp_path):
    old = stored(tmp_path / "old", many(1, 100))
    new = stored(tmp_path / "new", many(1, 90) + many(200, 5), known=[old])
    assert [pack.chunks for pack in new.packs] == [5, 100]
    file = old.packs[0].file
    assert (tmp_path / "old" / file).samefile(tmp_path / "new" / file)
    shutil.rmtree(tmp_path / "old")
    new = packs.load(tmp_path / "new", new.digest)
    assert restored(new) == many(1, 90) + many(200, 5)
    assert packs.verify(tmp_path / "new", new) == ()


def test_a_third_snapshot_uses_packs_of_both(tmp_path):
    first = stored(tmp_path / "1", many(1, 10))
    second = stored(tmp_path / "2", many(1, 10) + many(20, 10), known=[first])
    third = stored(tmp_path / "3", many(1, 30), known=[second, first])
    assert {pack.name for pack in second.packs} < {pack.name for pack in third.packs}
    assert [pack.chunks for pack in third.packs if pack not in second.packs] == [10]
    assert restored(third) == many(1, 30)


def test_a_pack_of_which_nothing_is_used_is_not_linked(tmp_path):
    old = stored(tmp_path / "old", many(1, 10))
    new = stored(tmp_path / "new", many(20, 10), known=[old])
    assert len(new.packs) == 1
    assert files(tmp_path / "new") == sorted(["index", new.packs[0].file])


def test_a_pack_of_which_little_is_used_is_left_behind(tmp_path):
    content = many(1, 80)
    old = stored(tmp_path / "old", content)
    kept = stored(tmp_path / "kept", content[: 10 * CHUNK], known=[old])
    assert kept.packs == old.packs
    few = content[70 * CHUNK : 77 * CHUNK] + many(300, 2) + content[: 2 * CHUNK]
    left = stored(tmp_path / "left", content[:CHUNK] + few, content[5 * CHUNK : 6 * CHUNK], known=[old])
    assert left.packs == old.packs or [pack.chunks for pack in left.packs] == [2, 80]
    fewer = stored(tmp_path / "fewer", many(300, 2) + content[64 * CHUNK : 70 * CHUNK], known=[old])
    assert [pack.chunks for pack in fewer.packs] == [8]
    assert restored(fewer) == many(300, 2) + content[64 * CHUNK : 70 * CHUNK]
    assert packs.verify(tmp_path / "fewer", fewer) == ()
    assert old.packs[0].file not in files(tmp_path / "fewer")


def test_what_was_removed_is_stored_anew(tmp_path):
    old = stored(tmp_path / "old", many(1, 10))
    shutil.rmtree(tmp_path / "old")
    new = stored(tmp_path / "new", many(1, 10), known=[old])
    assert new.packs[0].name != old.packs[0].name
    assert restored(new) == many(1, 10)


def test_what_is_removed_while_it_is_used_stays(tmp_path):
    old = stored(tmp_path / "old", many(1, 10))
    (tmp_path / "new").mkdir()
    with packs.Writer(tmp_path / "new", [old]) as writer, memory(many(1, 10)) as fd:
        shutil.rmtree(tmp_path / "old")
        writer.add(fd, 10 * CHUNK)
        new = writer.finish()
    assert new.packs == old.packs
    assert restored(new) == many(1, 10)


@pytest.fixture
def elsewhere(tmp_path):
    """A directory of another file system."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


@pytest.mark.parametrize("removed", [False, True])
def test_a_pack_of_another_file_system_is_copied(tmp_path, elsewhere, removed):
    old = stored(elsewhere / "old", many(1, 10), known=())
    unused = stored(elsewhere / "unused", many(50, 10))
    (tmp_path / "new").mkdir()
    with packs.Writer(tmp_path / "new", [unused, old]) as writer, memory(many(1, 10)) as fd:
        if removed:
            shutil.rmtree(elsewhere / "old")
        writer.add(fd, 10 * CHUNK)
        new = writer.finish()
    assert new.packs == old.packs
    assert files(tmp_path / "new") == sorted(["index", old.packs[0].file])
    assert packs.verify(tmp_path / "new", new) == ()
    assert restored(new) == many(1, 10)


def test_nothing_rests_on_an_earlier_snapshot_that_is_damaged(tmp_path):
    content = many(1, 130)
    old = stored(tmp_path / "old", content)
    with (tmp_path / "old" / old.packs[0].file).open("r+b") as file:
        file.seek(len(MAGIC) + 10)
        file.write(b"damage")
    new = stored(tmp_path / "new", content, known=[old])
    assert [pack.chunks for pack in new.packs] == [64, 130]  # those of the damaged frame once more
    assert restored(new) == content
    with (tmp_path / "old" / old.packs[0].file).open("r+b") as file:
        file.truncate(1000)
    assert [pack.chunks for pack in stored(tmp_path / "newer", content, known=[old]).packs] == [130]


# Failures.


def test_a_full_disk_is_one_error_and_leaves_the_disk_to_the_caller(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        content = b"".join(map(noise, range(200)))
        for length in (8, 15, 16, 200):  # of chunks: the pack, its table, the index
            directory = place / str(length)
            directory.mkdir()
            with contextlib.suppress(StoreError):
                stored(directory, content[: 3 * CHUNK])
            assert refused(stored, directory, content[: (length + 8) * CHUNK]).code == "store.full"
            shutil.rmtree(directory)
        good = stored(tmp_path / "good", content)
        with (place / "target").open("w+b") as file:
            assert refused(packs.restore, good.images[0], good.directory, file.fileno()).code == "store.full"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_an_unwritable_place_is_refused(tmp_path):
    with memory(chunk(1)) as fd, packs.Writer(tmp_path / "nowhere") as writer:
        writer.add(fd, CHUNK)
        assert refused(writer.finish).code == "store.io"


def test_an_image_without_a_size_that_can_be_is_an_error_of_the_caller(tmp_path):
    with memory() as fd, packs.Writer(tmp_path) as writer:
        for size in (-1, (CHUNK << 32) + 1):
            with pytest.raises(ValueError, match="bytes"):
                writer.add(fd, size)


def test_nothing_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    old = stored(tmp_path / "old", many(1, 10))
    new = stored(tmp_path / "new", many(1, 10) + noise(1), known=[old])
    restored(new)
    packs.verify(tmp_path / "new", new)
    (tmp_path / "broken").mkdir()
    with packs.Writer(tmp_path / "broken", [old, new]):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


# Parts.


def test_runs_of_data_are_joined_where_they_share_a_chunk():
    with memory() as fd:
        os.ftruncate(fd, 100 * CHUNK)
        for page in (0, 3, 4, 9, 11, 40, 399):  # four pages make a chunk
            os.pwrite(fd, b"x", page * 4096)
        assert list(data_runs(fd, 100 * CHUNK)) == [(0, 3), (10, 1), (99, 1)]
        assert list(data_runs(fd, 10 * CHUNK + 5)) == [(0, 3), (10, 1)]
        assert list(data_runs(fd, 10 * CHUNK)) == [(0, 3)]
        assert list(data_runs(fd, 0)) == []


def test_places_are_found_by_their_digests_however_many_there_are():
    digests = [bytearray(), b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(3000))]
    places = Places(digests)
    places.put_all(1, 3000)
    for number in range(3000):
        digest = hashlib.sha256(b"new %d" % number).digest()
        assert places.find(digest) is None
        digests[0] += digest
        places.put(digest, place(0, number))
    for number in range(3000):
        assert places.find(hashlib.sha256(b"%d" % number).digest()) == place(1, number)
        assert places.find(hashlib.sha256(b"new %d" % number).digest()) == number
    again = hashlib.sha256(b"7").digest()
    digests[0] += again
    places.put(again, place(0, 3000))
    assert places.find(again) == 3000
