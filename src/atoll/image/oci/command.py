"""What an image is run as: its configuration and what the user said, by the rules of ``docker run``. Pure.

Source: the OCI image specification 1.1, "Image Configuration" and "Conversion to OCI Runtime Configuration",
and what Docker's reference says of ``docker run`` ("Overriding image defaults") and of Dockerfiles
("ENTRYPOINT", "STOPSIGNAL", "WORKDIR").
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from atoll.errors import ImageError, UsageError
from atoll.image.oci.runconfig import RunConfig

__all__ = [
    "DEFAULT_PATH",
    "Planned",
    "directories_of",
    "environment_of",
    "parse_signal",
    "plan",
    "ports_of",
    "stop_signal_of",
    "user_of",
    "volumes_of",
    "words_of",
    "workdir_of",
]

#: What a command has for PATH where nobody says another: the guest's agent sets it.
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Of real-time signals, by the kernel's numbers with glibc's first one (signal(7)).
_RTMIN, _RTMAX = 34, 64

_REAL_TIME = re.compile(r"RT(MIN\+|MAX-)(\d{1,2})", re.ASCII)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)

#: Ports that an image exposes at most.
_MOST_PORTS = 1024


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What is run.

    Attributes:
        argv: program and arguments.
        env: its variables; the guest adds PATH, HOME and, with a terminal, TERM where they are missing.
        workdir: absolute; made where it is missing.
        user: as the guest's agent takes it; None for root.
        stop_signal: the number of the signal that asks it to end.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    user: str | None
    stop_signal: int


def plan(
    run: RunConfig,
    *,
    argv: Sequence[str] = (),
    entrypoint: str | Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    hostname: str = "",
    shell: str = "",
) -> Planned:
    """What ``docker run`` would run.

    Args:
        run: what the image says.
        argv: what the user said instead of the image's command.
        entrypoint: likewise instead of its entrypoint; an empty one takes that away.
        env: variables beside the image's.
        workdir: instead of the image's.
        user: likewise.
        hostname: of the guest.
        shell: what is run where there is nothing else; empty if the image has none.

    Raises:
        UsageError: ``usage.workdir``: it is not absolute.
        ImageError: ``image.command``: there is nothing to run; ``image.config``: the image's configuration
            cannot be made sense of.
    """
    return Planned(
        argv=words_of(run, argv, entrypoint, shell),
        env={**environment_of(run, hostname), **(env or {})},
        workdir=workdir_of(run, workdir),
        user=user_of(user or run.user),
        stop_signal=stop_signal_of(run),
    )


def words_of(
    run: RunConfig, argv: Sequence[str] = (), entrypoint: str | Sequence[str] | None = None, shell: str = ""
) -> tuple[str, ...]:
    """Program and arguments. Arguments and errors: as ``plan``.

    The user's entrypoint takes the image's command away, too; and the user's command that alone.
    """
    first: tuple[str, ...] = run.entrypoint or ()
    rest = tuple(argv) or run.cmd or ()
    if entrypoint is not None:
        first = (entrypoint,) if isinstance(entrypoint, str) else tuple(entrypoint)
        rest = tuple(argv)
    if first == ("",):
        first = ()
    words = (*first, *rest)
    if words:
        return words
    if not shell:
        hint = "name a command: `atoll run IMAGE -- COMMAND`"
        raise ImageError("the image says nothing of what to run, and has no shell", code="command", hint=hint)
    return (shell,)


def environment_of(run: RunConfig, hostname: str = "") -> dict[str, str]:
    """The variables that the image sets; of one that is set twice the last counts, what is none does not."""
    pairs = (line.partition("=") for line in run.env or ())
    said = {name: value for name, equals, value in pairs if name and equals}
    return {**({"HOSTNAME": hostname} if hostname else {}), **said}


def workdir_of(run: RunConfig, wanted: str | None = None) -> str:
    """Where commands start: an absolute path in its plain form.

    Raises:
        UsageError: ``usage.workdir``: the user's own is not absolute.
    """
    if wanted and not wanted.startswith("/"):
        message = f"the working directory {wanted!r} is not absolute"
        raise UsageError(message, code="workdir", hint="write it from the guest's /")
    return _plain(wanted or run.working_dir)


def _plain(path: str) -> str:
    """An absolute path without empty parts and dots; a relative one begins at the root."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def user_of(said: str) -> str | None:
    """Who runs commands, as the agent takes it: ``:GROUP`` is root in that group, ``USER:`` is USER."""
    name, _, group = said.strip().partition(":")
    if not group:
        return name or None
    return f"{name or 0}:{group}"


def stop_signal_of(run: RunConfig) -> int:
    """The signal that asks what it runs to end. Raises ``ImageError``: ``image.config``: it is none."""
    if not run.stop_signal:
        return signal.SIGTERM
    try:
        return parse_signal(run.stop_signal)
    except ValueError as error:
        raise _senseless(f"its StopSignal is {run.stop_signal[:40]!r}") from error


def parse_signal(text: str) -> int:
    """The number of ``SIGTERM``, ``term``, ``15`` or ``RTMIN+3``. Raises ``ValueError``: there is none."""
    name = text.strip().upper()
    if name.isascii() and name.isdigit() and 0 < int(name) <= _RTMAX:
        return int(name)
    name = name.removeprefix("SIG")
    known = {item.name.removeprefix("SIG"): int(item) for item in signal.Signals}
    known.update(RTMIN=_RTMIN, RTMAX=_RTMAX, CLD=signal.SIGCHLD, POLL=signal.SIGIO)
    if name in known:
        return known[name]
    found = _REAL_TIME.fullmatch(name)
    if found is not None:
        number = _RTMIN + int(found[2]) if found[1] == "MIN+" else _RTMAX - int(found[2])
        if _RTMIN <= number <= _RTMAX:
            return number
    raise ValueError(f"{text!r} is no signal")


def volumes_of(run: RunConfig) -> tuple[str, ...]:
    """Directories whose content is data; they are made where the image lacks them."""
    wanted = map(_plain, run.volumes or ())
    return tuple(sorted({path for path in wanted if path != "/" and "\0" not in path}))


def directories_of(run: RunConfig) -> tuple[str, ...]:
    """All directories that are made where the image lacks them: that of commands, and its volumes."""
    start = workdir_of(run)
    return tuple(sorted({*volumes_of(run), *((start,) if start != "/" and "\0" not in start else ())}))


def ports_of(run: RunConfig) -> tuple[tuple[int, str], ...]:
    """Each port that the image exposes, with ``tcp`` or ``udp``; those of SCTP are left out.

    Raises:
        ImageError: ``image.config``: one is no port, or they are too many.
    """
    found: dict[tuple[int, str], None] = {}
    for text in run.exposed_ports or ():
        match = _PORT.fullmatch(text)
        first = int(match[1]) if match is not None else 0
        last = int(match[2] or first) if match is not None else 0
        if match is None or not 0 < first <= last < 1 << 16:
            raise _senseless(f"it exposes the port {text[:40]!r}")
        if last - first + len(found) >= _MOST_PORTS:
            raise _senseless(f"it exposes more than {_MOST_PORTS} ports")
        protocol = (match[3] or "tcp").lower()
        if protocol != "sctp":
            found.update(((port, protocol), None) for port in range(first, last + 1))
    return tuple(sorted(found))


def _senseless(what: str) -> ImageError:
    hint = "its author has to mend it; what can be said by an option is not looked at there"
    return ImageError(f"the image's configuration makes no sense: {what}", code="config", hint=hint)
