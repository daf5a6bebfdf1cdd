"""The DHCPv6 server, asked and read by scapy."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import dhcp6
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSDomains,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIA_PD,
    DHCP6OptIA_TA,
    DHCP6OptIAAddress,
    DHCP6OptInfoRefreshTime,
    DHCP6OptOptReq,
    DHCP6OptPref,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
    DHCP6OptStatusCode,
)

from atoll.network.dhcpv6 import Server, Settings
from atoll.network.leases import Lease

GATEWAY = b"\x52\x54\x00\x00\x00\xfe"
KNOWN = b"\x52\x54\x00\x00\x00\x01"
OURS = DHCP6OptServerId(duid=DUID_LL(lladdr="52:54:00:00:00:fe"))
ME = DHCP6OptClientId(duid=DUID_LL(lladdr="02:00:00:00:00:01"))
NOT_ON_LINK, NO_ADDRESS, NO_BINDING, NO_PREFIX = 4, 2, 3, 6


def mac(number):
    return b"\x52\x54\x00\x00\x01" + bytes((number,))


def server(**changes):
    fields = {
        "network": IPv6Network("fd00:a::/64"),
        "mac": GATEWAY,
        "dns": (IPv6Address("fd00:a::3"),),
        "search": ("atoll.internal",),
        "seconds": 3600,
        "pool": (IPv6Address("fd00:a::1000"), IPv6Address("fd00:a::1003")),
    }
    return Server(Settings(**fields | changes), [Lease(KNOWN, ipv6=IPv6Address("fd00:a::15"))])


def association(*addresses, ident=7):
    return DHCP6OptIA_NA(iaid=ident, ianaopts=[DHCP6OptIAAddress(addr=address) for address in addresses])


def ask(dhcp, kind, *options, who=KNOWN, now=0.0, link="a"):
    packet = kind(trid=0x010203)
    for option in options:
        packet /= option
    reply = dhcp.reply(bytes(packet), who, now, link)
    if reply is None:
        return None
    read = {1: None, 2: DHCP6_Advertise, 7: DHCP6_Reply}[reply[0]](reply)
    assert read.trid == 0x010203
    assert bytes(read[DHCP6OptServerId].duid) == b"\0\3\0\1" + GATEWAY
    return read


def given_to(read):
    found = read[DHCP6OptIA_NA].ianaopts[0]
    return found.addr if isinstance(found, DHCP6OptIAAddress) else f"status {found.statuscode}"


def test_a_known_machine_gets_its_address_and_everything_it_needs():
    dhcp = server()
    offer = ask(dhcp, DHCP6_Solicit, ME, association())
    assert isinstance(offer, DHCP6_Advertise)
    assert offer[DHCP6OptPref].prefval == 255
    assert given_to(offer) == "fd00:a::15"
    reply = ask(dhcp, DHCP6_Request, ME, OURS, association("fd00:a::15"))
    assert isinstance(reply, DHCP6_Reply)
    given = reply[DHCP6OptIA_NA]
    assert (given.iaid, given.T1, given.T2) == (7, 1800, 2880)
    assert (given.ianaopts[0].preflft, given.ianaopts[0].validlft) == (3600, 3600)
    assert bytes(reply[DHCP6OptClientId].duid) == bytes(ME.duid)
    assert reply[DHCP6OptDNSServers].dnsservers == ["fd00:a::3"]
    assert reply[DHCP6OptDNSDomains].dnsdomains == ["atoll.internal."]


def test_a_lease_is_had_in_one_step_by_those_who_can():
    reply = ask(server(), DHCP6_Solicit, ME, DHCP6OptRapidCommit(), association())
    assert isinstance(reply, DHCP6_Reply)
    assert DHCP6OptRapidCommit in reply
    assert given_to(reply) == "fd00:a::15"


def test_a_client_gets_the_options_it_asks_for():
    reply = ask(server(), DHCP6_Request, ME, OURS, association(), DHCP6OptOptReq(reqopts=[24]))
    assert DHCP6OptDNSDomains in reply
    assert DHCP6OptDNSServers not in reply


def test_facts_are_told_without_an_address():
    reply = ask(server(), DHCP6_InfoRequest, DHCP6OptOptReq(reqopts=[23, 32]))
    assert reply[DHCP6OptDNSServers].dnsservers == ["fd00:a::3"]
    assert reply[DHCP6OptInfoRefreshTime].reftime == 3600
    assert ask(server(), DHCP6_InfoRequest, association()) is None


@pytest.mark.parametrize("kind", [DHCP6_Renew, DHCP6_Rebind])
def test_an_old_address_is_replaced_when_it_is_renewed(kind):
    named = [OURS] if kind is DHCP6_Renew else []
    reply = ask(server(), kind, ME, *named, association("fd00:b::9"))
    first, second = reply[DHCP6OptIA_NA].ianaopts
    assert (first.addr, first.validlft) == ("fd00:a::15", 3600)
    assert (second.addr, second.preflft, second.validlft) == ("fd00:b::9", 0, 0)


def test_an_address_of_another_network_cannot_be_had():
    assert (
        given_to(ask(server(), DHCP6_Request, ME, OURS, association("fd00:b::9"))) == f"status {NOT_ON_LINK}"
    )


def test_a_client_learns_whether_it_is_still_on_the_same_network():
    here = ask(server(), DHCP6_Confirm, ME, association("fd00:a::15"))
    assert here[DHCP6OptStatusCode].statuscode == 0
    there = ask(server(), DHCP6_Confirm, ME, association("fd00:b::15"))
    assert there[DHCP6OptStatusCode].statuscode == NOT_ON_LINK
    assert ask(server(), DHCP6_Confirm, ME, association()) is None


def test_prefixes_temporary_and_second_addresses_are_not_given():
    reply = ask(
        server(), DHCP6_Request, ME, OURS,
        association(), association(ident=8), DHCP6OptIA_PD(iaid=9), DHCP6OptIA_TA(iaid=10),
    )  # fmt: skip
    assert given_to(reply) == "fd00:a::15"
    second = reply.getlayer(DHCP6OptIA_NA, 2)
    assert (second.iaid, second.ianaopts[0].statuscode) == (8, NO_ADDRESS)
    assert reply[DHCP6OptIA_PD].iapdopt[0].statuscode == NO_PREFIX
    assert reply[DHCP6OptIA_TA].iataopts[0].statuscode == NO_ADDRESS


def test_strangers_get_addresses_in_the_order_in_which_they_come_until_there_are_none():
    dhcp = server()
    got = [given_to(ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(n))) for n in (5, 2, 9, 1, 7)]
    assert got == ["fd00:a::1000", "fd00:a::1001", "fd00:a::1002", "fd00:a::1003", f"status {NO_ADDRESS}"]
    assert (
        given_to(ask(dhcp, DHCP6_Renew, ME, OURS, association("fd00:a::1001"), who=mac(2))) == "fd00:a::1001"
    )


def test_a_client_that_comes_back_gets_the_address_that_it_had():
    dhcp = server()
    reply = ask(dhcp, DHCP6_Rebind, ME, association("fd00:a::1002"), who=mac(1))
    assert given_to(reply) == "fd00:a::1002"


def test_addresses_are_given_back_by_those_who_have_them():
    dhcp = server(pool=(IPv6Address("fd00:a::1000"), IPv6Address("fd00:a::1000")))
    ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(1))
    foreign = ask(dhcp, DHCP6_Release, ME, OURS, association("fd00:a::1000"), who=mac(2), link="b")
    assert given_to(foreign) == f"status {NO_BINDING}"
    assert given_to(ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(2), link="b")).startswith(
        "status"
    )
    released = ask(dhcp, DHCP6_Release, ME, OURS, association("fd00:a::1000"), who=mac(1))
    assert released[DHCP6OptStatusCode].statuscode == 0
    assert DHCP6OptIA_NA not in released
    assert given_to(ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(2), link="b")) == "fd00:a::1000"


def test_many_associations_are_answered_only_in_part():
    reply = ask(server(), DHCP6_Request, ME, OURS, *[association(ident=number) for number in range(50)])
    assert reply.getlayer(DHCP6OptIA_NA, 8).iaid == 7
    assert reply.getlayer(DHCP6OptIA_NA, 9) is None


@pytest.mark.parametrize(("length", "answered"), [(2, False), (3, True), (130, True), (131, False)])
def test_identifiers_have_a_length_that_the_standard_allows(length, answered):
    client = b"\0\1" + length.to_bytes(2) + bytes(length)
    assert (server().reply(b"\x0babc" + client, KNOWN, 0) is not None) == answered


def test_an_address_in_use_elsewhere_is_not_lent_for_a_while():
    dhcp = server()
    ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(1))
    ask(dhcp, DHCP6_Decline, ME, OURS, association("fd00:a::1000"), who=mac(1))
    assert given_to(ask(dhcp, DHCP6_Request, ME, OURS, association(), who=mac(1))) == "fd00:a::1001"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DHCP6_Solicit, []),
        (DHCP6_Solicit, [ME, OURS]),
        (DHCP6_Request, [ME]),
        (DHCP6_Request, [OURS]),
        (DHCP6_Request, [ME, DHCP6OptServerId(duid=DUID_LL(lladdr="02:00:00:00:00:09"))]),
        (DHCP6_Rebind, [ME, OURS]),
        (DHCP6_Renew, [ME]),
        (dhcp6.DHCP6_Advertise, [ME, OURS]),
        (dhcp6.DHCP6_Reconf, [ME, OURS]),
    ],
)
def test_messages_without_the_right_identifiers_are_dropped(kind, options):
    assert ask(server(), kind, *options, association()) is None


kinds = st.sampled_from([1, 3, 4, 5, 6, 8, 9, 11])
options = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 13, 14, 25]), st.binary(max_size=60))


@given(kinds, st.lists(options, max_size=8), st.binary(max_size=30), st.booleans())
def test_nothing_a_guest_sends_raises(kind, parts, rest, valid):
    head = (
        bytes((kind,))
        + b"abc"
        + (bytes(ME) + (bytes(OURS) if kind in {3, 5, 8, 9} else b"") if valid else b"")
    )
    body = b"".join(code.to_bytes(2) + len(value).to_bytes(2) + value for code, value in parts)
    reply = server().reply(memoryview(head + body + rest), mac(1), 0)
    if reply is not None:
        assert reply[1:4] == b"abc"
        assert bytes((DHCP6_Advertise if reply[0] == 2 else DHCP6_Reply)(reply)) == reply
