"""What others call the two architectures."""

from __future__ import annotations

__all__ = ["PACKAGED"]

#: In Debian's packages, in Go, and so with Docker and in OCI images (GOARCH).
PACKAGED = {"x86_64": "amd64", "aarch64": "arm64"}
