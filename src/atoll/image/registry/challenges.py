"""What a server wants for authentication: the header fields WWW-Authenticate. Pure.

Source: RFC 9110, sections 11.3 to 11.6.1. What cannot be read is passed over, up to the next comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

__all__ = ["Challenge", "parse_challenges"]

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SPACE = re.compile(r"[\s,]*")
_PARAMETER = re.compile(rf"({_WORD})[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|({_WORD}))", re.DOTALL)
_SCHEME = re.compile(rf"({_WORD})(?=[ \t,]|$)")
_TOKEN68 = re.compile(r"[ \t]+([A-Za-z0-9._~+/-]+=*)[ \t]*(?=,|$)")
_REST = re.compile(r"[^,]*")

#: Characters of a field that are looked at, and parameters of a challenge that are kept.
_MOST_TEXT: Final = 16_384
_MOST_PARAMETERS: Final = 32


class Challenge(msgspec.Struct, frozen=True):
    """One way to authenticate.

    Attributes:
        scheme: in small letters: ``basic``, ``bearer``.
        parameters: by name in small letters; the first of several.
        token: what stands there instead of parameters (token68); empty if nothing does.
    """

    scheme: str
    parameters: dict[str, str] = {}
    token: str = ""


def parse_challenges(fields: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges of all fields, in their order."""
    return tuple(challenge for field in fields for challenge in _challenges(field[:_MOST_TEXT]))


def _challenges(text: str) -> Iterator[Challenge]:
    found: Challenge | None = None
    at = _end(_SPACE, text, 0)
    while at < len(text):
        if parameter := _PARAMETER.match(text, at):
            if found is not None and len(found.parameters) < _MOST_PARAMETERS:
                value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
                found.parameters.setdefault(parameter[1].lower(), value)
            at = parameter.end()
        elif scheme := _SCHEME.match(text, at):
            if found is not None:
                yield found
            token = _TOKEN68.match(text, scheme.end())
            found = Challenge(scheme[1].lower(), {}, token[1] if token else "")
            at = token.end() if token else scheme.end()
        else:
            at = _end(_REST, text, at)
        at = _end(_SPACE, text, at)
    if found is not None:
        yield found


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
