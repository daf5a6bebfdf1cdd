"""What a registry's refusal means: an error with what to do. Pure.

Source: the OCI distribution specification 1.1, "Error Codes"; Docker Hub's usage and rate limits.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping

import msgspec

from atoll.errors import RegistryError
from atoll.image.oci.reference import HUB
from atoll.image.registry.patience import AttemptError, retry_after

__all__ = ["AGAIN", "Said", "login_hint", "refusal", "said_in"]

#: Statuses that may be gone the next time (RFC 9110, 15.5.9, 15.6; RFC 6585, 4).
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})

_MOST_WORDS = 300


class Said(msgspec.Struct, frozen=True):
    """One error of a registry's own words."""

    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[Said, ...] | None = None


def said_in(body: bytes) -> Said:
    """The first error in the body of an answer, on one line; empty if it has none."""
    try:
        first = next(iter(msgspec.json.decode(body, type=_Errors).errors or ()), Said())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Said()
    words = " ".join(first.message.split())[:_MOST_WORDS]
    return Said(first.code[:60], "".join(char for char in words if char.isprintable()))


def login_hint(registry: str, notes: tuple[str, ...] = ()) -> str:
    """How to give Atoll credentials for a registry."""
    where = "" if registry == HUB else f" {registry}"
    hint = f"`docker login{where}` or `podman login {registry}` writes the credentials that Atoll reads too"
    return "; ".join((hint, *notes))


def refusal(
    registry: str, what: str, status: int, headers: Mapping[str, str], body: bytes, *, now: float
) -> AttemptError:
    """The error for an answer that is no success.

    Args:
        registry: whose it is.
        what: was asked for, in words: ``the blob sha256:...``.
        status: of the answer.
        headers: of the answer; names in small letters.
        body: of the answer, or its beginning.
        now: seconds since the epoch.
    """
    said = said_in(body)
    words = f": {said.message}" if said.message else ""
    if status in {401, 403}:
        hint = login_hint(registry)
        return _final(
            RegistryError(f"{registry} does not give {what} to you{words}", code="denied", hint=hint)
        )
    if status == 404:
        hint = "check the name; a private repository may look like none before `docker login`"
        return _final(RegistryError(f"{registry} does not have {what}{words}", code="missing", hint=hint))
    if status == 429:
        return _rate(registry, headers, words, now)
    if status in AGAIN:
        error = RegistryError(
            f"{registry} answers {status} for {what}{words}", code="unavailable", hint="try again later"
        )
        return AttemptError(error, after=retry_after(headers.get("retry-after"), now))
    if said.code in {"DENIED", "UNAUTHORIZED"}:
        return _final(
            RegistryError(f"{registry} refuses {what}{words}", code="denied", hint=login_hint(registry))
        )
    hint = "see the registry's log, or ask who runs it"
    return _final(RegistryError(f"{registry} answers {status} for {what}{words}", code="protocol", hint=hint))


def _final(error: RegistryError) -> AttemptError:
    return AttemptError(error, again=False)


def _rate(registry: str, headers: Mapping[str, str], words: str, now: float) -> AttemptError:
    """Too many requests: for a moment, or a number in hours that only waiting or a login helps against."""
    after = retry_after(headers.get("retry-after"), now)
    limit = re.fullmatch(r"(\d{1,9})(?:;w=(\d{1,9}))?", headers.get("ratelimit-limit", "").strip())
    spent = re.fullmatch(r"0(?:;.*)?", headers.get("ratelimit-remaining", "").strip()) is not None
    allowed = ""
    if limit is not None:
        allowed = f" ({limit[1]} pulls" + (f" in {_duration(int(limit[2]))})" if limit[2] else ")")
    until = "try again later"
    if after is not None:
        try:
            moment = dt.datetime.fromtimestamp(now + after).astimezone()
        except (ValueError, OverflowError, OSError):
            pass
        else:
            until = f"try again after {moment:%H:%M:%S} ({_duration(int(after))})"
    hint = f"{until}; {login_hint(registry)}, and may allow more"
    error = RegistryError(f"{registry} allows no more requests now{allowed}{words}", code="rate", hint=hint)
    return AttemptError(error, after=after, again=not (spent and after is None))


def _duration(seconds: int) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds} s"
