"""What others call the two architectures."""

from __future__ import annotations

__all__ = ["PACKAGED", "uname_of"]

#: In Debian's packages, in Go, and so with Docker and in OCI images (GOARCH).
PACKAGED = {"x86_64": "amd64", "aarch64": "arm64"}

_UNAME = {packaged: name for name, packaged in PACKAGED.items()}


def uname_of(packaged: str) -> str:
    """What uname(1) calls an architecture of packages and images; others are called what they are."""
    return _UNAME.get(packaged, packaged)
