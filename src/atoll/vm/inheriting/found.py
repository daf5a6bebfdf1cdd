"""What this host has that its guests take over; the only module here that looks at it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from atoll.errors import ConfigError
from atoll.events import Emit, Warned, ignore
from atoll.vm.inheriting.certificates import certificates_of
from atoll.vm.inheriting.inheritance import Certificate, Inheritance
from atoll.vm.inheriting.looking import ANCHORS, VARIABLES
from atoll.vm.inheriting.proxies import Proxies, inside

__all__ = ["found", "proxies"]

#: Bundles that distributions make of all they believe: a variable that names one says nothing new.
_BUNDLES: Final = (
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "var/lib/ca-certificates/ca-bundle.pem",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
)

#: Certificates of a variable's file beyond which it is a bundle of all the usual ones, too.
_MOST_OF_ONE: Final = 32

#: Bytes of a file that are read at most, and certificates that are taken over.
_LONGEST: Final = 1 << 20
_MOST: Final = 256

#: How deep directories of certificates are looked through.
_DEEPEST: Final = 4


def found(
    files: Sequence[Path],
    *,
    host: str,
    network: str,
    domain: str,
    environment: Mapping[str, str] | None = None,
    root: Path = Path("/"),
    proxied: bool = True,
    emit: Emit = ignore,
) -> Inheritance:
    """What a guest takes over of this host, as it is now.

    Args:
        files: of certificates, that the settings name.
        host: what this host is called in the guest.
        network: prefix of the guest's network.
        domain: of the names there.
        environment: this host's variables; by default those of this process.
        root: where the host's files are.
        proxied: with its proxies.
        emit: told of what is left out.

    Raises:
        ConfigError: ``config.ca``: a file that the settings name cannot be read, or has no certificate.
    """
    variables = os.environ if environment is None else environment
    certificates = {one.sha256: one for one in _certificates(files, variables, root, emit)}
    if len(certificates) > _MOST:
        emit(Warned(message=f"guests get {_MOST} of this host's {len(certificates)} certificates"))
    given = proxies(variables if proxied else {}, host=host, network=network, domain=domain)
    for one in given.unreachable:
        emit(Warned(message=f"guests cannot reach the proxy {one}", hint="have it listen at 127.0.0.1"))
    return Inheritance(tuple(certificates.values())[:_MOST], given.variables)


def proxies(environment: Mapping[str, str], *, host: str, network: str, domain: str) -> Proxies:
    """The proxies alone."""
    return inside(environment, host=host, network=network, domain=domain)


def _certificates(
    files: Sequence[Path], variables: Mapping[str, str], root: Path, emit: Emit
) -> Iterator[Certificate]:
    for path in files:
        try:
            certificates = certificates_of(_text(path))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise _wrong(path, str(why)) from error
        if not certificates:
            raise _wrong(path, "there is no certificate in it")
        yield from certificates
    for place in ANCHORS:
        for path in _below(root / place, _DEEPEST):
            yield from _readable(path, emit)
    for path in _named(variables, root):
        certificates = tuple(_readable(path, emit))
        if len(certificates) <= _MOST_OF_ONE:
            yield from certificates


def _wrong(path: Path, why: str) -> ConfigError:
    hint = "name files of certificates in PEM form in ca_files"
    return ConfigError(f"the certificate {path}: {why}", code="ca", hint=hint)


def _readable(path: Path, emit: Emit) -> Iterator[Certificate]:
    """The certificates in a file that others look after: what cannot be read is told, and left out."""
    try:
        yield from certificates_of(_text(path))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        emit(Warned(message=f"guests do not get the certificate {path}: {why}"))


def _below(place: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(place) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            if depth:
                yield from _below(Path(entry.path), depth - 1)
        elif entry.name.endswith((".crt", ".pem", ".cer")):
            yield Path(entry.path)


def _named(variables: Mapping[str, str], root: Path) -> Iterator[Path]:
    """Files that variables name and that are no distribution's own."""
    named = [path for name in VARIABLES if (path := variables.get(name, "")).startswith("/")]
    if not named:
        return
    usual = {os.path.realpath(root / bundle) for bundle in _BUNDLES}
    for path in dict.fromkeys(map(os.path.realpath, named)):
        if path not in usual and os.path.isfile(path):
            yield Path(path)


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_LONGEST).decode("ascii", errors="replace")
