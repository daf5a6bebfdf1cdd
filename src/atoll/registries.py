"""What is said in the configuration of registries of images: mirrors, transport, certificates. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["Registries", "RegistrySettings", "is_host", "is_loopback", "parse_registries"]

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?"
_MIRROR = rf"{_HOST}(?:/[a-z0-9._-]+)*"


class RegistrySettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of one host of images.

    Attributes:
        mirrors: ``HOST[:PORT][/PATH]`` each, asked in this order before the registry itself.
        insecure: TLS is used without proof of who answers, and plain HTTP where there is no TLS; None for
            what is usual: so it is on this host's loopback, and nowhere else.
        ca: file of certificates that are believed beside those of this host, PEM.
    """

    mirrors: tuple[str, ...] = ()
    insecure: bool | None = None
    ca: Path | None = None


#: What is said, by ``HOST[:PORT]``.
Registries = Mapping[str, RegistrySettings]

_KEYS: Final = ("mirrors", "insecure", "ca")


def is_host(text: str) -> bool:
    """Whether it is ``HOST`` or ``HOST:PORT``."""
    return re.fullmatch(_HOST, text) is not None


def is_loopback(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is this host itself: localhost, 127.0.0.0/8 or ::1."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name in {"localhost", "::1"} or re.fullmatch(r"127(?:\.[0-9]{1,3}){3}", name) is not None


def parse_registries(value: Any) -> dict[str, RegistrySettings]:
    """The table ``registries`` of a file, or the same as JSON. Raises ``ValueError``."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value or "{}")
        except msgspec.DecodeError as error:
            raise ValueError(f"write it as JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ValueError('write tables, as [registries."HOST"]')  # noqa: TRY004 - as every parser
    return {host: _settings(host, table) for host, table in value.items()}


def _settings(host: Any, table: Any) -> RegistrySettings:
    if isinstance(table, RegistrySettings):
        return table
    if not isinstance(host, str) or not is_host(host):
        raise ValueError(f"{host!r}: write HOST or HOST:PORT, in quotes")
    if not isinstance(table, Mapping) or set(table) - {*_KEYS}:
        raise ValueError(f"{host}: it may have {', '.join(_KEYS)}")
    mirrors, insecure, ca = (table.get(key) for key in _KEYS)
    if insecure is not None and not isinstance(insecure, bool):
        raise ValueError(f"{host}: insecure is true or false")
    return RegistrySettings(_mirrors(host, mirrors), insecure, _file(host, ca))


def _mirrors(host: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{host}: mirrors are a list of strings")
    for one in value:
        if not re.fullmatch(_MIRROR, one):
            hint = "HOST[:PORT][/PATH], without https://"
            raise ValueError(f"{host}: a mirror is {hint}, not {one!r}")
    return tuple(value)


def _file(host: str, value: Any) -> Path | None:
    if value is None:
        return None
    try:
        path = Path(value).expanduser()
    except (TypeError, RuntimeError):
        raise ValueError(f"{host}: ca is the path of a file") from None
    if not path.is_absolute():
        raise ValueError(f"{host}: ca is an absolute path")
    return path
