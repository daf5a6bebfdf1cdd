"""What users write about ports, and what of it a machine can have."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import hosted_machine, hosted_spec
from msgspec.structs import replace

from atoll.config import load
from atoll.errors import UsageError
from atoll.hypervisor.model import Forward, UserNetwork
from atoll.machine.editing import edited, shown
from atoll.machine.ports import (
    MOST,
    check,
    ported,
    with_ports,
    without_ports,
)
from atoll.vm.autoports import parse_auto_ports, show_auto_ports, show_ranges
from atoll.vm.bootplan import AutoPorts, BootPlan
from atoll.vm.network.attachment import Attachment, Reverse
from atoll.vm.portwords import parse_forwards, parse_reverse, show_forward, show_reverse

SPEC = hosted_spec(network=True)

ports = st.integers(1, 65535)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda one: not one.scope_id)).map(
    str
)
paths = st.from_regex(r"(/[a-z0-9.: ,'-]{1,20}){1,4}", fullmatch=True).map(lambda text: str(Path(text)))
forwards = st.one_of(
    st.builds(Forward, st.integers(0, 65535), ports, st.sampled_from(["tcp", "udp"]), addresses),
    st.builds(
        lambda path, port: Forward(0, port, path=path), paths.filter(lambda path: ".." not in path), ports
    ),
)


def refused(call, *arguments):
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", [Forward(8080, 80)]),
        ("8080", [Forward(8080, 8080)]),
        ("0:80", [Forward(0, 80)]),
        ("8080:80/tcp", [Forward(8080, 80)]),
        ("53:53/udp", [Forward(53, 53, "udp")]),
        ("0.0.0.0:1:65535", [Forward(1, 65535, "tcp", "0.0.0.0")]),
        ("[::1]:8080:80", [Forward(8080, 80, "tcp", "::1")]),
        ("[0::1]:8080", [Forward(8080, 8080, "tcp", "::1")]),
        ("8000-8001:9000-9001/udp", [Forward(8000, 9000, "udp"), Forward(8001, 9001, "udp")]),
        ("8000-8001", [Forward(8000, 8000), Forward(8001, 8001)]),
        ("unix:/run/a:b.sock:80", [Forward(0, 80, path="/run/a:b.sock")]),
    ],
)
def test_forwards(text, wanted):
    assert parse_forwards(text) == tuple(wanted)


@pytest.mark.parametrize(
    "text",
    ["", "80:", ":80", "0", "80:0", "65536:80", "80:80/sctp", "1.2.3:80:80", "256.0.0.1:80:80", "a:80",
     "80:80,hostfwd=tcp::1-:2", "80:80 ", "80:80\n", "\u0668\u0660:80", "-1:80", "::1:80:80", "[::1:80:80",
     "[1.2.3.4]:80:80", "[fe80::1%eth0]:80:80", "8000-8002:9000-9001", "8000-8002:9000", "8002-8000", "0-5",
     "0-5:10-15", "unix:/a", "unix:/a:", "unix::80", "unix:/a:1-2", "unix:/a:80/udp", "unix:/a:0",
     f"unix:/{'a' * 108}:80", "unix:/a\0b:80"],
)  # fmt: skip
def test_other_forwards_are_refused(text):
    assert refused(parse_forwards, text) == "usage.port"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5432", Reverse(5432, 5432)),
        ("80:8080", Reverse(80, 8080)),
        ("80:unix:/run/a:b", Reverse(80, path="/run/a:b")),
    ],
)
def test_ways_back(text, wanted):
    assert parse_reverse(text) == wanted
    assert parse_reverse(show_reverse(wanted)) == wanted


@pytest.mark.parametrize(
    "text", ["", "0", "53", "53:5353", "80:0", "80:65536", "80:unix:", "80:x", "80:90:1", "1-2"]
)
def test_other_ways_back_are_refused(text):
    assert refused(parse_reverse, text) == "usage.port"


@given(forwards)
def test_what_is_shown_is_what_is_read(forward):
    assert parse_forwards(show_forward(forward)) == (forward,)


@given(st.text(alphabet="0123456789:-./[]unixtcpd \0", max_size=30))
def test_no_text_breaks_a_parser(text):
    for parse in (parse_forwards, parse_reverse, parse_auto_ports):
        with contextlib.suppress(UsageError):
            parse(text)


def test_a_place_of_the_host_leads_to_one_port():
    spec = with_ports(SPEC, parse_forwards("8080:80"), ())
    assert refused(with_ports, spec, parse_forwards("8080:81"), ()) == "usage.port"
    assert refused(with_ports, SPEC, parse_forwards("0:80") * 2, ()) == "usage.port"
    others = ("[::1]:8080:80", "8080:80/udp", "0:80", "0:81", "unix:/a:80")
    more = with_ports(spec, (one for text in others for one in parse_forwards(text)), ())
    assert len(more.forwards) == 6
    assert refused(with_ports, SPEC, (), [Reverse(80, 1), Reverse(80, 2)]) == "usage.port"


def test_there_are_only_so_many():
    spec = with_ports(SPEC, parse_forwards(f"2000-{1999 + MOST}"), ())
    assert refused(with_ports, spec, parse_forwards("1999"), ()) == "usage.port"


def test_ports_need_a_network_that_has_such():
    assert refused(check, replace(SPEC, network=False, forwards=(Forward(80, 80),))) == "usage.port"
    slirp = replace(SPEC, slirp=True)
    check(replace(slirp, forwards=(Forward(80, 80), Forward(53, 53, "udp"))))
    for text in ("0:80", "unix:/a:80", "[::1]:80:80"):
        assert refused(with_ports, slirp, parse_forwards(text), ()) == "usage.port"
    assert refused(with_ports, slirp, (), [Reverse(80, 80)]) == "usage.port"


def test_ports_go_by_what_names_them():
    names = ("8080:80", "[::1]:8080:80", "8080:80/udp", "0:81", "0:82", "unix:/a:80")
    spec = with_ports(SPEC, (one for text in names for one in parse_forwards(text)), [Reverse(5, 6)])

    def without(*texts, reverse=()):
        gone = [one for text in texts for one in parse_forwards(text, partly=True)]
        return [show_forward(one) for one in without_ports(spec, gone, map(parse_reverse, reverse)).forwards]

    assert without("8080", "unix:/a", "0:81") == ["[::1]:8080:80", "8080:80/udp", "0:82"]
    assert without("8080:80/udp", "[::1]:8080") == ["8080:80", "0:81", "0:82", "unix:/a:80"]
    assert without_ports(spec, (), [Reverse(5, 5)]).reverse == ()
    for text in ("8081", "8080:81", "0:83", "unix:/b", "127.0.0.2:8080"):
        assert refused(without, text) == "usage.port"
    assert refused(lambda: without(reverse=["6"])) == "usage.port"


def test_what_runs_has_the_ports_of_the_record_of_now():
    spec = replace(
        SPEC, forwards=parse_forwards("1:2") + parse_forwards("unix:/a:3"), reverse=(Reverse(4, 5),)
    )
    spec = replace(spec, auto_ports=AutoPorts())
    own = BootPlan(machine=hosted_machine(), host=None, attachment=Attachment(network=Path("/n"), owner="x"))
    plan = ported(own, spec)
    assert (plan.attachment.forwards, plan.attachment.reverse) == (spec.forwards, spec.reverse)
    assert (plan.attachment.owner, plan.auto_ports) == ("x", AutoPorts())
    slirp = replace(hosted_machine(), network=UserNetwork("02:00:00:00:00:01"))
    plan = ported(BootPlan(machine=slirp, host=None), spec)
    assert plan.machine.network.forwards == (Forward(1, 2),)
    assert ported(BootPlan(machine=hosted_machine(), host=None), spec).attachment is None


def test_which_ports_follow_a_guest():
    rule = parse_auto_ports(True)
    assert [port for port in (22, 53, 80, 1023, 1024, 65535) if rule.permits(port)] == [1024, 65535]
    rule = parse_auto_ports("80, 3000-3010", "3005-3006")
    assert [port for port in (22, 80, 3000, 3004, 3005, 3006, 3010, 3011) if rule.permits(port)] == [
        80, 3000, 3004, 3010,
    ]  # fmt: skip
    assert parse_auto_ports("no") is parse_auto_ports(False) is None
    for text in ("x", "0", "5-4", "1,,2", "70000", ","):
        assert refused(parse_auto_ports, text) == "usage.port"
        assert refused(parse_auto_ports, True, text) == "usage.port"


@given(st.lists(st.tuples(ports, ports).map(sorted).map(tuple), min_size=1, max_size=5))
def test_ranges_that_are_shown_are_those_that_are_read(ranges):
    rule = AutoPorts(tuple(ranges))
    assert parse_auto_ports(show_auto_ports(rule), show_ranges(ranges)) == AutoPorts(
        rule.allow, tuple(ranges)
    )


def test_edits_are_shown_as_they_are_written():
    config = load({}, environment={}, files=()).config
    changes = {
        "ports": "8080:80,'[::1]:0:81/udp','unix:/a b,c:80'",
        "reverse": "80:8080,81:unix:/x",
        "auto_ports": "3000-4000",
        "auto_ports_deny": "3500",
    }
    spec = edited(config, SPEC, changes)
    assert {name: shown(spec, name) for name in changes} == changes
    assert edited(config, spec, {"auto_ports_deny": ""}).auto_ports == AutoPorts(((3000, 4000),))
    assert edited(config, spec, {"auto_ports": "no"}).auto_ports is None
    assert edited(config, SPEC, {"auto_ports_deny": "5000"}).auto_ports == AutoPorts(deny=((5000, 5000),))
    assert refused(edited, config, spec, {"network": "slirp"}) == "usage.port"
    assert ipaddress.ip_address(spec.forwards[1].address).version == 6
