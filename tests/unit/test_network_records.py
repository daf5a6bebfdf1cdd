"""Who has which address on a network of VMs."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll import store
from atoll.errors import StoreError
from atoll.network.wire.ethernet import parse_mac
from atoll.vm.network.attachment import DEFAULT, SANDBOXES
from atoll.vm.network.records import Network, Numbers, autoconfigured, new_network


def test_networks_have_prefixes_of_their_own_and_only_machines_see_one_another():
    machines, sandboxes = new_network(DEFAULT), new_network(SANDBOXES)
    assert (machines.ipv4, machines.shared) == ("10.0.2.0/24", True)
    assert (sandboxes.ipv4, sandboxes.shared) == ("10.1.0.0/16", False)
    prefixes = {machines.addressing.ipv6, sandboxes.addressing.ipv6, new_network(DEFAULT).addressing.ipv6}
    assert len(prefixes) == 3
    assert all(prefix.subnet_of(IPv6Network("fd00::/8")) for prefix in prefixes)


@pytest.mark.parametrize(
    "wrong",
    [{"ipv4": "10.0.2.1/24"}, {"ipv4": "10.0.0.0/30"}, {"ipv6": "fd00::/48"}, {"ipv6": "x"}, {"mtu": 500}],
)
def test_a_record_that_makes_no_network_is_an_error(wrong, tmp_path):
    good = new_network(DEFAULT)
    store.write_record(tmp_path / "network.json", good)
    assert store.read_record(tmp_path / "network.json", Network) == good
    with pytest.raises(StoreError) as caught:
        _ = Network(**{"ipv4": good.ipv4, "ipv6": good.ipv6, **wrong}).addressing
    assert caught.value.code == "store.corrupt"


def test_the_address_that_a_guest_makes_itself():
    # RFC 4291, appendix A, turns the bit that says that an address is the manufacturer's.
    found = autoconfigured(IPv6Network("fd00:a::/64"), parse_mac("02:76:4e:d9:72:e6"))
    assert found == IPv6Address("fd00:a::76:4eff:fed9:72e6")


def test_machines_keep_their_numbers_and_the_first_gets_the_lowest():
    numbers = Numbers(4, {"b": 1, "same": 1, "far": 9})
    assert numbers.take("a", keep=True) == (0, False)
    assert numbers.take("b", keep=True) == (1, True)
    numbers.release("a")
    assert numbers.take("c", keep=True) == (2, False)
    assert numbers.take("a", keep=True) == (0, True)
    assert list(numbers.kept) == ["b", "c", "a"]


def test_where_none_is_free_who_was_away_for_longest_loses_its_own():
    numbers = Numbers(3, {})
    for owner in "abc":
        numbers.take(owner, keep=True)
    assert numbers.take("d", keep=True) is None
    numbers.release("b")
    numbers.release("a")
    assert numbers.take("d", keep=True) == (0, False)
    assert numbers.kept == {"b": 1, "c": 2, "d": 0}
    assert numbers.take("b", keep=True) == (1, True)


def test_who_does_not_stay_gets_a_number_that_was_not_just_anothers():
    numbers = Numbers(3, {})
    assert numbers.take("a", keep=False) == (0, False)
    numbers.release("a")
    assert numbers.take("b", keep=False) == (1, False)
    assert numbers.take("c", keep=False, wanted=0) == (0, True)
    assert numbers.take("d", keep=False, wanted=0) == (2, False)
    assert numbers.take("e", keep=False, wanted=-3) is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(-1, 5))))
def test_no_two_that_are_there_have_the_same_number(steps):
    numbers, there = Numbers(4, {"a": 2}), {}
    for owner, keep, wanted in steps:
        if owner in there:
            numbers.release(owner)
            del there[owner]
        elif (taken := numbers.take(owner, keep=keep, wanted=wanted)) is not None:
            assert taken[0] not in there.values()
            assert 0 <= taken[0] < 4
            there[owner] = taken[0]
    assert len(set(numbers.kept.values())) == len(numbers.kept)
