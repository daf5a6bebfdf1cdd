"""The gateway as router and neighbour, asked and read by scapy."""

from __future__ import annotations

import itertools
from ipaddress import IPv6Address, IPv6Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    in6_getnsma,
)

from atoll.network.router import ALL_NODES, ALL_ROUTERS, Neighbour, Router, Settings, link_local, solicited

MAC = b"\x52\x54\x00\x00\x00\xfe"
GUEST = b"\x52\x54\x00\x00\x00\x01"
OTHER = b"\x52\x54\x00\x00\x00\x02"
ANY = bytes(16)
SETTINGS = Settings(
    mac=MAC,
    network=IPv6Network("fd00:a::/64"),
    addresses=(IPv6Address("fd00:a::2"), IPv6Address("fd00:a::3")),
    mtu=65_520,
    dns=(IPv6Address("fd00:a::3"),),
    search=("atoll.internal",),
)


def packed(text):
    return IPv6Address(text).packed


GUEST_LOCAL = link_local(GUEST)


def router(**changes):
    fields = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__}
    return Router(Settings(**fields | changes), 0.0, Random(1))


def receive(
    gateway, packet, source=GUEST_LOCAL, destination=ALL_ROUTERS, hops=255, mac=GUEST, link="a", now=0.0
):
    return gateway.receive(bytes(packet), source, destination, hops, mac, link, now)


def source_mac(mac=GUEST):
    return ICMPv6NDOptSrcLLAddr(lladdr=mac.hex(":"))


def target_mac(mac=GUEST):
    return ICMPv6NDOptDstLLAddr(lladdr=mac.hex(":"))


