"""The DHCP server, asked and read by scapy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP

from atoll.network.dhcp import Server, Settings
from atoll.network.leases import Lease

NETWORK = IPv4Network("10.0.2.0/24")
GATEWAY = IPv4Address("10.0.2.2")
SETTINGS = Settings(
    network=NETWORK,
    server=GATEWAY,
    router=GATEWAY,
    dns=(IPv4Address("10.0.2.3"),),
    domain="atoll.internal",
    search=("atoll.internal", "corp.example"),
    mtu=65_520,
    routes=((IPv4Network("10.9.0.0/16"), IPv4Address("10.0.2.9")),),
    seconds=3600,
    pool=(IPv4Address("10.0.2.100"), IPv4Address("10.0.2.119")),
)
KNOWN = b"\x52\x54\x00\x00\x00\x01"
LEASE = Lease(KNOWN, IPv4Address("10.0.2.15"), hostname="web")
WANTED = [1, 3, 6, 12, 15, 26, 28, 119, 121]


def mac(number):
    return b"\x52\x54\x00\x00\x01" + bytes((number,))


def server(**changes):
    fields = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__}
    return Server(Settings(**fields | changes), [LEASE])


def request(kind, who=KNOWN, *options, ciaddr="0.0.0.0", flags=0, wants=WANTED):
    asked = [("param_req_list", wants)] if wants else []
    hardware = who + bytes(10)
    return bytes(
        BOOTP(op=1, chaddr=hardware, xid=0x1234, ciaddr=ciaddr, flags=flags)
        / DHCP(options=[("message-type", kind), *options, *asked, "end"])
    )


def read(reply):
    """Header and options, as scapy understands them."""
    packet = BOOTP(reply.payload)
    assert packet.op == 2
    assert packet.xid == 0x1234
    options = {option[0]: option[1:] for option in packet[DHCP].options if isinstance(option, tuple)}
    return packet, {name: value[0] if len(value) == 1 else value for name, value in options.items()}


OFFER, ACK, NAK = 2, 5, 6


def test_a_known_machine_gets_its_address_and_everything_it_needs():
    dhcp = server()
    packet, options = read(dhcp.reply(request("discover"), 0))
    assert packet.yiaddr == "10.0.2.15"
    assert packet.chaddr[:6] == KNOWN
    assert options["message-type"] == OFFER
    chosen = request("request", KNOWN, ("server_id", "10.0.2.2"), ("requested_addr", "10.0.2.15"))
    reply = dhcp.reply(chosen, 1)
    packet, options = read(reply)
    assert (options["message-type"], packet.yiaddr, options["server_id"]) == (ACK, "10.0.2.15", "10.0.2.2")
    assert (options["lease_time"], options["renewal_time"], options["rebinding_time"]) == (3600, 1800, 3150)
    assert (options["subnet_mask"], options["router"], options["name_server"]) == (
        "255.255.255.0", "10.0.2.2", "10.0.2.3",
    )  # fmt: skip
    assert (options["domain"], options["hostname"]) == (b"atoll.internal", b"web")
    assert (options["interface-mtu"], options["broadcast_address"]) == (65_520, "10.0.2.255")
    assert options["classless_static_routes"] == ["10.9.0.0/16:10.0.2.9", "0.0.0.0/0:10.0.2.2"]
    assert options[119] == b"\x05atoll\x08internal\0\x04corp\x07example\0"
    assert (reply.broadcast, reply.address, reply.mac) == (False, packet_address("10.0.2.15"), KNOWN)


def packet_address(text):
    return IPv4Address(text).packed


def test_a_client_gets_only_what_it_asks_for_and_what_it_cannot_do_without():
    _, options = read(server().reply(request("discover", wants=[3]), 0))
    assert set(options) == {
        "message-type", "server_id", "lease_time", "renewal_time", "rebinding_time", "subnet_mask", "router",
    }  # fmt: skip


def test_a_client_that_names_no_options_gets_all_that_fit():
    _, options = read(server().reply(request("discover", wants=None), 0))
    assert {"router", "name_server", "interface-mtu", "domain"} <= set(options)


def test_long_search_lists_come_in_parts_and_never_exceed_what_the_client_takes():
    domains = tuple(f"domain-number-{number}.example.org" for number in range(12))
    dhcp = server(search=domains)
    small = dhcp.reply(request("discover"), 0).payload
    assert len(small) <= 576 - 28
    large = dhcp.reply(request("discover", KNOWN, ("max_dhcp_size", 1400)), 0)
    assert len(large.payload) <= 1400 - 28
    packet = BOOTP(large.payload)
    parts = [o[1] for o in packet[DHCP].options if isinstance(o, tuple) and o[0] == 119]
    whole = b"".join(parts)
    assert whole.count(b"domain-number-") == 12
    assert len(parts) == 2


@pytest.mark.parametrize(
    "options", [(("requested_addr", "10.0.2.77"),), (("requested_addr", "192.168.1.5"),)]
)
def test_a_wrong_address_is_refused_to_everybody(options):
    reply = server().reply(request("request", KNOWN, *options), 0)
    packet, told = read(reply)
    assert told["message-type"] == NAK
    assert (packet.yiaddr, packet.ciaddr) == ("0.0.0.0", "0.0.0.0")
    assert (reply.broadcast, reply.address, reply.mac) == (True, b"\xff" * 4, b"\xff" * 6)
    assert "lease_time" not in told


def test_a_machine_renews_with_a_datagram_to_its_address():
    reply = server().reply(request("request", ciaddr="10.0.2.15"), 0)
    packet, options = read(reply)
    assert (options["message-type"], packet.yiaddr, packet.ciaddr) == (ACK, "10.0.2.15", "10.0.2.15")
    assert (reply.broadcast, reply.address) == (False, packet_address("10.0.2.15"))


def test_a_restarted_machine_gets_the_address_it_remembers():
    reply = server().reply(request("request", KNOWN, ("requested_addr", "10.0.2.15"), flags=0x8000), 0)
    assert read(reply)[1]["message-type"] == ACK
    assert reply.broadcast


def test_a_client_that_chose_another_server_is_left_alone():
    chosen = request("request", KNOWN, ("server_id", "10.0.2.9"), ("requested_addr", "10.0.2.15"))
    assert server().reply(chosen, 0) is None


def test_whoever_has_an_address_is_told_the_rest_without_a_lease():
    reply = server().reply(request("inform", mac(9), ciaddr="10.0.2.50"), 0)
    packet, options = read(reply)
    assert (options["message-type"], packet.yiaddr) == (ACK, "0.0.0.0")
    assert "lease_time" not in options
    assert reply.address == packet_address("10.0.2.50")
    assert server().reply(request("inform", mac(9), ciaddr="8.8.8.8"), 0) is None


def test_a_lease_is_had_in_one_step_by_those_who_can():
    packet, options = read(server().reply(request("discover", mac(1), (80, b"")), 0))
    assert (options["message-type"], packet.yiaddr) == (ACK, "10.0.2.100")
    assert options["rapid_commit"] == b""


def test_identifiers_come_back_as_they_were():
    reply = server().reply(request("discover", KNOWN, ("client_id", b"\xffabcdef")), 0)
    assert read(reply)[1]["client_id"] == b"\xffabcdef"


def lease(dhcp, who, now=0.0, link="a"):
    reply = dhcp.reply(request("discover", who), now, link)
    if reply is None:
        return None
    address = BOOTP(reply.payload).yiaddr
    chosen = request("request", who, ("server_id", "10.0.2.2"), ("requested_addr", address))
    assert read(dhcp.reply(chosen, now, link))[1]["message-type"] == ACK
    return address


def test_strangers_get_addresses_in_the_order_in_which_they_come_and_the_same_ones_again():
    dhcp = server()
    assert [lease(dhcp, mac(n)) for n in (7, 3, 5)] == ["10.0.2.100", "10.0.2.101", "10.0.2.102"]
    assert lease(dhcp, mac(3), 100) == "10.0.2.101"
    assert lease(dhcp, mac(3), 100_000) == "10.0.2.101"


def test_one_link_cannot_take_the_whole_pool():
    dhcp = server()
    got = [lease(dhcp, mac(n)) for n in range(20)]
    assert got[:16] == [f"10.0.2.{100 + n}" for n in range(16)]
    assert got[16:] == [None] * 4
    assert lease(dhcp, mac(100), link="b") == "10.0.2.116"


def test_an_address_that_is_given_back_or_expired_goes_to_another():
    dhcp = server(pool=(IPv4Address("10.0.2.100"), IPv4Address("10.0.2.100")))
    assert lease(dhcp, mac(1)) == "10.0.2.100"
    assert lease(dhcp, mac(2), 10, "b") is None
    assert dhcp.reply(request("release", mac(1), ciaddr="10.0.2.100"), 20, "b") is None
    assert lease(dhcp, mac(2), 30, "b") is None, "another link cannot give it back"
    assert dhcp.reply(request("release", mac(1), ciaddr="10.0.2.100"), 40, "a") is None
    assert lease(dhcp, mac(2), 50, "b") == "10.0.2.100"
    assert lease(dhcp, mac(1), 50 + 3599) is None
    assert lease(dhcp, mac(1), 50 + 3601) == "10.0.2.100"


def test_an_address_in_use_elsewhere_is_not_lent_for_a_while():
    dhcp = server(pool=(IPv4Address("10.0.2.100"), IPv4Address("10.0.2.101")))
    assert lease(dhcp, mac(1)) == "10.0.2.100"
    declined = request("decline", mac(1), ("requested_addr", "10.0.2.100"), ("server_id", "10.0.2.2"))
    assert dhcp.reply(declined, 1, "a") is None
    assert lease(dhcp, mac(1), 2) == "10.0.2.101"
    assert lease(dhcp, mac(2), 3, "b") is None
    assert lease(dhcp, mac(2), 700, "b") == "10.0.2.100"


def test_what_belongs_to_a_machine_is_never_lent():
    dhcp = server()
    assert lease(dhcp, mac(1)) == "10.0.2.100"
    dhcp.add(Lease(mac(50), IPv4Address("10.0.2.100")))
    assert lease(dhcp, mac(50), link="b") == "10.0.2.100"
    assert lease(dhcp, mac(1)) == "10.0.2.101"
    asked = request("request", mac(2), ("requested_addr", "10.0.2.15"))
    assert read(dhcp.reply(asked, 0, "a"))[1]["message-type"] == NAK


def test_a_machine_keeps_its_borrowed_address_when_its_link_is_made_anew():
    dhcp = server()
    lease(dhcp, mac(1), link="a")
    assert lease(dhcp, mac(1), link="b") is None, "somebody else uses the same hardware address"
    dhcp.forget("a")
    assert lease(dhcp, mac(1), link="b") == "10.0.2.100"
    assert lease(dhcp, mac(2), link="b") == "10.0.2.101"
    dhcp.forget("b")
    assert lease(dhcp, mac(2), link="a") == "10.0.2.101"


def test_a_server_that_starts_anew_grants_what_it_lent_before():
    asked = request("request", mac(1), ciaddr="10.0.2.105")
    assert read(server().reply(asked, 0, "a"))[1]["message-type"] == ACK


def test_an_offer_does_not_shorten_what_is_lent():
    dhcp = server(pool=(IPv4Address("10.0.2.100"), IPv4Address("10.0.2.100")))
    lease(dhcp, mac(1))
    dhcp.reply(request("discover", mac(1)), 10, "a")
    assert lease(dhcp, mac(2), 3000, "b") is None


def test_what_is_lent_outlives_the_server():
    dhcp, following = server(), server()
    assert [lease(dhcp, mac(n)) for n in (1, 2)] == ["10.0.2.100", "10.0.2.101"]
    following.pool.restore(dhcp.pool.loans(10))
    following.pool.restore(dhcp.pool.loans(10))
    assert lease(following, mac(3), 20) == "10.0.2.102"
    assert lease(following, mac(2), 20, "b") == "10.0.2.101"
    assert lease(following, mac(2), 30, "a") is None
    assert dhcp.pool.loans(4000) == ()


def test_without_a_pool_strangers_hear_nothing():
    dhcp = server(pool=None)
    assert dhcp.reply(request("discover", mac(1)), 0) is None
    assert dhcp.reply(request("request", mac(1), ("requested_addr", "10.0.2.100")), 0) is None


def test_relays_other_hardware_and_groups_are_not_served():
    good = request("discover")
    assert server().reply(good, 0) is not None
    for at, value in ((0, 2), (1, 6), (2, 8), (24, 1), (28, 0x53), (236, 0)):
        bad = bytearray(good)
        bad[at] = value
        assert server().reply(bytes(bad), 0) is None, at


def test_options_may_be_in_the_fields_of_names():
    packet = BOOTP(op=1, chaddr=KNOWN + bytes(10), xid=0x1234, file=b"\x35\x01\x01\xff", options=b"c\x82Sc")
    asked = bytes(packet) + b"\x34\x01\x01\xff"
    assert read(server().reply(asked, 0))[1]["message-type"] == OFFER


@given(st.lists(st.binary(max_size=700), max_size=5), st.booleans())
def test_nothing_a_guest_sends_raises(garbage, valid_head):
    dhcp = server()
    head = request("discover")[:240] if valid_head else b""
    for data in garbage:
        reply = dhcp.reply(memoryview(head + data), 0, "a")
        if reply is not None:
            assert BOOTP(reply.payload)[DHCP].options


@given(st.data())
def test_whatever_clients_do_nobody_has_anothers_address(data):
    dhcp = server(pool=(IPv4Address("10.0.2.100"), IPv4Address("10.0.2.103")))
    holders, now = {}, 0.0
    kinds = st.sampled_from(["discover", "request", "release", "decline"])
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.sampled_from([0, 1, 61, 4000]))
        who = data.draw(st.integers(1, 6))
        address = f"10.0.2.{data.draw(st.integers(99, 104))}"
        kind = data.draw(kinds)
        ciaddr = address if kind == "release" else "0.0.0.0"
        link = who % 2
        reply = dhcp.reply(request(kind, mac(who), ("requested_addr", address), ciaddr=ciaddr), now, link)
        holders = {held: (by, until) for held, (by, until) in holders.items() if until > now}
        if kind in {"release", "decline"} and holders.get(address, (0,))[0] == who:
            del holders[address]
        if reply is None or BOOTP(reply.payload)[DHCP].options[0] != ("message-type", ACK):
            continue
        given_to = BOOTP(reply.payload).yiaddr
        assert given_to == address
        assert given_to in {f"10.0.2.{n}" for n in range(100, 104)}
        assert holders.get(given_to, (who,))[0] == who
        holders[given_to] = (who, now + 3600)
