"""References to images: ``python:3.12-slim``, ``registry.example:5000/team/app@sha256:...``. Pure and light.

The grammar is that of the distribution project (its package ``reference``), with what Docker's client adds: a
name without a registry is one of the default registry, and one word there is a name below ``library``.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

import msgspec

from atoll.errors import ImageError

__all__ = ["HUB", "LATEST", "Reference", "check_tag", "parse"]

#: The registry of a name that has none.
HUB: Final = "docker.io"

#: The tag of a name that has neither tag nor digest.
LATEST: Final = "latest"

#: Other names of that registry.
_HUB_NAMES = frozenset({HUB, f"index.{HUB}", f"registry-1.{HUB}"})
_OFFICIAL = "library/"

#: Characters of domain and path together, at most.
_MOST = 255

#: And with the longest tag and digest.
_MOST_TEXT = _MOST + 1 + 128 + 1 + 135

# Not compiled before they are needed: most names need but one or two of them.
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
_ID = r"[0-9a-f]{64}"


class Reference(msgspec.Struct, frozen=True):
    """The whole name of an image, or of several by their tags. ``str`` gives its canonical form.

    Attributes:
        domain: host of its registry, perhaps with a port.
        path: of the repository there.
        tag: empty if it has none.
        digest: ``sha256:HEX``; empty if it has none.
    """

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.domain}/{self.path}{self._end()}"

    @property
    def familiar(self) -> str:
        """The shortest form that means the same to Docker."""
        return self.short()

    def short(self, default: str = HUB) -> str:
        """The shortest form that ``parse`` takes for the same where ``default`` is the default registry."""
        name = self.path
        if self.domain == HUB:
            # A second word after library would be lost, and a first that looks like a host be taken for one.
            name = self.path.removeprefix(_OFFICIAL)
            name = self.path if "/" in name or re.fullmatch(_ID, name) else name
        short = f"{name}{self._end()}"
        try:
            same = parse(short, default=default) == self
        except ImageError:
            same = False
        return short if same else str(self)

    def tagged(self) -> Reference:
        """The same, with the tag ``latest`` if it has neither tag nor digest."""
        return self if self.tag or self.digest else msgspec.structs.replace(self, tag=LATEST)

    def _end(self) -> str:
        return f"{self.tag and ':'}{self.tag}{self.digest and '@'}{self.digest}"


def parse(text: str, *, default: str = HUB) -> Reference:
    """The reference that ``text`` means.

    Args:
        text: as people write it.
        default: the registry of a name that has none.

    Raises:
        ImageError: ``image.name``: it is malformed; the message says where.
    """
    if len(text) > _MOST_TEXT:
        _refuse(text, _MOST_TEXT, "it goes on and on", f"the longest has {_MOST_TEXT} characters")
    name, at, digest = text.partition("@")
    if at and not re.fullmatch(_DIGEST, digest):
        _refuse(text, len(name) + 1, "no digest is here", "a digest is sha256: and 64 hexadecimal digits")
    last = name.rfind("/") + 1
    colon = name.find(":", last)
    # Without a slash what stands before a colon is a name, never a host: `localhost:5000` is a tag 5000.
    tag = name[colon + 1 :] if colon >= 0 else ""
    if colon >= 0:
        _check_tag(text, colon + 1, tag)
        name = name[:colon]
    domain, path, offset = _split(name, default)
    if domain != HUB and not re.fullmatch(_DOMAIN, domain):
        _refuse(text, 0, "this is no host of a registry", "write HOST/NAME or HOST:PORT/NAME")
    _check_path(text, offset, name[offset:])
    if not at and not tag and re.fullmatch(_ID, name):
        _refuse(text, 0, "this is an id, not a name", f"for an image by its digest write NAME@sha256:{name}")
    if len(domain) + 1 + len(path) > _MOST:
        _refuse(text, 0, f"the name is longer than {_MOST} characters", "choose a shorter one")
    return Reference(domain, path, tag, digest)


def check_tag(tag: str) -> str:
    """``tag``, which is one. Raises ``ImageError``: ``image.name``."""
    _check_tag(tag, 0, tag)
    return tag


def _split(name: str, default: str) -> tuple[str, str, int]:
    """Domain and path, and where the path begins in ``name``."""
    first, slash, rest = name.partition("/")
    is_host = slash and (
        any(mark in first for mark in ".:[") or first == "localhost" or first != first.lower()
    )
    domain, path, offset = (first, rest, len(first) + 1) if is_host else (default, name, 0)
    if domain in _HUB_NAMES:
        domain = HUB
        path = path if "/" in path else f"{_OFFICIAL}{path}"
    return domain, path, offset


def _check_tag(text: str, offset: int, tag: str) -> None:
    hint = "a tag has letters, digits, _, . and -, 128 at most, and begins with none of the last two"
    if not re.fullmatch(_TAG, tag):
        _refuse(text, offset, "no tag is here", hint)


def _check_path(text: str, offset: int, path: str) -> None:
    hint = "names have small letters and digits, with one of . _ __ - between them"
    for component in path.split("/"):
        if not re.fullmatch(_COMPONENT, component):
            what = "capital letters are not allowed here" if _is_capital(component) else "no name is here"
            _refuse(text, offset, what, f"write {text.lower()[:80]}" if _is_capital(component) else hint)
        offset += len(component) + 1


def _is_capital(component: str) -> bool:
    return bool(re.fullmatch(_COMPONENT, component.lower())) and component.isascii()


def _refuse(text: str, offset: int, what: str, hint: str) -> NoReturn:
    shown = f"{text[:120]!r}"
    raise ImageError(f"{shown} is no name of an image: {what}, at {offset}", code="name", hint=hint)
