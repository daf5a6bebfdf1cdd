"""What users say of a machine, read strictly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import UsageError
from atoll.machine.spec import (
    Init,
    Share,
    check_name,
    check_user,
    mac_of,
    parse_probe,
    parse_share,
    reference_of,
)
from atoll.vm.bootplan import Probe


def refused(parse, text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("name", ["a", "7", "dev", "web-1", "a" * 63, "a--b"])
def test_names_are_those_that_a_host_may_have(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "ä", "a/b", "..", ".", "a\n", "a b", "\u0661"]
)
def test_other_names_are_refused(name):
    assert refused(check_name, name) == "usage.name"


@given(st.text(max_size=70))
def test_whatever_is_taken_as_a_name_is_safe_as_a_directory_and_a_hostname(name):
    try:
        check_name(name)
    except UsageError:
        return
    assert re.fullmatch(r"[a-z0-9-]{1,63}", name, re.ASCII)


def test_users_are_those_of_linux_and_root_is_nobody_in_particular():
    assert check_user("") == check_user("root") == ""
    assert check_user("_apt") == "_apt"
    for name in ("Root", "a b", "1a", "a" * 33, "a$(id)", "a'b", "x\n"):
        assert refused(check_user, name) == "usage.user"


def test_a_mac_address_is_the_machines_own_for_ever():
    assert mac_of("0" * 32) == mac_of("0" * 32) != mac_of("1" * 32)
    assert mac_of("0" * 32) == "02:58:a9:63:78:42"


@given(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32))
def test_a_mac_address_is_local_and_of_one_host(identifier):
    first, *_ = parts = [int(part, 16) for part in mac_of(identifier).split(":")]
    assert len(parts) == 6
    assert first & 3 == 2


def test_a_distribution_with_systemd_is_its_flavour_for_machines():
    assert reference_of("debian", Init.SYSTEMD) == "debian-machine"
    assert reference_of("debian:bookworm", Init.SYSTEMD) == "debian-machine:bookworm"
    assert reference_of("debian:bookworm", Init.MINIMAL) == "debian:bookworm"


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("/srv:/data", Share("/srv", "/data")),
        ("/srv:/data:ro", Share("/srv", "/data", read_only=True)),
        ("/srv:/data:rw", Share("/srv", "/data")),
        (".:/work//here/./now/", Share(".", "/work/here/now")),
        ("~/a b:/with space", Share("~/a b", "/with space")),
    ],
)
def test_shares(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize(
    "text",
    ["", "/srv", ":/data", "/srv:", "/srv:/", "/srv://", "/srv:/.", "/srv:data", "/srv:/a/../..",
     "/srv:/d:no", "/srv:/d:ro:", "a:b:c:d"],
)  # fmt: skip
def test_other_shares_are_refused(text):
    assert refused(parse_share, text) == "usage.mount"


@given(st.text(max_size=30))
def test_no_text_breaks_a_parser(text):
    for parse in (parse_share, parse_probe, check_user):
        try:
            parse(text)
        except UsageError as error:
            assert error.hint  # noqa: PT017 - it may be refused, and then so


def test_a_probe_is_a_port_or_a_command():
    assert parse_probe("22") == Probe(port=22)
    assert parse_probe("test -e /x") == Probe(command=("/bin/sh", "-c", "test -e /x"))
    assert parse_probe("\u00b2") == Probe(command=("/bin/sh", "-c", "\u00b2"))
    for text in ("", "  ", "0", "65536"):
        assert refused(parse_probe, text) == "usage.probe"
