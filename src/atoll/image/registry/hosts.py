"""Connections to hosts: TLS and whom it believes, plain HTTP where that is allowed, proxies.

A host is ``HOST[:PORT]``. Each has a client of its own, since each has its own certificates.
"""

from __future__ import annotations

import ssl
import threading
from typing import NoReturn

import httpx2

from atoll.errors import RegistryError
from atoll.image.registry.patience import AttemptError, Patience
from atoll.image.registry.places import is_lenient, said_of
from atoll.registries import Registries, is_loopback

__all__ = ["Host", "Hosts", "broken", "netloc_of"]

#: Connections are kept for further requests: seconds, and how many.
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30.0)


class Host:
    """One host.

    Attributes:
        name: ``HOST[:PORT]``.
        lenient: it need not prove who it is, and may speak plain HTTP.
        client: what connects to it.
        answered: it has answered at least once.
    """

    def __init__(self, name: str, registries: Registries, patience: Patience) -> None:
        self.name = name
        self.lenient = is_lenient(registries, name)
        self.answered = False
        self.client = _client(name, _context(name, registries, lenient=self.lenient), patience)
        self._probe_time = patience.probe
        self._lock = threading.Lock()
        self._base = "" if self.lenient else f"https://{name}"

    def base(self) -> str:
        """The scheme and host that its addresses begin with. Raises ``AttemptError``."""
        with self._lock:
            if not self._base:
                self._base = self._probed()
            return self._base

    def _probed(self) -> str:
        failures = []
        for scheme in ("https", "http"):
            try:
                with self.client.stream("GET", f"{scheme}://{self.name}/v2/", timeout=self._probe_time):
                    self.answered = True
                    return f"{scheme}://{self.name}"
            except httpx2.TransportError as error:
                failures.append(error)
        raise broken(self, failures[-1]) from failures[-1]


class Hosts:
    """All hosts that were asked for something.

    Args:
        registries: what is said of them.
        patience: for their connections.
    """

    def __init__(self, registries: Registries, patience: Patience) -> None:
        self._registries = registries
        self._patience = patience
        self._lock = threading.Lock()
        self._hosts: dict[str, Host] = {}

    def get(self, name: str) -> Host:
        """The host of that name. Raises ``RegistryError``: ``registry.tls``: its CA file cannot be read."""
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = Host(name, self._registries, self._patience)
            return self._hosts[name]

    def close(self) -> None:
        """Close all connections."""
        for host in self._hosts.values():
            host.client.close()


def netloc_of(url: httpx2.URL) -> str:
    """``HOST[:PORT]`` of an address; a port that its scheme has anyway is not said."""
    return url.netloc.decode("ascii")


def broken(host: Host, error: httpx2.TransportError) -> AttemptError:
    """What a connection that failed means."""
    unproven = _cause(error, ssl.SSLCertVerificationError)
    if unproven is not None:
        reason = getattr(unproven, "verify_message", "") or str(unproven)
        message = f"{host.name} does not prove who it is: {reason}"
        table = f'[registries."{host.name}"]'
        hint = (
            f"give its authority's certificate: ca = in {table} of Atoll's configuration; see also `insecure`"
        )
        return AttemptError(RegistryError(message, code="tls", hint=hint), again=False)
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.ConnectTimeout):
        reason = "no answer in time"
    if _cause(error, ssl.SSLError) is not None and not host.answered:
        hint = f'if it speaks plain HTTP: insecure = true in [registries."{host.name}"]'
        message = f"{host.name} does not speak TLS: {reason}"
        return AttemptError(RegistryError(message, code="tls", hint=hint), again=False)
    if isinstance(error, httpx2.ReadTimeout):
        reason = "it sends nothing any more"
    hint = "check the name and the network" if not host.answered else "check the network"
    failure = RegistryError(f"{host.name} cannot be reached: {reason}", code="unreachable", hint=hint)
    return AttemptError(failure, new=not host.answered)


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kind):
        seen = seen.__cause__ or seen.__context__
    return seen


def _client(name: str, verify: ssl.SSLContext | bool, patience: Patience) -> httpx2.Client:
    try:
        return httpx2.Client(
            verify=verify,
            trust_env=not is_loopback(name),  # no proxy reaches this host's own loopback
            timeout=httpx2.Timeout(patience.stall, connect=patience.connect, pool=None),
            limits=_LIMITS,
            headers={"User-Agent": "atoll", "Accept": "*/*", "Accept-Encoding": "identity"},
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:  # their words may have a password
        hint = "see HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; they are http://HOST:PORT"
        message = "a proxy of the environment cannot be used"
        raise RegistryError(message, code="unreachable", hint=hint) from error


def _context(name: str, registries: Registries, *, lenient: bool) -> ssl.SSLContext | bool:
    said = said_of(registries, name)
    if lenient:
        return False
    if said.ca is None:
        return True
    context = httpx2.create_ssl_context()
    try:
        context.load_verify_locations(said.ca)
    except (OSError, ssl.SSLError) as error:
        _unreadable(name, str(said.ca), error)
    return context


def _unreadable(name: str, file: str, error: OSError) -> NoReturn:
    message = f"the certificates for {name} in {file} cannot be read: {error.strerror or error}"
    hint = f'it must be PEM: see ca in [registries."{name}"] of Atoll\'s configuration'
    raise RegistryError(message, code="tls", hint=hint) from error
