"""The Docker context ``atoll``: made and activated through the Docker client, and taken back."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import process, store
from atoll.errors import ProcessError, StoreError, UsageError
from atoll.paths import Paths

__all__ = ["NAME", "activate", "current", "deactivate", "environment", "former", "overridden"]

#: What the context is called.
NAME = "atoll"

#: The client's word for no context at all.
_DEFAULT = "default"

#: Seconds for the client to answer: it reads and writes files of its own.
_PATIENCE = 30.0

#: Variables of the client that go before any context.
_OVERRIDING = ("DOCKER_HOST", "DOCKER_CONTEXT")


class _Former(msgspec.Struct, frozen=True, kw_only=True):
    """Which context was active before."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    name: str


def current(home: Path) -> str:
    """The active context; ``home`` is the client's directory."""
    with contextlib.suppress(OSError, ValueError):
        settings = json.loads((home / "config.json").read_bytes())
        if isinstance(settings, dict):
            return str(settings.get("currentContext") or _DEFAULT)
    return _DEFAULT


def overridden() -> str:
    """The variable that has the client use something else than the active context; empty for none."""
    return next((name for name in _OVERRIDING if os.environ.get(name)), "")


def activate(paths: Paths, docker: str, home: Path, sock: Path) -> None:
    """Have the client use ``sock`` from now on. What it used before is noted first.

    Args:
        paths: where that is noted.
        docker: the client.
        home: its directory.
        sock: of the engine.

    Raises:
        ProcessError: the client refuses.
        StoreError: it cannot be noted.
    """
    before = current(home)
    if before != NAME:
        store.write_record(paths.docker.former_context, _Former(name=before))
    endpoint = f"host=unix://{sock}"
    verb = "update" if _exists(docker, NAME) else "create"
    about = "Docker engine of Atoll, started when it is used"
    _run(docker, "context", verb, NAME, "--description", about, "--docker", endpoint)
    _run(docker, "context", "use", NAME)


def deactivate(paths: Paths, docker: str, home: Path) -> str:
    """Have the client use what it used before, if it still uses Atoll's; the context that is active then.

    Raises:
        ProcessError: the client refuses.
    """
    if current(home) == NAME:
        before = former(paths)
        usable = before == _DEFAULT or _exists(docker, before)
        _run(docker, "context", "use", before if usable else _DEFAULT)
    if _exists(docker, NAME):
        _run(docker, "context", "rm", "--force", NAME)
    paths.docker.former_context.unlink(missing_ok=True)
    return current(home)


def former(paths: Paths) -> str:
    """The context that was active before Atoll's."""
    try:
        return store.read_record(paths.docker.former_context, _Former).name
    except StoreError:
        return _DEFAULT


def _exists(docker: str, name: str) -> bool:
    try:
        _run(docker, "context", "inspect", name)
    except ProcessError:
        return False
    return True


def _run(docker: str, *arguments: str) -> None:
    """Run the client on its files alone: no engine is asked."""
    env = {name: value for name, value in os.environ.items() if name not in _OVERRIDING}
    process.run([docker, *arguments], env=env, timeout=_PATIENCE)


_SHELLS = {
    "sh": ("export {}={}", "unset {}"),
    "fish": ("set -gx {} {};", "set -e {};"),
    "csh": ("setenv {} {};", "unsetenv {};"),
}
_FAMILIES = {"bash": "sh", "dash": "sh", "ksh": "sh", "zsh": "sh", "tcsh": "csh"}


def environment(sock: Path, shell: str) -> str:
    """Lines that have one shell's Docker client use ``sock``, for ``eval``.

    Args:
        sock: of the engine.
        shell: name or path of the shell: sh and its like, csh, fish.

    Raises:
        UsageError: ``usage.shell``: another one.
    """
    import shlex  # noqa: PLC0415 - for this only

    name = os.path.basename(shell)
    family = _FAMILIES.get(name, name)
    if family not in _SHELLS:
        hint = "use --shell with sh, bash, zsh, fish or csh"
        raise UsageError(f"{name}: that shell is not known", code="shell", hint=hint)
    set_, unset = _SHELLS[family]
    value = shlex.quote(f"unix://{sock}")
    return f"{set_.format('DOCKER_HOST', value)}\n{unset.format('DOCKER_CONTEXT')}\n"
