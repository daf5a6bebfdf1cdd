"""Images and containers of an engine that runs on this host, asked for through its socket.

Source: the Docker Engine API 1.24 and later, ``GET /images/NAME/get`` and ``GET /containers/NAME/export``,
which podman's service has, too. Which socket it is, is found out as the Docker client does.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import stat
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from atoll.errors import ImageError
from atoll.image.oci.source import Stream
from atoll.image.refusing import refuse

__all__ = ["CONTAINER", "IMAGE", "endpoint_of", "opened", "socket_of"]

#: What places begin with that an engine is asked for.
IMAGE, CONTAINER = "docker://", "container:"

_UNIX = "unix://"
_USUAL = Path("/var/run/docker.sock")

#: Seconds in which an engine says something: it may compute digests of all layers before it does.
_PATIENCE = 600.0

#: Bytes of an answer of failure.
_MOST_SAID = 4096


def socket_of(environment: Mapping[str, str], home: Path, others: Sequence[Path] = ()) -> Path:
    """The socket of the engine that the Docker client uses.

    Args:
        environment: variables of the client.
        home: the user's directory.
        others: sockets that are tried if the client uses none of its own, in their order.

    Raises:
        ImageError: ``image.engine``: there is none, or it is of another host.
    """
    client = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    host = environment.get("DOCKER_HOST") or endpoint_of(client, _context(client, environment))
    if host.startswith(_UNIX):
        return Path(host.removeprefix(_UNIX))
    if host:
        hint = "save the image to a file there, and import that"
        raise ImageError(f"{host} is no socket of this host", code="engine", hint=hint)
    runtime = environment.get("XDG_RUNTIME_DIR")
    places = [_USUAL, *([Path(runtime) / "docker.sock"] if runtime else []), *others]
    for place in places:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(place.stat().st_mode):
                return place
    hint = "start it, or name its socket in DOCKER_HOST, as unix:///run/docker.sock"
    raise ImageError("no engine with a socket of Docker's runs here", code="engine", hint=hint)


def _context(client: Path, environment: Mapping[str, str]) -> str:
    """The context that the client uses; empty for none."""
    named = environment.get("DOCKER_CONTEXT", "")
    if not named:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            named = str(json.loads((client / "config.json").read_bytes()).get("currentContext") or "")
    return "" if named == "default" else named


def endpoint_of(client: Path, name: str) -> str:
    """The address of a context of the Docker client with its settings in ``client``; empty if it has none."""
    key = hashlib.sha256(name.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        meta = json.loads((client / "contexts/meta" / key / "meta.json").read_bytes())
        return str(meta["Endpoints"]["docker"]["Host"])
    return ""


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._place = place

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(os.fspath(self._place))
        except OSError:
            self.sock.close()
            raise


class _Answer:
    """The body of an answer, whose failures are told as those of an engine."""

    def __init__(self, answer: http.client.HTTPResponse, place: Path) -> None:
        self._answer = answer
        self._place = place

    def read(self, size: int, /) -> bytes:
        with _named(self._place):
            return self._answer.read(size)


@contextmanager
def _named(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "see whether the engine runs, and whether this user may use its socket"
        raise ImageError(
            f"the engine at {place} does not answer: {said}", code="engine", hint=hint
        ) from error


@contextmanager
def opened(place: Path, wanted: str) -> Iterator[Stream]:
    """The archive that an engine makes of an image, or of a container's file system.

    Args:
        place: the engine's socket.
        wanted: ``docker://IMAGE`` or ``container:NAME``.

    Raises:
        ImageError: ``image.engine``: the engine does not answer, also while the stream is read;
            ``image.unknown``: it does not have what is wanted.
    """
    is_image = wanted.startswith(IMAGE)
    name = wanted.removeprefix(IMAGE if is_image else CONTAINER)
    if not name:
        raise refuse(f"{wanted} names nothing", hint="write docker://NAME[:TAG] or container:NAME")
    quoted = urllib.parse.quote(name, safe="/:@" if is_image else "")
    path = f"/images/{quoted}/get" if is_image else f"/containers/{quoted}/export"
    connection = _Connection(place)
    try:
        with _named(place):
            connection.request("GET", path)
            answer = connection.getresponse()
            said = b"" if answer.status == http.HTTPStatus.OK else answer.read(_MOST_SAID)
        if answer.status == http.HTTPStatus.NOT_FOUND:
            hint = f"see `docker {'images' if is_image else 'ps --all'}`"
            message = f"the engine at {place} has no {'image' if is_image else 'container'} {name!r}"
            raise ImageError(message, code="unknown", hint=hint, detail=_message(said))
        if answer.status != http.HTTPStatus.OK:
            message = f"the engine at {place} answered {answer.status}"
            raise ImageError(message, code="engine", hint="see the engine's log", detail=_message(said))
        yield _Answer(answer, place)
    finally:
        connection.close()


def _message(said: bytes) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(said).get("message", ""))
    return said.decode(errors="replace").strip()
