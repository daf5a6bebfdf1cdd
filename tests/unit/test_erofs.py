import os
import shutil
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError, PreflightError
from atoll.image import erofs

HAS_MKFS = shutil.which("mkfs.erofs") is not None
needs_mkfs = pytest.mark.skipif(not HAS_MKFS, reason="erofs-utils is not installed")


def superblock(*, blocks=2, bits=12, magic=0xE0F5E1E2):
    head = bytearray(4096)
    struct.pack_into("<IIIBBHQQ", head, 1024, magic, 0, 0, bits, 0, 36, 5, 1000)
    struct.pack_into("<I", head, 1024 + 36, blocks)
    head[1024 + 48 : 1024 + 64] = uuid.UUID(int=7).bytes
    return bytes(head)


def test_a_superblock_says_what_the_image_is():
    found = erofs.parse(superblock(), 8192, name="x")
    assert found == erofs.Superblock(4096, 2, 5, 1000, uuid.UUID(int=7))


@pytest.mark.parametrize(
    ("head", "size", "why"),
    [
        (superblock(blocks=3), 8192, "truncated: it has 8192 of 12288 bytes"),
        (superblock()[:1100], 1100, "truncated"),
        (b"", 0, "truncated"),
        (superblock(magic=1), 8192, "no EROFS"),
        (superblock(bits=60), 8192, "damaged"),
    ],
)
def test_a_damaged_image_is_named_before_any_boot(head, size, why):
    with pytest.raises(ImageError, match=why) as caught:
        erofs.parse(head, size, name="the root")
    assert caught.value.code == "image.corrupt"
    assert "the root" in caught.value.message


@given(st.binary(max_size=5000), st.integers(0, 1 << 40))
def test_arbitrary_bytes_are_no_danger(data, size):
    for head in (data, superblock()[:1028] + data, bytes(1024) + data):
        try:
            erofs.parse(head, size, name="x")
        except ImageError as error:
            assert error.code == "image.corrupt"  # noqa: PT017 - either outcome is right


def test_the_checksum_is_crc32c_without_final_inversion():
    assert erofs._crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32/ISCSI


def grow(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name * 1000)
        os.utime(root / name, (1, len(name)))


@needs_mkfs
def test_the_same_tree_gives_the_same_bytes_whenever_and_in_whatever_order_it_was_made(tmp_path):
    names = [f"d{i % 7}/file{i}" for i in range(60)]
    grow(tmp_path / "a", names)
    grow(tmp_path / "b", reversed(names))
    for name in "ab":
        erofs.make(tmp_path / name, tmp_path / f"{name}.erofs", epoch=1000, identity=uuid.UUID(int=1))
    assert (tmp_path / "a.erofs").read_bytes() == (tmp_path / "b.erofs").read_bytes()
    found = erofs.check_file(tmp_path / "a.erofs")
    assert (found.built, found.identity) == (1000, uuid.UUID(int=1))


@needs_mkfs
def test_a_flipped_bit_in_a_real_superblock_fails_its_checksum(tmp_path):
    grow(tmp_path / "a", ["x"])
    image = tmp_path / "a.erofs"
    erofs.make(tmp_path / "a", image, epoch=0, identity=uuid.UUID(int=1))
    data = bytearray(image.read_bytes())
    data[1024 + 20] ^= 1
    image.write_bytes(data)
    with pytest.raises(ImageError, match="checksum"):
        erofs.check_file(image)
    erofs.check_file(image, checksum=False)


@needs_mkfs
def test_a_failing_tool_gives_its_words(tmp_path):
    with pytest.raises(ImageError) as caught:
        erofs.make(tmp_path / "nowhere", tmp_path / "x", epoch=0, identity=uuid.UUID(int=1))
    assert caught.value.code == "image.build"
    assert "No such file" in caught.value.detail


def test_a_missing_tool_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("atoll.process.find", lambda _program: None)
    with pytest.raises(PreflightError) as caught:
        erofs.make(tmp_path, tmp_path / "x", epoch=0, identity=uuid.UUID(int=1))
    assert caught.value.hint == "apt install erofs-utils"
