import io
from pathlib import Path

import packages
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image import deb

FILES = {"./boot/vmlinuz-6.1": b"kernel", "./boot/config": b"no", "./usr/lib/modules/6.1/a.ko": b"module"}


def everything(_name):
    return True


@pytest.mark.parametrize("suffix", ["xz", "gz", "bz2"])
def test_wanted_files_are_written_and_others_are_not(tmp_path, suffix):
    path = tmp_path / "p.deb"
    path.write_bytes(packages.deb(FILES, suffix=suffix))
    count = deb.unpack(path, tmp_path / "out", wanted=lambda name: "config" not in name)
    assert count == 2
    assert (tmp_path / "out/boot/vmlinuz-6.1").read_bytes() == b"kernel"
    assert not (tmp_path / "out/boot/config").exists()


def test_control_fields_are_read(tmp_path):
    path = tmp_path / "p.deb"
    path.write_bytes(packages.deb({}, fields="Package: linux\nVersion: 6.1-2\nDescription: a\n b\n"))
    assert deb.control(path) == {"Package": "linux", "Version": "6.1-2", "Description": "a\nb"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_package_cannot_write_outside(tmp_path, name):
    path = tmp_path / "p.deb"
    path.write_bytes(packages.deb({name: b"x"}))
    with pytest.raises(ImageError, match="evil") as caught:
        deb.unpack(path, tmp_path / "out", wanted=everything)
    assert caught.value.code == "image.package"
    assert not (tmp_path / "evil").exists()


def test_a_link_cannot_lead_a_later_file_outside(tmp_path):
    path = tmp_path / "p.deb"
    path.write_bytes(packages.deb({"lib": None, "lib/evil": b"x"}))
    deb.unpack(path, tmp_path / "out", wanted=everything)
    assert not (tmp_path / "out/lib").is_symlink()
    assert (tmp_path / "out/lib/evil").read_bytes() == b"x"


def test_every_truncation_of_a_package_is_named(tmp_path):
    whole = packages.deb({"a": bytes(range(256))})
    path = tmp_path / "p.deb"
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError) as caught:
            deb.unpack(path, tmp_path / f"out{size}", wanted=everything)
        assert caught.value.code == "image.package"


def test_a_package_without_content_is_named(tmp_path):
    path = tmp_path / "p.deb"
    path.write_bytes(packages.ar({"debian-binary": b"2.0\n"}))
    with pytest.raises(ImageError, match="no data"):
        deb.unpack(path, tmp_path / "out", wanted=everything)
    with pytest.raises(ImageError, match="cannot read"):
        deb.control(tmp_path / "nowhere.deb")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_danger_as_a_package(data):
    for prefix in (b"", b"!<arch>\n"):
        try:
            list(deb.members(io.BytesIO(prefix + data), Path("x.deb")))
        except ImageError as error:
            assert error.code == "image.package"  # noqa: PT017 - either outcome is right


@given(st.text())
def test_any_text_is_no_danger_as_stanzas(text):
    deb.parse_stanzas(text)
