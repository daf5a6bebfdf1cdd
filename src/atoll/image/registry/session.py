"""Requests to registries: with authentication, along redirections, and again where that may help."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx2
import msgspec

from atoll.errors import RegistryError
from atoll.events import Emit, ignore
from atoll.image.registry.answers import refusal
from atoll.image.registry.challenges import Challenge, parse_challenges
from atoll.image.registry.credentials import Keyring
from atoll.image.registry.hosts import Host, Hosts, broken, netloc_of
from atoll.image.registry.patience import AttemptError, Patience, Retrying
from atoll.image.registry.places import Place, api_host
from atoll.image.registry.tokens import TokenAsk, TokenReply, Tokens
from atoll.registries import Registries

__all__ = ["REDIRECTIONS", "Answer", "Ask", "Session"]

#: Statuses of an answer that sends elsewhere (RFC 9110, 15.4).
REDIRECTIONS: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTIONS: Final = 10

#: Bytes that are read of an answer that is an error, and of a token.
_MOST_WORDS: Final = 64 << 10
_MOST_TOKEN: Final = 1 << 20

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a registry.

    Attributes:
        place: the repository.
        what: is asked for, in words.
        address: a path at the registry, or a whole address that it gave.
        method: of HTTP.
        parameters: of the question.
        headers: more fields.
        content: makes the body, for each attempt anew; None for none.
        scopes: what a token must allow; by default to read the repository.
        good: statuses that are no error.
    """

    place: Place
    what: str
    address: str
    method: str = "GET"
    parameters: tuple[tuple[str, str], ...] = ()
    headers: dict[str, str] = {}
    content: Callable[[], Iterable[bytes]] | None = None
    scopes: tuple[str, ...] = ()
    good: frozenset[int] = frozenset({200})


