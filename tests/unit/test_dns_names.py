"""The table of names, and the host's own files."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address

import dns.reversename
import pytest
from dns_peers import Peer, data, rcode
from hypothesis import assume, given
from hypothesis import strategies as st

from atoll.errors import UsageError
from atoll.network.dns.hostfiles import HostFiles
from atoll.network.dns.message import Rcode, Type
from atoll.network.dns.names import Entry, Names, address_of
from atoll.network.dns.upstreams import Resolvers, Upstream, parse_hosts, parse_resolvers

NETWORKS = (IPv4Network("10.0.2.0/24"), IPv6Network("fd00:a::/64"))


def ips(*addresses):
    return tuple(ip_address(address) for address in addresses)


def found(names, name, kind=Type.A):
    answer = names.lookup(name, kind)
    if answer is None:
        return None
    return [str(record) for record in answer.records] if answer.rcode == Rcode.NOERROR else answer.rcode


def test_an_alias_goes_with_the_last_of_its_owners():
    names = Names()
    names.add("one", "shop", ips("10.0.2.15"))
    names.add("two", "Shop", ips("10.0.2.16"))
    assert found(names, "shop.atoll.internal") == ["10.0.2.15", "10.0.2.16"]
    names.remove("one")
    assert found(names, "shop.atoll.internal") == ["10.0.2.16"]
    names.remove("two", "shop")
    assert found(names, "shop.atoll.internal") == Rcode.NXDOMAIN
    names.remove("two")
    assert list(names) == []


def test_a_name_that_is_given_again_leads_only_to_the_new_addresses():
    names = Names(networks=NETWORKS)
    names.add("one", "web", ips("10.0.2.15"))
    names.add("one", "web", ips("10.0.2.17"))
    assert list(names) == [Entry("web.atoll.internal", "one", ips("10.0.2.17"))]
    assert found(names, "15.2.0.10.in-addr.arpa", Type.PTR) == Rcode.NXDOMAIN


def test_the_first_name_of_an_address_is_what_it_is_called():
    names = Names(networks=NETWORKS)
    names.add("one", "web", ips("10.0.2.15", "fd00:a::15"))
    names.add("one", "shop", ips("10.0.2.15"))
    for address in ("10.0.2.15", "fd00:a::15"):
        reverse = dns.reversename.from_address(address).to_text(omit_final_dot=True)
        assert found(names, reverse, Type.PTR) == ["web.atoll.internal"]
        assert found(names, reverse, Type.A) == []
    names.remove("one", "web")
    assert found(names, "15.2.0.10.in-addr.arpa", Type.PTR) == ["shop.atoll.internal"]


def test_addresses_of_others_are_called_by_others():
    names = Names(networks=NETWORKS)
    assert found(names, "8.8.8.8.in-addr.arpa", Type.PTR) is None
    assert found(names, "2.0.10.in-addr.arpa", Type.PTR) is None
    names.add("host", "host", ips("192.168.1.1"))
    assert found(names, "1.1.168.192.in-addr.arpa", Type.PTR) == ["host.atoll.internal"]


def test_names_may_have_names_below_them():
    names = Names()
    names.add("one", "db.shop", ips("10.0.2.15"))
    assert found(names, "shop.atoll.internal") == []
    assert found(names, "db.shop.atoll.internal") == ["10.0.2.15"]
    assert found(names, "x.shop.atoll.internal") == Rcode.NXDOMAIN
    names.remove("one")
    assert found(names, "shop.atoll.internal") == Rcode.NXDOMAIN
    assert found(names, "atoll.internal") == []


def test_whole_names_belong_to_the_outside():
    names = Names()
    names.add("host", "host.docker.internal.", ips("10.0.2.2"))
    assert found(names, "host.docker.internal") == ["10.0.2.2"]
    assert found(names, "host.docker.internal", Type.AAAA) == []
    assert found(names, "docker.internal") is None
    assert found(names, "web.example") is None


@pytest.mark.parametrize(
    "name", ["", "a b", "-x", "x" * 64, "a..b", "*", "*.web", "wéb", ".".join(["abcdefg"] * 32)]
)
def test_what_cannot_be_a_name_is_refused(name):
    with pytest.raises(UsageError) as error:
        Names().add("one", name, ips("10.0.2.15"))
    assert error.value.code == "usage.dns_name"


def test_the_table_is_bounded():
    names = Names()
    for number in range(16_384):
        names.add(number % 7, f"n{number}", ())
    with pytest.raises(UsageError):
        names.add("one", "more", ())
    names.add("one", "n5", ips("10.0.2.15"))


changes = st.tuples(
    st.sampled_from(["add", "remove", "all"]),
    st.sampled_from("abc"),
    st.sampled_from(["x", "y", "x.y", "z.x.y"]),
    st.lists(st.sampled_from(ips("10.0.2.1", "10.0.2.2", "fd00:a::1")), max_size=2),
)  # fmt: skip


@given(st.lists(changes, max_size=20))
def test_the_table_is_what_its_owners_made_it(steps):
    names, expected = Names(networks=NETWORKS), {}
    for what, owner, name, addresses in steps:
        version = names.version
        match what:
            case "add":
                names.add(owner, name, addresses)
                expected[owner, name] = addresses
                assert names.version != version
            case "remove":
                names.remove(owner, name)
                expected.pop((owner, name), None)
            case "all":
                names.remove(owner)
                expected = {key: value for key, value in expected.items() if key[0] != owner}
    assert {(e.owner, e.name): list(e.addresses) for e in names} == {
        (owner, f"{name}.atoll.internal"): value for (owner, name), value in expected.items()
    }
    present = {name for _, name in expected}
    for name in ("x", "y", "x.y", "z.x.y"):
        there = any(each == name or each.endswith("." + name) for each in present)
        assert (names.lookup(f"{name}.atoll.internal", Type.A).rcode == Rcode.NOERROR) == there
    for address in ips("10.0.2.1", "10.0.2.2", "fd00:a::1"):
        reverse = dns.reversename.from_address(str(address)).to_text(omit_final_dot=True)
        called = any(address in addresses for addresses in expected.values())
        assert (names.lookup(reverse, Type.PTR).rcode == Rcode.NOERROR) == called


@given(st.ip_addresses())
def test_reverse_names_are_those_of_the_standard(address):
    assume(getattr(address, "ipv4_mapped", None) is None)  # dnspython asks for the embedded one
    assert address_of(dns.reversename.from_address(str(address)).to_text(omit_final_dot=True)) == address


@pytest.mark.parametrize(
    "name",
    [
        "1.2.3.in-addr.arpa",
        "x.2.3.4.in-addr.arpa",
        "1.2.3.256.in-addr.arpa",
        "01.2.3.4.in-addr.arpa",
        "g." * 32 + "ip6.arpa",
        "arpa",
    ],
)
def test_other_names_are_no_addresses(name):
    assert address_of(name) is None


@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=3))
def test_any_name_below_ours_is_denied_in_a_way_that_can_be_read(parts):
    name = dns.name.Name([*parts, b"atoll", b"internal", b""])
    reply = Peer().ask(name)
    expected = "NOERROR" if [part.lower() for part in parts] == [b"web"] else "NXDOMAIN"
    assert rcode(reply) == expected


def test_long_names_of_machines_can_be_answered():
    peer = Peer()
    label = "a" * 63
    long = f"{label}.{label}.{label}.{'b' * 46}"
    peer.names.add("one", long, ips("10.0.2.20"))
    assert data(peer.ask(f"{long}.atoll.internal")) == ["10.0.2.20"]
    assert data(peer.ask("20.2.0.10.in-addr.arpa", "PTR")) == [f"{long}.atoll.internal."]
    outside = f"{label}.{label}.{label}.{'c' * 61}"
    peer.names.add("one", outside + ".", ips("10.0.2.21"))
    assert rcode(peer.ask(outside, "MX")) == "NOERROR"


RESOLVERS = """
# a comment
; another
nameserver 192.0.2.1   # the first
nameserver fe80::1%eth0
nameserver not-an-address
nameserver
nameserver 192.0.2.1
domain one.example
search corp.example Home.Example. bad..name
options edns0 trust-ad
"""


def test_the_host_s_resolvers_are_read_as_it_reads_them():
    assert parse_resolvers(RESOLVERS) == Resolvers(
        (Upstream("192.0.2.1", 53), Upstream("fe80::1%eth0", 53)), ("corp.example", "home.example")
    )
    assert parse_resolvers("search x.example\n").upstreams == (Upstream("127.0.0.1"),)
    assert len(parse_resolvers("".join(f"nameserver 192.0.2.{n}\n" for n in range(99))).upstreams) == 8


def test_the_host_s_names_are_read_without_those_that_mean_only_itself():
    hosts = parse_hosts(
        "127.0.0.1 localhost\n127.0.1.1 thishost\n::1 ip6-localhost\nff02::1 ip6-allnodes\nfe80::1 link\n"
        "192.0.2.7 NAS nas.home # shelf\n192.0.2.8 nas\n2001:db8::7 nas\nnonsense nas\n192.0.2.9 bad..name\n"
    )
    assert hosts.names == {"nas": ips("192.0.2.7", "192.0.2.8", "2001:db8::7"), "nas.home": ips("192.0.2.7")}
    assert hosts.addresses[ip_address("192.0.2.7")] == "nas"


@given(st.text(max_size=300))
def test_no_file_of_the_host_raises(text):
    assert parse_resolvers(text).upstreams
    assert "" not in parse_hosts(text).names


def test_changes_of_the_host_s_files_are_noticed(tmp_path):
    resolvers, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    files = HostFiles(resolvers, hosts)
    assert files.resolvers.upstreams == (Upstream("127.0.0.1"),)
    resolvers.write_text("nameserver 192.0.2.1\n")
    assert files.refresh()
    assert not files.refresh()
    assert files.resolvers.upstreams == (Upstream("192.0.2.1"),)
    following = tmp_path / "next"
    following.write_text("nameserver 192.0.2.2\n")
    os.utime(following, ns=(1, resolvers.stat().st_mtime_ns))
    following.rename(resolvers)
    assert files.refresh()
    assert files.resolvers.upstreams == (Upstream("192.0.2.2"),)
    resolvers.unlink()
    assert not files.refresh()
    assert files.resolvers.upstreams == (Upstream("192.0.2.2"),), "it stays as it was while it is replaced"
    hosts.write_bytes(b"192.0.2.7 nas \xff\xfe\n")
    assert files.refresh()
    assert files.hosts.names == {"nas": ips("192.0.2.7")}
    resolvers.write_text("nameserver 192.0.2.2\n# nothing new\n")
    assert not files.refresh()
