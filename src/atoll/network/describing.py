"""What a frame says, in a line. Pure; whatever bytes it is given, it raises nothing and prints no control."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

import msgspec

from atoll.network.wire import ethernet, ip

__all__ = ["Described", "describe"]

_FRAGMENT: Final = 44
_DNS, _MDNS = 53, 5353

_TCP: Final = struct.Struct(">HHIIHH")
_FLAGS: Final = ((2, "SYN"), (1, "FIN"), (4, "RST"), (8, "PSH"), (32, "URG"), (16, "ACK"))

#: Messages of ICMP and ICMPv6 by type (IANA).
_ICMP: Final = {
    0: "echo reply",
    3: "unreachable",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
    12: "parameter problem",
}
_ICMP6: Final = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "listener query",
    131: "listener report",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    143: "listener report",
}
_ECHOES: Final = frozenset({0, 8, 128, 129})
_NEIGHBOURS: Final = frozenset({135, 136})

#: Messages of DHCP and DHCPv6 (RFC 2132, section 9.6; RFC 8415, section 7.3).
_DHCP: Final = {
    1: "discover",
    2: "offer",
    3: "request",
    4: "decline",
    5: "ack",
    6: "nak",
    7: "release",
    8: "inform",
}
_DHCP6: Final = {
    1: "solicit",
    2: "advertise",
    3: "request",
    4: "confirm",
    5: "renew",
    6: "rebind",
    7: "reply",
    8: "release",
    9: "decline",
    11: "information request",
}

#: Types and response codes of DNS (IANA).
_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    41: "OPT",
    64: "SVCB",
    65: "HTTPS",
    255: "ANY",
}
_RCODES: Final = {0: "no error", 1: "format error", 2: "server failure", 3: "no such name", 5: "refused"}

_DNS_HEAD: Final = struct.Struct(">HHHHHH")
_MAGIC: Final = b"\x63\x82\x53\x63"

#: Letters of the longest description.
_LONGEST: Final = 200


class Described(msgspec.Struct, frozen=True):
    """A frame in words.

    Attributes:
        source: address, and port after a colon; of IPv6 in brackets then.
        destination: likewise.
        protocol: the innermost that is known, such as ``TCP``.
        info: what it says.
    """

    source: str
    destination: str
    protocol: str
    info: str


def describe(frame: bytes, size: int | None = None) -> Described:
    """What a frame says.

    Args:
        frame: from its Ethernet header on; its end may have been cut off.
        size: how many bytes it had.
    """
    size = len(frame) if size is None else size
    if len(frame) < ethernet.HEADER:
        return Described("", "", "Ethernet", f"length {size}, cut short")
    destination, source = (frame[at : at + 6].hex(":") for at in (0, 6))
    kind = int.from_bytes(frame[12:14])
    packet = frame[ethernet.HEADER :]
    found = None
    if kind == ethernet.ARP:
        found = _arp(packet)
    elif kind == ethernet.IPV4:
        found = _ipv4(packet)
    elif kind == ethernet.IPV6:
        found = _ipv6(packet)
    found = found or Described(source, destination, "Ethernet", f"type 0x{kind:04x}, length {size}")
    return msgspec.structs.replace(found, info=found.info[:_LONGEST])


def _arp(packet: bytes) -> Described | None:
    if len(packet) < 28 or packet[4:6] != b"\x06\x04":
        return None
    source, target = _address(packet[14:18]), _address(packet[24:28])
    if packet[6:8] == b"\0\1":
        return Described(source, target, "ARP", f"who has {target}?")
    return Described(source, target, "ARP", f"{source} is at {packet[8:14].hex(':')}")


def _ipv4(packet: bytes) -> Described | None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    header = (packet[0] & 15) << 2
    total, part = int.from_bytes(packet[2:4]), int.from_bytes(packet[6:8])
    if not 20 <= header <= total:
        return None
    source, destination = packet[12:16], packet[16:20]
    payload = packet[header:total]
    offset = (part & 0x1FFF) << 3
    if offset or part & 0x2000:
        return _fragment(source, destination, packet[9], offset, total - header)
    return _transport(source, destination, packet[9], payload, total - header)


def _ipv6(packet: bytes) -> Described | None:
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    size, following = int.from_bytes(packet[4:6]), packet[6]
    source, destination = packet[8:24], packet[24:40]
    payload = packet[40 : 40 + size]
    while following in ip.PASSED_OVER and len(payload) >= 8:
        length = (payload[1] + 1) << 3
        following, payload, size = payload[0], payload[length:], max(0, size - length)
    if following == _FRAGMENT and len(payload) >= 8:
        offset = int.from_bytes(payload[2:4]) & 0xFFF8
        return _fragment(source, destination, payload[0], offset, max(0, size - 8))
    return _transport(source, destination, following, payload, size)


def _fragment(source: bytes, destination: bytes, protocol: int, offset: int, size: int) -> Described:
    info = f"fragment of protocol {protocol} at {offset}, length {size}"
    return Described(_address(source), _address(destination), _version(source), info)


def _transport(source: bytes, destination: bytes, protocol: int, payload: bytes, size: int) -> Described:
    ends = _address(source), _address(destination)
    found = None
    if protocol == ip.TCP:
        found = _tcp(ends, payload, size)
    elif protocol == ip.UDP:
        found = _udp(ends, payload)
    elif protocol in {ip.ICMP, ip.ICMP6}:
        found = _icmp(ends, payload, size, _ICMP6 if protocol == ip.ICMP6 else _ICMP)
    return found or Described(*ends, _version(source), f"protocol {protocol}, length {size}")


def _tcp(ends: tuple[str, str], payload: bytes, size: int) -> Described | None:
    if len(payload) < _TCP.size:
        return None
    source, destination, sequence, acknowledged, offset, window = _TCP.unpack_from(payload)
    flags = " ".join(name for bit, name in _FLAGS if offset & bit) or "no flag"
    info = f"{flags}, seq {sequence}"
    if offset & 16:
        info += f", ack {acknowledged}"
    info += f", window {window}, length {max(0, size - (offset >> 10 & 0x3C))}"
    return Described(_end(ends[0], source), _end(ends[1], destination), "TCP", info)


def _udp(ends: tuple[str, str], payload: bytes) -> Described | None:
    if len(payload) < 8:
        return None
    source, destination, size = struct.unpack_from(">HHH", payload)
    between = _end(ends[0], source), _end(ends[1], destination)
    data = payload[8:]
    ports = {source, destination}
    said = ""
    protocol = "UDP"
    if ports & {_DNS, _MDNS}:
        protocol, said = "DNS", _dns(data)
    elif ports & {67, 68}:
        protocol, said = "DHCP", _dhcp(data)
    elif ports & {546, 547}:
        protocol, said = "DHCPv6", _DHCP6.get(data[0], f"message {data[0]}") if data else ""
    return Described(*between, protocol if said else "UDP", said or f"length {max(0, size - 8)}")


def _icmp(ends: tuple[str, str], payload: bytes, size: int, names: dict[int, str]) -> Described | None:
    if len(payload) < 4:
        return None
    kind, code = payload[0], payload[1]
    info = names.get(kind, f"type {kind}")
    if kind in _ECHOES and len(payload) >= 8:
        info += ", id {}, seq {}".format(*struct.unpack_from(">HH", payload, 4))
    elif names is _ICMP6 and kind in _NEIGHBOURS and len(payload) >= 24:
        info += f", {_address(payload[8:24])}"
    elif code:
        info += f", code {code}"
    return Described(*ends, "ICMPv6" if names is _ICMP6 else "ICMP", f"{info}, length {size}")


def _dns(data: bytes) -> str:
    if len(data) < _DNS_HEAD.size:
        return ""
    number, flags, questions, answers, *_ = _DNS_HEAD.unpack_from(data)
    said = f"{'answer' if flags & 0x8000 else 'query'} {number}"
    if questions:
        name, at = _name(data, _DNS_HEAD.size)
        kind = int.from_bytes(data[at : at + 2])
        said += f", {name} {_TYPES.get(kind, f'type {kind}')}"
    if flags & 0x8000:
        said += f", {_RCODES.get(flags & 15, f'code {flags & 15}')}, {answers} records"
    return said


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at ``at`` as it lies there, and where it ends; compression is in no question."""
    labels = []
    while at < len(data) and 0 < data[at] < 64:
        label = data[at + 1 : at + 1 + data[at]]
        labels.append("".join(chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}" for byte in label))
        at += 1 + data[at]
    return ".".join(labels) or ".", at + 1


def _dhcp(data: bytes) -> str:
    if data[236:240] != _MAGIC:
        return ""
    at = 240
    while at + 1 < len(data) and data[at] != 255:
        if data[at] == 53 and at + 2 < len(data):
            said = _DHCP.get(data[at + 2], f"message {data[at + 2]}")
            return f"{said}, {_address(data[16:20])}" if any(data[16:20]) else said
        at += 1 if data[at] == 0 else 2 + data[at + 1]
    return "BOOTP"


def _address(packed: bytes) -> str:
    return str(ip_address(packed))


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _version(address: bytes) -> str:
    return "IPv6" if len(address) == 16 else "IPv4"
