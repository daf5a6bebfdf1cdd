"""Who the user is at a registry: what Docker's and Podman's clients keep in files, or give to helpers.

Sources: docker/cli, "docker login" (credential stores and helpers); containers-auth.json(5). A helper is a
program ``docker-credential-NAME``; it gets the registry on its stdin and writes JSON on its stdout.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from atoll import process
from atoll.errors import ProcessError
from atoll.image.oci.reference import HUB

__all__ = ["Credentials", "Keyring", "files_of", "keys_of"]

#: How Docker's files call the default registry.
_HUB_KEY: Final = f"https://index.{HUB}/v1/"

#: What a helper gives as the user's name where the secret is a token to get others with.
_NOBODY: Final = "<token>"

#: Seconds for a helper: it may ask the user at the desktop to unlock a store.
_HELPER_TIME: Final = 60.0
_MOST_FILE: Final = 4 << 20


class Credentials(msgspec.Struct, frozen=True):
    """Who the user is. Its text shows no secret.

    Attributes:
        username: empty with a token.
        password: of the user.
        identity_token: with which tokens are had (``identitytoken``).
        registry_token: that is sent as it is (``registrytoken``).
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ...)"

    def basic(self) -> str:
        """The field Authorization by which the password is said (RFC 7617)."""
        words = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(words).decode()}"


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Entry] | None = None
    creds_store: str = ""
    cred_helpers: dict[str, str] | None = None


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def files_of(environment: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    """The files that may have credentials; the first that has some for a registry is right."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    docker = environment.get("DOCKER_CONFIG") or (None if home is None else home / ".docker")
    settings = environment.get("XDG_CONFIG_HOME") or (None if home is None else home / ".config")
    places = (
        (environment.get("REGISTRY_AUTH_FILE"), ""),
        (docker, "config.json"),
        (runtime, "containers/auth.json"),
        (settings, "containers/auth.json"),
    )
    return tuple(Path(place, name) for place, name in places if place)


def keys_of(host: str, repository: str) -> tuple[str, ...]:
    """Under what the credentials for a repository may be kept, the most particular first."""
    words = repository.split("/") if repository else []
    names = ["/".join((host, *words[:count])) for count in range(len(words), -1, -1)]
    return (*names, _HUB_KEY, f"index.{HUB}") if host == HUB else tuple(names)


class Keyring:
    """The user's credentials.

    Attributes:
        notes: why some could not be had, for people; no secrets.
    """

    def __init__(self, environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._files = files_of(environment, home or _home())
        self._known: dict[tuple[str, str], Credentials | None] = {}
        self.notes: list[str] = []

    def find(self, host: str, repository: str = "") -> Credentials | None:
        """The credentials for a repository of a registry; None if there are none. Looked for once only."""
        if (host, repository) not in self._known:
            self._known[host, repository] = self._looked_for(host, repository)
        return self._known[host, repository]

    def _looked_for(self, host: str, repository: str) -> Credentials | None:
        for file in self._files:
            content = self._read(file)
            found = None if content is None else self._in_file(content, host, repository)
            if found is not None:
                return found
        return None

    def _in_file(self, content: _File, host: str, repository: str) -> Credentials | None:
        keys = keys_of(host, repository)
        server = _HUB_KEY if host == HUB else host
        helpers = content.cred_helpers or {}
        named = next((helpers[key] for key in keys if key in helpers), content.creds_store)
        asked = self._helped(named, server) if named else None
        if asked is not None:
            return asked
        entries = content.auths or {}
        found = (entries[key] for key in (*keys, *_spelt_otherwise(entries, host)) if key in entries)
        return next(filter(None, map(_credentials, found)), None)

    def _read(self, file: Path) -> _File | None:
        try:
            with file.open("rb") as stream:
                return msgspec.json.decode(stream.read(_MOST_FILE), type=_File)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._note(f"{file} cannot be read: {error.strerror}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._note(f"{file} is not the JSON of a client's configuration")
        return None

    def _helped(self, name: str, server: str) -> Credentials | None:
        """What a helper knows. Its own words are not passed on: they might hold a secret."""
        program = f"docker-credential-{name}"
        path = process.find(program) if re.fullmatch(r"[A-Za-z0-9._-]+", name) else None
        if path is None:
            self._note(f"{program} is not installed")
            return None
        try:
            done = process.run([path, "get"], stdin=server.encode(), timeout=_HELPER_TIME)
            answer = msgspec.json.decode(done.stdout, type=_Answer)
        except ProcessError as error:  # so it is where it has none
            self._note(f"{program} gave nothing for {server}: {error.message}")
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._note(f"{program} wrote something that is not JSON")
            return None
        if answer.username == _NOBODY:
            return Credentials(identity_token=answer.secret)
        return Credentials(answer.username, answer.secret) if answer.username else None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _spelt_otherwise(entries: Mapping[str, _Entry], host: str) -> Iterator[str]:
    """Keys as older clients wrote them: ``https://HOST/v1/``."""
    for key in entries:
        name, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
        if name == host and path.strip("/") in {"", "v1", "v2"}:
            yield key


def _credentials(entry: _Entry) -> Credentials | None:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            words = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            words = ""
        username, _, password = words.partition(":")
        password = password.rstrip("\0")
    if entry.identitytoken or entry.registrytoken:
        return Credentials(username, password, entry.identitytoken, entry.registrytoken)
    return Credentials(username, password) if username else None