class Answer:
    """An answer whose body is still to be read. Used as a context.

    Attributes:
        host: whose it is, at the end of all redirections.
        status: of HTTP.
        headers: by their names in small letters.
        url: its address.
    """

    def __init__(self, host: Host, response: httpx2.Response) -> None:
        self.host = host
        self.status = response.status_code
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self.url = response.url
        self._response = response

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Read no further; the connection is closed unless all was read."""
        self._response.close()

    def pieces(self) -> Iterator[bytes]:
        """The body as it was sent. Raises ``AttemptError``: the connection broke."""
        try:
            yield from self._response.iter_raw()
        except httpx2.TransportError as error:
            raise broken(self.host, error) from error

    def beginning(self, most: int) -> bytes:
        """The first bytes of the body, or all. Raises as ``pieces``."""
        body = bytearray()
        for piece in self.pieces():
            body += piece
            if len(body) >= most:
                break
        return bytes(body[:most])

    def challenges(self) -> tuple[Challenge, ...]:
        """How one may authenticate."""
        return parse_challenges(self._response.headers.get_list("www-authenticate"))

    def interrupt(self) -> None:
        """Have a thread that waits for the body wait no more."""
        stream = self._response.extensions.get("network_stream")
        connected = stream.get_extra_info("socket") if stream is not None else None
        if connected is not None:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


class Session:
    """What is known of registries while something is had from them or given to them. Threads may share it.

    Args:
        registries: what the configuration says of them.
        keyring: the user's credentials.
        patience: how long anything is tried.
        emit: told of long waits.
    """

    def __init__(
        self,
        registries: Registries,
        *,
        keyring: Keyring | None = None,
        patience: Patience | None = None,
        emit: Emit = ignore,
    ) -> None:
        self.patience = patience or Patience()
        self._emit = emit
        self._hosts = Hosts(registries, self.patience)
        self._tokens = Tokens(keyring or Keyring(), self._fetch_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hosts.close()

    def retrying(self) -> Retrying:
        """What counts the attempts at one thing."""
        return Retrying(self.patience, self._emit)

    def have(self, ask: Ask, take: Callable[[Answer], T]) -> T:
        """What ``take`` makes of the answer, with all patience.

        Args:
            ask: the request.
            take: reads the answer; it may run several times.

        Raises:
            RegistryError: it could not be had.
        """
        retrying = self.retrying()
        while True:
            try:
                with self.open(ask) as answer:
                    return take(answer)
            except AttemptError as trouble:
                retrying.failed(trouble)

    def open(self, ask: Ask) -> Answer:
        """The answer to one attempt.

        Raises:
            AttemptError: it was refused, or the connection broke.
            RegistryError: no further attempt has any sense.
        """
        host = self._hosts.get(api_host(ask.place.registry))
        try:
            answer = self._let_in(host, ask)
        except httpx2.InvalidURL as error:
            raise _protocol(ask.place.registry, "an address that is none") from error
        if answer.status in ask.good:
            return answer
        with answer:
            body = b"" if ask.method == "HEAD" else answer.beginning(_MOST_WORDS)
            registry = ask.place.registry
            raise refusal(registry, ask.what, answer.status, answer.headers, body, now=time.time())

    def _let_in(self, host: Host, ask: Ask) -> Answer:
        scopes = ask.scopes or (ask.place.scope(),)
        for attempt in range(2):
            header = self._tokens.header(ask.place.registry, ask.place.repository, scopes)
            answer = self._redirected(host, ask, header)
            if answer.status != 401 or answer.host is not host:
                return answer
            answer.close()
            if attempt == 0:
                self._tokens.refused(ask.place.registry, scopes, header, answer.challenges())
        raise self._tokens.no_entry(ask.place.registry, ask.place.repository, ask.what)

    def _redirected(self, host: Host, ask: Ask, authorization: str) -> Answer:
        """The answer at the end of all redirections. Only the registry itself gets the authorization."""
        base = httpx2.URL(host.base())
        url = _same_scheme(base.join(ask.address), base)
        for _ in range(_MOST_REDIRECTIONS):
            own = _origin(url) == _origin(base)
            target = host if own else self._stranger(ask, base, url)
            headers = (
                {**ask.headers, "Authorization": authorization} if own and authorization else ask.headers
            )
            request = target.client.build_request(
                ask.method,
                url,
                params=httpx2.QueryParams(url.params).merge(dict(ask.parameters)) if ask.parameters else None,
                headers=headers,
                content=ask.content() if ask.content is not None else None,
            )
            try:
                answer = target.client.send(request, stream=True)
            except httpx2.TransportError as error:
                raise broken(target, error) from error
            target.answered = True
            if answer.status_code not in REDIRECTIONS or ask.method != "GET":
                return Answer(target, answer)
            answer.close()
            ask = msgspec.structs.replace(ask, parameters=())
            url = _same_scheme(answer.url.join(answer.headers.get("location", "")), base)
        raise _protocol(ask.place.registry, "one redirection after another")

    def _stranger(self, ask: Ask, base: httpx2.URL, url: httpx2.URL) -> Host:
        """Another host than the registry, to which that leads; never from TLS to a host without proof."""
        target = self._hosts.get(netloc_of(url)) if url.host and url.scheme in {"http", "https"} else None
        if target is None or (url.scheme == "http" and base.scheme == "https" and not target.lenient):
            raise _protocol(ask.place.registry, f"a redirection to {url.scheme or 'no'}://{url.host}")
        return target

    def _fetch_token(self, ask: TokenAsk) -> TokenReply:
        try:
            realm = httpx2.URL(ask.realm)
        except httpx2.InvalidURL as error:
            raise _protocol(ask.registry, "a realm that is no address") from error
        if realm.scheme not in {"http", "https"} or not realm.host:
            raise _protocol(ask.registry, "a realm that is no address")
        host = self._hosts.get(netloc_of(realm))
        if realm.scheme == "http" and not host.lenient:
            hint = f'insecure = true in [registries."{host.name}"] allows it'
            message = f"{ask.registry} wants the login to be sent to {host.name} in the clear"
            raise RegistryError(message, code="auth", hint=hint)
        headers = {"Authorization": ask.authorization} if ask.authorization else {}
        words = httpx2.QueryParams(ask.parameters)
        try:
            if ask.form:
                headers["Content-Type"] = "application/x-www-form-urlencoded"
                request = host.client.build_request("POST", realm, headers=headers, content=str(words))
            else:
                merged = httpx2.QueryParams([*realm.params.multi_items(), *ask.parameters])
                request = host.client.build_request("GET", realm, headers=headers, params=merged)
            response = host.client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise broken(host, error) from error
        host.answered = True
        with Answer(host, response) as answer:
            return self._token_in(ask, answer)

    def _token_in(self, ask: TokenAsk, answer: Answer) -> TokenReply:
        body = answer.beginning(_MOST_TOKEN)
        if answer.status in {400, 401, 403}:
            user = dict(ask.parameters).get("account", "") or ("the user" if ask.form else "")
            raise self._tokens.refused_login(ask.registry, user)
        if answer.status != 200:
            name, words = answer.host.name, body[:_MOST_WORDS]
            raise refusal(name, "a token", answer.status, answer.headers, words, now=time.time())
        try:
            return msgspec.json.decode(body, type=TokenReply)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _protocol(ask.registry, "a token that cannot be read") from error


def _origin(url: httpx2.URL) -> tuple[str, str]:
    return url.scheme, netloc_of(url)


def _same_scheme(url: httpx2.URL, base: httpx2.URL) -> httpx2.URL:
    """An address at the registry itself by the registry's scheme: behind a proxy it may not know of TLS."""
    if (
        url.host == base.host
        and url.scheme == "http"
        and base.scheme == "https"
        and url.port in {None, base.port}
    ):
        return url.copy_with(scheme="https")
    return url


def _protocol(registry: str, what: str) -> RegistryError:
    message = f"{registry} does not keep to the protocol: it gave {what}"
    return RegistryError(message, code="protocol", hint="is it a registry? ask who runs it")
