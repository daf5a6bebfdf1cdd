"""What people are shown of what a guest takes over."""

from __future__ import annotations

from typing import Any

from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.inheriting.proxies import redacted

__all__ = ["described"]


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
