import gzip
import struct

import kernels
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image import vmlinux


@pytest.mark.parametrize("kind", sorted(kernels.PACKERS))
def test_the_kernel_comes_out_of_a_bzimage_of_every_compression(kind):
    elf = kernels.elf()
    image = kernels.bzimage(kernels.PACKERS[kind](elf))
    assert vmlinux.extract(image, "x86_64") == elf


def test_zstd_is_unpacked_where_the_host_can():
    zstandard = pytest.importorskip("zstandard")
    elf = kernels.elf()
    packed = kernels.with_size(zstandard.compress)(elf)
    assert vmlinux.extract(kernels.bzimage(packed), "x86_64") == elf


def test_a_kernel_larger_than_one_lz4_block_comes_out_whole():
    elf = kernels.elf(body=kernels.BANNER + bytes(9 << 20))
    assert vmlinux.extract(kernels.bzimage(kernels.PACKERS["lz4"](elf)), "x86_64") == elf


def test_an_elf_kernel_is_taken_as_it_is():
    assert vmlinux.extract(kernels.elf(), "x86_64") == kernels.elf()


def test_setup_sectors_of_zero_mean_four():
    image = bytearray(kernels.bzimage(kernels.PACKERS["gzip"](kernels.elf()), setup_sectors=4))
    image[0x1F1] = 0
    assert vmlinux.extract(bytes(image), "x86_64") == kernels.elf()


@pytest.mark.parametrize("kind", sorted(kernels.PACKERS))
def test_a_truncated_kernel_is_named_before_any_boot(kind):
    image = kernels.bzimage(kernels.PACKERS[kind](kernels.elf()))
    for size in (0, 1, 0x200, 0x24F, 0x260, len(image) // 2, len(image) - 100, len(image) - 1):
        with pytest.raises(ImageError) as caught:
            vmlinux.extract(image[:size], "x86_64", name="vmlinuz")
        assert caught.value.code == "image.kernel"
        assert "vmlinuz" in caught.value.message
        assert caught.value.hint


def test_every_truncation_of_an_elf_kernel_is_named():
    elf = kernels.elf(body=kernels.BANNER)
    for size in range(len(elf)):
        with pytest.raises(ImageError):
            vmlinux.extract(elf[:size], "x86_64")


def test_a_kernel_that_unpacks_to_another_size_is_refused():
    packed = kernels.PACKERS["xz"](kernels.elf())[:-4] + struct.pack("<I", 7)
    with pytest.raises(ImageError, match="instead of 7"):
        vmlinux.extract(kernels.bzimage(packed), "x86_64")


def test_a_kernel_without_pvh_entry_says_so():
    with pytest.raises(ImageError, match="PVH") as caught:
        vmlinux.extract(kernels.elf(pvh=False), "x86_64")
    assert "CONFIG_PVH" in caught.value.hint


def test_a_kernel_of_another_architecture_is_refused():
    with pytest.raises(ImageError, match="another architecture"):
        vmlinux.extract(kernels.elf(machine=183), "x86_64")
    with pytest.raises(ImageError, match="no arm64 Image"):
        vmlinux.extract(kernels.elf(), "aarch64")
    with pytest.raises(ImageError, match="riscv64"):
        vmlinux.extract(kernels.elf(), "riscv64")


def test_an_old_boot_protocol_is_refused():
    image = kernels.bzimage(kernels.PACKERS["gzip"](kernels.elf()), version=0x0204)
    with pytest.raises(ImageError, match=r"2\.04"):
        vmlinux.extract(image, "x86_64")


def test_an_arm64_image_passes_and_a_gzipped_one_is_unpacked():
    image = kernels.arm64_image()
    assert vmlinux.extract(image, "aarch64") == image
    assert vmlinux.extract(gzip.compress(image), "aarch64") == image


def test_an_efi_zboot_image_is_unpacked():
    payload = gzip.compress(kernels.arm64_image())
    header = b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload)) + bytes(8) + b"gzip".ljust(40, b"\0")
    assert len(header) == 64
    assert vmlinux.extract(header + payload, "aarch64") == kernels.arm64_image()
    with pytest.raises(ImageError, match="truncated"):
        vmlinux.extract((header + payload)[:-1], "aarch64")


def test_the_release_is_read_from_the_kernel():
    assert vmlinux.release_of(kernels.elf()) == "6.1.0-test-amd64"
    assert not vmlinux.release_of(b"nothing")


BZIMAGE = kernels.bzimage(kernels.PACKERS["gzip"](kernels.elf(body=kernels.BANNER)))


@given(st.binary(max_size=2000), st.sampled_from(["x86_64", "aarch64"]))
def test_arbitrary_bytes_give_a_named_error(data, architecture):
    for prefix in (b"", b"\x7fELF\x02\x01", b"MZ\0\0zimg", b"\x1f\x8b", b"\x02\x21\x4c\x18", b"\x5d\0\0"):
        with pytest.raises(ImageError):
            vmlinux.extract(prefix + data, architecture)


@given(st.integers(0, len(BZIMAGE) - 1), st.integers(0, 255))
def test_a_flipped_byte_gives_a_whole_kernel_or_a_named_error(at, value):
    data = BZIMAGE[:at] + bytes([value]) + BZIMAGE[at + 1 :]
    try:
        out = vmlinux.extract(data, "x86_64")
    except ImageError:
        return
    assert out.startswith(b"\x7fELF")
