"""Compressed streams, whatever they unpack to."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image.decompressing import decompressed

FORMS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
}


class Slices:
    """A stream that gives what it likes at once."""

    def __init__(self, data, most):
        self._file = io.BytesIO(data)
        self._most = most

    def read(self, size):
        return self._file.read(min(size, self._most))


def content(data, most=1 << 20, size=1 << 16):
    stream = decompressed(Slices(data, most))
    parts = []
    while part := stream.read(size):
        assert len(part) <= size
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=3000), most=st.integers(1, 4000), size=st.integers(1, 4000))
def test_what_was_compressed_comes_out(form, data, most, size):
    if form == "plain" and len(data) < 8:
        data += b"        "
    assert content(FORMS[form](data), most, size) == data


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2", "zstd"])
def test_members_follow_one_another(form):
    one, two = FORMS[form](b"one" * 1000), FORMS[form](b"two")
    assert content(one + two) == b"one" * 1000 + b"two"
    if form != "zstd":
        assert content(one + bytes(700), 100) == b"one" * 1000
        with pytest.raises(ImageError):
            content(one + b"no member")


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2"])
def test_one_that_ends_early_is_refused(form):
    data = FORMS[form](bytes(range(256)) * 100)
    for end in (len(data) - 1, len(data) // 2):
        with pytest.raises(ImageError) as caught:
            content(data[:end])
        assert caught.value.code == "image.archive"


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2", "zstd"])
@given(at=st.integers(8, 60), value=st.integers(0, 255))
def test_damage_is_one_error(form, at, value):
    data = bytearray(FORMS[form](bytes(range(256))))
    data[at] = value
    try:
        content(bytes(data))
    except ImageError as error:
        assert error.code == "image.archive"  # noqa: PT017 - either is right, nothing else is


def test_a_form_that_is_not_read_is_named():
    with pytest.raises(ImageError, match="lz4"):
        content(b"\x02\x21\x4c\x18" + bytes(10))


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2", "zstd"])
def test_what_unpacks_to_much_comes_in_pieces(form):
    stream = decompressed(io.BytesIO(FORMS[form](bytes(20 << 20))))
    assert len(stream.read(1 << 16)) <= 1 << 16
