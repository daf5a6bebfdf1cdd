"""What a guest takes over of this host. Quick to load: the plan of every start has one."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["CERTIFICATES", "Certificate", "Inheritance"]

#: Where a guest has the certificates alone: Debian and Alpine look there for those of administrators.
CERTIFICATES: Final = "/usr/local/share/ca-certificates/atoll-host.crt"


class Certificate(msgspec.Struct, frozen=True):
    """A certificate of an authority.

    Attributes:
        name: of its subject, for people.
        sha256: of its DER, hexadecimal.
        hash: of its subject, as OpenSSL's directories name files (X509_NAME_hash(3)).
        pem: the certificate.
    """

    name: str
    sha256: str
    hash: str
    pem: str


class Inheritance(msgspec.Struct, frozen=True):
    """What a guest takes over.

    Attributes:
        certificates: of authorities that this host's administrator added to the usual ones.
        variables: of the environment: proxies.
    """

    certificates: tuple[Certificate, ...] = ()
    variables: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.certificates or self.variables)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every command. Node.js believes what this one names beside its own bundle."""
        more = {"NODE_EXTRA_CA_CERTS": CERTIFICATES} if self.certificates else {}
        return {**more, **self.variables}
