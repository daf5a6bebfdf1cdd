"""Domain names as text and as they are in messages (RFC 1035, sections 3.1 and 5.1)."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["is_hostname", "text", "wire"]

#: Bytes of the longest name in a message, with its root label (RFC 1035, section 2.3.4).
LONGEST = 255

_HOSTNAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_PLAIN = re.compile(rb"[!-~]*")
_SPECIAL = re.compile(rb'[^!-~]|[."();@$\\]')


def is_hostname(name: str) -> bool:
    """Whether a machine can have this name: lower-case letters, digits, hyphens and underscores in labels."""
    return len(name) <= LONGEST - 2 and _HOSTNAME.fullmatch(name) is not None


def wire(name: str) -> bytes:
    """A name as it is in a message, without compression; a dot at the end makes no difference.

    Raises:
        ValueError: it is empty between two dots, not ASCII, or too long.
    """
    labels = [label.encode("ascii") for label in name.removesuffix(".").split(".")] if name != "." else []
    if any(not 0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is no domain name")
    packed = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(packed) > LONGEST:
        raise ValueError(f"{name!r} is longer than a domain name can be")
    return packed


@lru_cache(4096)
def text(name: bytes) -> str:
    """A whole, uncompressed name of a message as text, without a dot at the end; the root is ``"."``.

    What has a meaning in text, or cannot be printed, is escaped, so that two names never look the same.
    """
    labels = []
    at = 0
    while length := name[at]:
        label = name[at + 1 : at + 1 + length]
        labels.append(_SPECIAL.sub(_escaped, label).decode("ascii"))
        at += 1 + length
    return ".".join(labels) or "."


def _escaped(found: re.Match[bytes]) -> bytes:
    byte = found[0]
    return b"\\" + byte if _PLAIN.fullmatch(byte) else b"\\%03d" % byte[0]