def test_a_machine_that_asks_for_routers_is_told_everything_at_once():
    sent = receive(router(), ICMPv6ND_RS() / source_mac())
    assert (sent.source, sent.destination) == (link_local(MAC), GUEST_LOCAL)
    assert (sent.mac, sent.link) == (GUEST, "a")
    told = ICMPv6ND_RA(sent.message)
    assert (told.chlim, told.M, told.O, told.routerlifetime) == (64, 1, 1, 1800)
    prefix = told[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00:a::", 64, 1, 0)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (86_400, 86_400)
    assert told[ICMPv6NDOptMTU].mtu == 65_520
    assert told[ICMPv6NDOptSrcLLAddr].lladdr == "52:54:00:00:00:fe"
    assert (told[ICMPv6NDOptRDNSS].dns, told[ICMPv6NDOptRDNSS].lifetime) == (["fd00:a::3"], 1800)
    assert told[ICMPv6NDOptDNSSL].searchlist == ["atoll.internal."]


def test_settings_show_in_what_is_told():
    changed = router(router=False, managed=False, other=False, autonomous=True, mtu=0, dns=(), search=())
    told = ICMPv6ND_RA(receive(changed, ICMPv6ND_RS()).message)
    assert (told.M, told.O, told.routerlifetime, told[ICMPv6NDOptPrefixInfo].A) == (0, 0, 0, 1)
    assert not any(option in told for option in (ICMPv6NDOptMTU, ICMPv6NDOptRDNSS, ICMPv6NDOptDNSSL))


def test_a_machine_without_an_address_is_answered_as_part_of_all():
    sent = receive(router(), ICMPv6ND_RS(), source=ANY)
    assert (sent.destination, sent.mac) == (ALL_NODES, GUEST)
    assert receive(router(), ICMPv6ND_RS() / source_mac(), source=ANY) is None


def test_all_are_told_from_time_to_time():
    gateway = router()
    first = gateway.tick(0)
    assert (first.destination, first.mac, first.link) == (ALL_NODES, bytes.fromhex("333300000001"), None)
    times = []
    for _ in range(50):
        assert gateway.tick(gateway.next - 0.1) is None
        times.append(gateway.next)
        assert gateway.tick(gateway.next) is not None
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert min(pauses) >= 200
    assert max(pauses) <= 600
    assert len(set(pauses)) > 40


@pytest.mark.parametrize("address", ["fd00:a::2", "fd00:a::3", str(IPv6Address(link_local(MAC)))])
def test_the_gateway_answers_for_its_addresses(address):
    target = packed(address)
    sent = receive(router(), ICMPv6ND_NS(tgt=address) / source_mac(), destination=solicited(target))
    told = ICMPv6ND_NA(sent.message)
    assert (told.R, told.S, told.O, told.tgt) == (1, 1, 1, address)
    assert told[ICMPv6NDOptDstLLAddr].lladdr == "52:54:00:00:00:fe"
    assert (sent.source, sent.destination, sent.mac) == (target, GUEST_LOCAL, GUEST)


def test_groups_are_those_of_the_standard():
    for text in ("fd00:a::2", "fe80::1234:5678"):
        assert solicited(packed(text)) == in6_getnsma(packed(text))


def test_a_machine_that_wants_an_address_of_the_gateway_hears_that_it_is_taken():
    target = packed("fd00:a::2")
    sent = receive(router(), ICMPv6ND_NS(tgt="fd00:a::2"), source=ANY, destination=solicited(target))
    told = ICMPv6ND_NA(sent.message)
    assert (told.S, told.O, sent.destination) == (0, 1, ALL_NODES)
    wrong = ICMPv6ND_NS(tgt="fd00:a::2") / source_mac()
    assert receive(router(), wrong, source=ANY, destination=solicited(target)) is None
    assert receive(router(), ICMPv6ND_NS(tgt="fd00:a::2"), source=ANY, destination=target) is None


def test_the_gateway_does_not_answer_for_others():
    assert receive(router(), ICMPv6ND_NS(tgt="fd00:a::15") / source_mac()) is None


def test_neighbours_are_learned_from_what_they_say():
    gateway = router()
    receive(gateway, ICMPv6ND_NS(tgt="fd00:a::2") / source_mac(), source=packed("fd00:a::15"))
    assert gateway.neighbour(packed("fd00:a::15")) == Neighbour(GUEST, "a")
    receive(gateway, ICMPv6ND_NA(tgt="fd00:a::16", S=1) / target_mac(), destination=packed("fd00:a::2"))
    assert gateway.neighbour(packed("fd00:a::16")) == Neighbour(GUEST, "a")
    receive(gateway, ICMPv6ND_RS() / source_mac())
    assert gateway.neighbour(GUEST_LOCAL) == Neighbour(GUEST, "a")
    gateway.forget("a")
    assert gateway.neighbour(GUEST_LOCAL) is None


@pytest.mark.parametrize(
    ("packet", "more"),
    [
        (ICMPv6ND_NA(tgt="fd00:a::16") / target_mac(), {"hops": 254}),
        (ICMPv6ND_NA(tgt="fd00:a::16", code=1) / target_mac(), {}),
        (ICMPv6ND_NA(tgt="fd00:a::16") / target_mac(OTHER), {}),
        (ICMPv6ND_NA(tgt="fd00:a::16", S=1) / target_mac(), {"destination": ALL_NODES}),
        (ICMPv6ND_NA(tgt="fd00:a::16") / ICMPv6NDOptDstLLAddr(len=0), {}),
        (bytes(ICMPv6ND_NA(tgt="fd00:a::16") / target_mac())[:-1], {}),
        (bytes(ICMPv6ND_NA(tgt="fd00:a::16"))[:23], {}),
    ],
)
def test_nothing_is_learned_from_what_the_standard_says_to_drop(packet, more):
    gateway = router()
    receive(gateway, packet, **{"destination": packed("fd00:a::2")} | more)
    assert gateway.neighbour(packed("fd00:a::16")) is None


@pytest.mark.parametrize(
    ("packet", "mac"),
    [
        (ICMPv6ND_NS(tgt="fd00:a::2") / source_mac(OTHER), GUEST),
        (ICMPv6ND_NS(tgt="ff02::1") / source_mac(), GUEST),
        (ICMPv6ND_NS(tgt="fd00:a::2") / source_mac(b"\x53" + GUEST[1:]), b"\x53" + GUEST[1:]),
        (ICMPv6ND_RS() / source_mac(OTHER), GUEST),
    ],
)
def test_nothing_is_learned_from_questions_that_lie(packet, mac):
    gateway = router()
    receive(gateway, packet, source=packed("fd00:a::16"), mac=mac)
    assert gateway.neighbour(packed("fd00:a::16")) is None


def test_who_was_heard_last_is_remembered_longest():
    gateway = router()
    for number in range(1000):
        gateway.learn(packed("fd00:a::15"), GUEST, "a", 0)
        gateway.learn(packed(f"fd00:a::{number + 0x100:x}"), GUEST, "a", 1)
        assert gateway.neighbour(packed("fd00:a::15")) == Neighbour(GUEST, "a")


@pytest.mark.parametrize("address", ["fd00:a::2", "ff02::1", "2001:db8::1", "::", "::1"])
def test_addresses_that_no_machine_can_have_are_not_learned(address):
    gateway = router()
    receive(gateway, ICMPv6ND_NA(tgt=address) / target_mac(), destination=packed("fd00:a::2"))
    assert gateway.neighbour(packed(address)) is None


def test_a_machine_cannot_take_an_address_that_another_uses():
    gateway = router()
    address = packed("fd00:a::15")
    assert gateway.learn(address, GUEST, "a", 0)
    assert not gateway.learn(address, OTHER, "b", 29)
    assert gateway.learn(address, OTHER, "b", 31), "it was silent for long"
    gateway.pin(address, GUEST, "a")
    assert not gateway.learn(address, OTHER, "b", 10_000)
    assert gateway.neighbour(address) == Neighbour(GUEST, "a")
    gateway.forget("a")
    assert gateway.learn(address, OTHER, "b", 10_000)


def test_one_link_makes_the_gateway_remember_little_and_forgets_only_its_own():
    gateway = router()
    gateway.learn(packed("fd00:a::15"), OTHER, "b", 0)
    for number in range(1000):
        gateway.learn(packed(f"fd00:a::{number + 0x100:x}"), GUEST, "a", 1)
    known = [number for number in range(1000) if gateway.neighbour(packed(f"fd00:a::{number + 0x100:x}"))]
    assert known == list(range(936, 1000))
    assert gateway.neighbour(packed("fd00:a::15")) == Neighbour(OTHER, "b")


def test_the_gateway_asks_for_an_address_it_does_not_know_but_not_too_often():
    gateway = router()
    address = packed("fd00:a::15")
    sent = gateway.ask(address, 5)
    asked = ICMPv6ND_NS(sent.message)
    assert (asked.tgt, asked[ICMPv6NDOptSrcLLAddr].lladdr) == ("fd00:a::15", "52:54:00:00:00:fe")
    assert (sent.source, sent.destination, sent.link) == (link_local(MAC), in6_getnsma(address), None)
    assert sent.mac == bytes.fromhex("3333ff000015")
    assert gateway.ask(address, 5.5) is None
    assert gateway.ask(address, 6) is not None
    assert gateway.ask(packed("2001:db8::1"), 6) is None


addresses = st.sampled_from([ANY, ALL_NODES, GUEST_LOCAL, packed("fd00:a::15"), packed("fd00:a::2")])


@given(st.sampled_from([133, 134, 135, 136, 137, 0]), st.binary(max_size=80), addresses, addresses)
def test_nothing_a_guest_sends_raises_and_every_answer_is_whole(kind, rest, source, destination):
    gateway = router()
    data = bytes((kind, 0)) + rest
    sent = gateway.receive(memoryview(data), source, destination, 255, GUEST, "a", 0.0)
    if sent is not None:
        assert sent.source != ANY
        assert sent.destination != ANY
        kinds = {134: ICMPv6ND_RA, 136: ICMPv6ND_NA}
        assert bytes(kinds[sent.message[0]](sent.message)) == sent.message
