"""Address resolution of IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

__all__ = ["Question", "answer", "parse_question"]

#: Hardware and protocol type, their lengths, operation; then the sender's and the target's addresses.
_LAYOUT: Final = struct.Struct(">HHBBH6s4s6s4s")

_FIXED: Final = (1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2


class Question(NamedTuple):
    """Who asks for whose Ethernet address."""

    sender_mac: bytes
    sender: bytes
    target: bytes


def parse_question(payload: memoryview) -> Question | None:
    """A request in an Ethernet frame's payload; None for whatever else it is."""
    if len(payload) < _LAYOUT.size:
        return None
    *fixed, operation, sender_mac, sender, _, target = _LAYOUT.unpack_from(payload)
    if tuple(fixed) != _FIXED or operation != _REQUEST:
        return None
    return Question(sender_mac, sender, target)


def answer(question: Question, mac: bytes) -> bytes:
    """The payload that tells who asked that the target is at ``mac``."""
    ends = (mac, question.target, question.sender_mac, question.sender)
    return _LAYOUT.pack(*_FIXED, _REPLY, *ends)
