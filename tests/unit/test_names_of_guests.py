"""How a guest knows its own name, and what of a sandbox is somebody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import UsageError
from atoll.sandbox.volumes import parse
from atoll.vm.bootplan import Share
from atoll.vm.hostfiles import hosts_with

LOCAL = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""


@pytest.mark.parametrize(
    ("before", "address", "after"),
    [
        ("", "127.0.1.1", f"{LOCAL}127.0.1.1 box\n"),
        ("", "10.1.2.3", f"{LOCAL}10.1.2.3 box # atoll\n"),
        ("127.0.0.1\tlocalhost", "127.0.1.1", "127.0.0.1\tlocalhost\n127.0.1.1 box\n"),
        # A copy's line would lead to its original.
        (f"{LOCAL}127.0.1.1 old\n", "127.0.1.1", f"{LOCAL}127.0.1.1 box\n"),
        (f"{LOCAL}10.9.9.9 old # atoll\n", "10.1.2.3", f"{LOCAL}10.1.2.3 box # atoll\n"),
        # What somebody wrote stays.
        (f"{LOCAL}127.0.1.1 box.example box\n", "127.0.1.1", f"{LOCAL}127.0.1.1 box.example box\n"),
        (f"# own\n{LOCAL}", "127.0.1.1", f"# own\n{LOCAL}127.0.1.1 box\n"),
        ("#127.0.0.1 localhost\n", "127.0.1.1", f"{LOCAL}#127.0.0.1 localhost\n127.0.1.1 box\n"),
    ],
)
def test_hosts_knows_localhost_and_the_guest(before, address, after):
    assert hosts_with(before, "box", address) == after


@given(st.text(alphabet="ab.:1 #\n\t", max_size=80), st.sampled_from(["127.0.1.1", "10.0.0.2"]))
def test_a_hosts_that_was_written_is_not_changed_again(text, address):
    once = hosts_with(text, "box", address)
    assert hosts_with(once, "box", address) == once


def test_volumes_are_of_the_host_or_of_the_guest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    wanted = parse(["./sub:/b/c/", f"{tmp_path}:/b:ro", "/data"])
    assert wanted.shares == (Share(str(tmp_path), "/b", True), Share(f"{tmp_path}/sub", "/b/c"))
    assert wanted.directories == ("/data",)
    assert parse([".:/here:rw"]).shares == (Share(str(tmp_path), "/here"),)


@pytest.mark.parametrize(
    "text",
    [
        "name:/data",
        "data",
        "/a:b",
        "/:/",
        "/a:/x/../y",
        "/tmp:/a:wo",
        "/tmp:/a:ro:z",
        ":/a",
        "/no/such:/a",
        "/",
    ],
)
def test_what_is_no_volume_is_refused_with_advice(text):
    with pytest.raises(UsageError) as caught:
        parse([text])
    assert caught.value.code == "usage.mount"
    assert caught.value.hint


def test_one_place_has_one_volume():
    with pytest.raises(UsageError):
        parse(["/tmp:/a", "/usr:/a/"])
