"""What a guest takes over of this host. Quick to load: the plan of every start has one."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from atoll.vm.inheriting.certificates import Certificate
from atoll.vm.inheriting.proxies import redacted

__all__ = ["CERTIFICATES", "Inheritance", "described"]

#: Where a guest has the certificates alone: Debian and Alpine look there for those of administrators.
CERTIFICATES: Final = "/usr/local/share/ca-certificates/atoll-host.crt"


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


def described(inherited: Inheritance) -> dict[str, Any]:
    """What people are shown of it: no password is in it."""
    return {
        "certificates": [{"name": one.name, "sha256": one.sha256} for one in inherited.certificates],
        "proxies": {
            name: value if name == "no_proxy" else redacted(value)
            for name, value in inherited.variables.items()
            if name.islower()
        },
    }
