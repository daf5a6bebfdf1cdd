"""Which addresses a new network gets."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import NetworkError, UsageError
from atoll.vm.network import planning
from atoll.vm.network.catalog import Wish, plan
from atoll.vm.network.planning import AUTOMATIC, Taken

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000000\t010200C0\t0003\t0\t0\t0\t00000080\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000C80A\t00000000\t0001\t0\t0\t0\t00FEFFFF\t0\t0\t0
dead\t0000640A\t00000000\t0000\t0\t0\t0\t0000FFFF\t0\t0\t0
lo\t0000007F\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
"""

TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.201.0.7
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
"""

ROUTES_6 = """\
fd000000000000000000000000000000 40 {0} 00 {0} 00000100 00000001 00000000 00000001     eth0
fe800000000000000000000000000000 40 {0} 00 {0} 00000100 00000002 00000000 00000001     eth0
00000000000000000000000000000000 00 {0} 00 {0} 00000400 00000003 00000000 00000003     eth0
00000000000000000000000000000001 80 {0} 00 {0} 00000000 00000004 00000000 80200001       lo
ff000000000000000000000000000000 08 {0} 00 {0} 00000100 00000003 00000000 00000001     eth0
""".format("0" * 32)


def networks(found):
    return [str(one.network) for one in found]


def test_the_hosts_routes_and_addresses_are_taken_but_for_default_routes_also_in_halves():
    assert networks(planning.parse_routes(ROUTES)) == ["192.0.2.0/24", "10.200.0.0/23"]
    assert networks(planning.parse_addresses(TRIE)) == ["10.201.0.7/32"]
    assert networks(planning.parse_routes_6(ROUTES_6)) == ["fd00::/64"]
    assert not [*planning.parse_routes(""), *planning.parse_addresses(""), *planning.parse_routes_6("")]


def test_a_network_gets_the_first_addresses_that_are_free():
    assert plan(Wish(), ()).ipv4 == "10.200.0.0/24"
    taken = (*planning.parse_routes(ROUTES), *planning.parse_addresses(TRIE))
    assert plan(Wish(), taken).ipv4 == "10.202.0.0/24"
    everything = (Taken(IPv4Network("10.0.0.0/8"), "a VPN's"),)
    assert plan(Wish(), everything).ipv4 == "192.168.200.0/24"
    with pytest.raises(NetworkError) as caught:
        plan(Wish(), (*everything, Taken(IPv4Network("192.168.0.0/16"), "mine")))
    assert caught.value.code == "network.subnet"


@given(st.sets(st.sampled_from(AUTOMATIC), max_size=len(AUTOMATIC) - 1))
def test_what_is_chosen_is_nobodys(taken):
    chosen = planning.choose([Taken(network, "") for network in taken])
    assert chosen not in taken
    assert chosen == next(network for network in AUTOMATIC if network not in taken)


def test_what_is_asked_for_is_what_there_is():
    network = plan(
        Wish(subnet="172.30.0.0/20", subnet_6="fd12::/64", isolated=True, internal=True, mtu=1500), ()
    )
    assert (network.ipv4, network.ipv6) == ("172.30.0.0/20", "fd12::/64")
    assert (network.shared, network.outside, network.mtu) == (False, False, 1500)
    assert network.addressing.ipv6 == IPv6Network("fd12::/64")


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        (Wish(subnet="10.20.0.1/24"), "usage.subnet"),
        (Wish(subnet="10.20.0.0/28"), "usage.subnet"),
        (Wish(subnet="10.0.0.0/7"), "usage.subnet"),
        (Wish(subnet="127.1.0.0/16"), "usage.subnet"),
        (Wish(subnet="224.0.0.0/24"), "usage.subnet"),
        (Wish(subnet="169.254.1.0/24"), "usage.subnet"),
        (Wish(subnet="ten"), "usage.subnet"),
        (Wish(subnet_6="fd00::/48"), "usage.subnet"),
        (Wish(subnet_6="fe80::/64"), "usage.subnet"),
        (Wish(subnet_6="::/64"), "usage.subnet"),
        (Wish(subnet_6="fd00::1/64"), "usage.subnet"),
        (Wish(mtu=1279), "usage.mtu"),
        (Wish(mtu=65521), "usage.mtu"),
    ],
)
def test_what_makes_no_network_is_refused(wish, code):
    with pytest.raises(UsageError) as caught:
        plan(wish, ())
    assert caught.value.code == code
    assert caught.value.hint


@pytest.mark.parametrize("wish", [Wish(subnet="10.200.1.0/24"), Wish(subnet_6="fd00::/64")])
def test_addresses_that_are_in_use_are_refused_with_whose_they_are(wish):
    taken = (*planning.parse_routes(ROUTES), *planning.parse_routes_6(ROUTES_6))
    with pytest.raises(NetworkError, match=r"overlaps with .*: this host has a route to it, by (tun|eth)0"):
        plan(wish, taken)
