"""Authorization for hosts: passwords as they are, or tokens that are had for them and kept while they hold.

Source: Docker's "Token Authentication Specification" and "OAuth2 Token Authentication"; RFC 9110, 11.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from atoll.errors import RegistryError
from atoll.image.registry.answers import login_hint
from atoll.image.registry.challenges import Challenge
from atoll.image.registry.credentials import Credentials, Keyring

__all__ = ["TokenAsk", "TokenReply", "Tokens", "scopes_of"]

#: Seconds that a token holds if it does not say (Docker's specification), and at most, for this memory.
_USUAL, _MOST = 60, 86_400

#: The part of its time after which a token is had anew, before it fails in the middle of something.
_FRESH = 0.85


class TokenAsk(msgspec.Struct, frozen=True):
    """A question for a token.

    Attributes:
        registry: for which it is.
        realm: address of the server that gives tokens.
        parameters: of the question; a name may be there several times.
        authorization: the field; empty for none.
        form: the parameters are sent as a form (POST), since there is a secret among them.
    """

    registry: str
    realm: str
    parameters: tuple[tuple[str, str], ...]
    authorization: str = ""
    form: bool = False

    def __repr__(self) -> str:
        return f"TokenAsk({self.registry!r}, {self.realm!r}, ...)"


class TokenReply(msgspec.Struct, frozen=True):
    """What such a server says."""

    token: str = ""
    access_token: str = ""
    expires_in: float = _USUAL
    refresh_token: str = ""

    def __repr__(self) -> str:
        return f"TokenReply(expires_in={self.expires_in})"


class _Kept(msgspec.Struct, frozen=True):
    header: str
    until: float


class Tokens:
    """What is known of how to be let in.

    Args:
        keyring: the user's credentials.
        fetch: asks a server for a token; raises ``AttemptError`` or ``RegistryError``.
        clock: seconds.
    """

    def __init__(
        self,
        keyring: Keyring,
        fetch: Callable[[TokenAsk], TokenReply],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keyring = keyring
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._challenges: dict[str, Challenge] = {}
        self._kept: dict[tuple[str, tuple[str, ...]], _Kept] = {}
        self._refreshed: dict[str, str] = {}

    def header(self, registry: str, repository: str, scopes: tuple[str, ...]) -> str:
        """The field Authorization for a request; empty as long as nothing was asked for.

        Args:
            registry: ``HOST[:PORT]``.
            repository: for which it is.
            scopes: what a token must allow.
        """
        with self._lock:
            challenge = self._challenges.get(registry)
            if challenge is None:
                return ""
            if challenge.scheme == "basic":
                found = self._keyring.find(registry, repository)
                return found.basic() if found is not None else ""
            kept = self._kept.get((registry, scopes))
            if kept is None or kept.until <= self._clock():
                kept = self._kept[registry, scopes] = self._had(registry, repository, scopes, challenge)
            return kept.header

    def refused(self, registry: str, scopes: tuple[str, ...], used: str, found: Sequence[Challenge]) -> None:
        """Learn from an answer 401 how it is to be tried again.

        Args:
            registry: whose answer it is.
            scopes: of the request.
            used: the field Authorization that it had.
            found: in the answer.

        Raises:
            RegistryError: ``registry.protocol``: it wants nothing that is known here.
        """
        fitting = [one for one in found if one.scheme == "bearer" and "realm" in one.parameters]
        fitting += [one for one in found if one.scheme == "basic"]
        if not fitting:
            names = ", ".join(one.scheme[:20] for one in found) or "nothing"
            message = f"{registry} wants a login of a kind that Atoll does not know: {names}"
            raise RegistryError(
                message, code="protocol", hint="Atoll knows user and password, and Docker's tokens"
            )
        with self._lock:
            self._challenges[registry] = fitting[0]
            kept = self._kept.get((registry, scopes))
            if kept is not None and kept.header == used:
                del self._kept[registry, scopes]

    def no_entry(self, registry: str, repository: str, what: str) -> RegistryError:
        """The error for a request that was refused with all that is known."""
        found = self._keyring.find(registry, repository)
        notes = tuple(self._keyring.notes)
        if found is None:
            message = f"{registry} gives {what} to nobody without a login, if it has it"
            return RegistryError(message, code="auth", hint=login_hint(registry, notes))
        challenge = self._challenges.get(registry)
        if challenge is not None and challenge.scheme == "basic":
            message = f"{registry} does not accept the password of {found.username or 'the user'}"
            return RegistryError(message, code="auth", hint=login_hint(registry, notes))
        who = found.username or "the user whose token there is"
        message = f"{registry} does not give {what} to {who}, or does not have it"
        return RegistryError(
            message, code="denied", hint="check the name, or ask who owns the repository for access"
        )

    def refused_login(self, registry: str, user: str) -> RegistryError:
        """The error for credentials that the server of tokens refused."""
        who = f"the credentials of {user}" if user else "a user without credentials"
        return RegistryError(
            f"{registry} does not accept {who}",
            code="auth",
            hint=login_hint(registry, tuple(self._keyring.notes)),
        )

    def _had(self, registry: str, repository: str, scopes: tuple[str, ...], challenge: Challenge) -> _Kept:
        found = self._keyring.find(registry, repository)
        if found is not None and found.registry_token:
            return _Kept(f"Bearer {found.registry_token}", self._clock() + _MOST)
        began = self._clock()
        asked = self._ask(registry, scopes_of(challenge, scopes), challenge, found)
        reply = self._fetch(asked)
        token = reply.token or reply.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise RegistryError(
                f"{registry}'s server of tokens gave none", code="protocol", hint="ask who runs the registry"
            )
        if reply.refresh_token and found is not None and found.identity_token:
            self._refreshed[registry] = reply.refresh_token
        holds = min(max(reply.expires_in, 1.0), _MOST)
        return _Kept(f"Bearer {token}", began + holds * _FRESH)

    def _ask(
        self, registry: str, scopes: tuple[str, ...], challenge: Challenge, found: Credentials | None
    ) -> TokenAsk:
        realm = challenge.parameters["realm"]
        service = challenge.parameters.get("service", "")
        common = (("service", service),) if service else ()
        if found is not None and found.identity_token:
            secret = self._refreshed.get(registry, found.identity_token)
            form = (
                ("grant_type", "refresh_token"),
                ("client_id", "atoll"),
                ("refresh_token", secret),
                *common,
            )
            return TokenAsk(registry, realm, (*form, ("scope", " ".join(scopes))), form=True)
        words = (*common, *(("scope", scope) for scope in scopes))
        if found is None:
            return TokenAsk(registry, realm, words)
        return TokenAsk(registry, realm, (*words, ("account", found.username)), found.basic())


def scopes_of(challenge: Challenge, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """What to ask a token for: what is wanted, and what the server says of things that are not."""
    named = tuple(challenge.parameters.get("scope", "").split())
    things = {scope.rpartition(":")[0] for scope in wanted}
    return (*wanted, *(scope for scope in named if scope.rpartition(":")[0] not in things))
