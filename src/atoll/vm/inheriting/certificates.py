"""Certificates as files have them, read as far as OpenSSL's directories and people need them. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from atoll.vm.inheriting.inheritance import Certificate

__all__ = ["certificates_of"]

_PEM: Final = re.compile(
    r"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----(?P<body>[A-Za-z0-9+/=\s]+)"
    r"-----END (?:TRUSTED |X509 )?CERTIFICATE-----"
)

#: Bytes of the longest certificate that is taken: real ones have a few thousand.
_LONGEST: Final = 65_536

#: Tags of DER (X.690, section 8): what is built of others, and version, the first of a certificate's fields.
_SEQUENCE, _SET, _VERSION = 0x30, 0x31, 0xA0
_UTF8 = 0x0C

#: Strings (UTF8, Printable, Teletex, IA5, Visible, Universal, BMP), each with the encoding of its bytes.
_STRINGS: Final = {
    _UTF8: "utf-8",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}

_COMMON_NAME: Final = bytes.fromhex("550403")
_ORGANISATION: Final = bytes.fromhex("55040a")

_BLANK = " \t\n\v\f\r"


class _Element(NamedTuple):
    tag: int
    content: bytes
    whole: bytes


def certificates_of(text: str) -> tuple[Certificate, ...]:
    """The certificates in a file, each once; empty if there is none.

    Raises:
        ValueError: one is damaged.
    """
    found: dict[str, Certificate] = {}
    for block in _PEM.finditer(text):
        try:
            der = base64.b64decode("".join(block["body"].split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"a certificate is damaged: {error}") from None
        one = _read(der)
        found.setdefault(one.sha256, one)
    return tuple(found.values())


def _read(der: bytes) -> Certificate:
    if len(der) > _LONGEST:
        raise ValueError("a certificate is longer than one can be")
    whole = _only(der, _SEQUENCE)  # behind it, of a trusted certificate, is what OpenSSL says of its uses
    fields = list(_elements(_first(whole.content).content))
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) < 6 or fields[4].tag != _SEQUENCE:
        raise ValueError("a certificate has no subject")
    subject = fields[4].content
    body = base64.encodebytes(whole.whole).decode().replace("\n", "")
    lines = (body[at : at + 64] for at in range(0, len(body), 64))
    pem = "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
    return Certificate(_name(subject), hashlib.sha256(whole.whole).hexdigest(), _hash(subject), pem)


def _elements(data: bytes) -> Iterator[_Element]:
    """What stands in ``data``, one behind the other. Raises ``ValueError``: it is cut off."""
    at = 0
    while at < len(data):
        element = _first(data[at:])
        yield element
        at += len(element.whole)


def _first(data: bytes) -> _Element:
    if len(data) < 2:
        raise ValueError("a certificate is cut off")
    size, start = data[1], 2
    if size & 0x80:
        start += size & 0x7F
        if start == 2 or start > 6:
            raise ValueError("a certificate has a length that is none")
        size = int.from_bytes(data[2:start])
    if len(data) < start + size:
        raise ValueError("a certificate is cut off")
    return _Element(data[0], data[start : start + size], data[: start + size])


def _only(data: bytes, tag: int) -> _Element:
    element = _first(data)
    if element.tag != tag:
        raise ValueError("this is no certificate")
    return element


def _parts(subject: bytes) -> Iterator[list[tuple[bytes, _Element]]]:
    """The relative names, each with the types and values of its attributes."""
    for relative in _elements(subject):
        attributes = []
        for attribute in _elements(relative.content):
            pair = list(_elements(attribute.content))
            if len(pair) != 2:
                raise ValueError("a certificate's subject is damaged")
            attributes.append((pair[0].content, pair[1]))
        yield attributes


def _text(value: _Element) -> str:
    return value.content.decode(_STRINGS.get(value.tag, "latin-1"), errors="replace")


def _name(subject: bytes) -> str:
    known = {kind: _text(value) for attributes in _parts(subject) for kind, value in attributes}
    name = known.get(_COMMON_NAME) or known.get(_ORGANISATION) or ""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _hash(subject: bytes) -> str:
    """The name that OpenSSL looks for: of a form in which case, blanks and encodings make no difference."""
    canonical = b""
    for attributes in _parts(subject):
        members = sorted(
            _wrapped(_SEQUENCE, _wrapped(0x06, kind) + _canonical(value)) for kind, value in attributes
        )
        canonical += _wrapped(_SET, b"".join(members))
    digest = hashlib.sha1(canonical, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"


def _canonical(value: _Element) -> bytes:
    if value.tag not in _STRINGS:
        return value.whole
    words = re.sub(f"[{_BLANK}]+", " ", _text(value)).strip(" ")
    lowered = "".join(letter.lower() if letter.isascii() else letter for letter in words)
    return _wrapped(_UTF8, lowered.encode())


def _wrapped(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    count = size.to_bytes(4).lstrip(b"\0")
    return bytes((tag, 0x80 | len(count))) + count + content
