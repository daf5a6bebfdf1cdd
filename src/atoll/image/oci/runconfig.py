"""How an image wants to be run. Light: it is imported on the way to a VM.

Source: the OCI image specification 1.1, "Image Configuration", field ``config``.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["RunConfig"]


class RunConfig(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """How an image is run where nothing else is asked for.

    Attributes:
        user: ``user``, ``uid``, ``user:group`` or ``uid:gid``; empty for root.
        env: lines of NAME=VALUE.
        entrypoint: words before those of the command.
        cmd: the command, or words for the entrypoint.
        working_dir: directory of the command; empty for ``/``.
        stop_signal: name or number of the signal that ends it; empty for SIGTERM.
        volumes: directories whose content is data.
        exposed_ports: as ``80/tcp``.
        labels: by name.
    """

    user: str = ""
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    stop_signal: str = ""
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    labels: dict[str, str] | None = None
