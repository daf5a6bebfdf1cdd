"""Whether this host has anything that guests take over. Quick to load and to tell: mostly it has not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["ANCHORS", "VARIABLES", "has_proxies", "is_worthwhile"]

#: Where administrators put certificates: Debian and Alpine, Fedora, SUSE, Arch (update-ca-certificates(8),
#: update-ca-trust(8)).
ANCHORS: Final = (
    "usr/local/share/ca-certificates",
    "etc/pki/ca-trust/source/anchors",
    "etc/pki/trust/anchors",
    "etc/ca-certificates/trust-source/anchors",
)

#: Variables by which programs are told of certificates.
VARIABLES: Final = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")


def has_proxies(environment: Mapping[str, str]) -> bool:
    """Whether any proxy is named."""
    return any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES)


def is_worthwhile(files: Sequence[Path], environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether it is worth while to look closer. Arguments are those of ``found.found``."""
    if files or has_proxies(environment) or any(environment.get(name) for name in VARIABLES):
        return True
    return any(_has_entries(root / place) for place in ANCHORS)


def _has_entries(place: Path) -> bool:
    try:
        with os.scandir(place) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
