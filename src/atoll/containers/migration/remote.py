"""A Docker engine behind a unix socket: questions (Docker Engine API), and archives that stream."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from atoll.errors import EngineError

__all__ = ["API", "Remote"]

#: The newest version of the API whose answers are known here; older ones are asked in their own.
API = (1, 45)

#: Bytes of an answer that is held as a whole: another engine's is not trusted.
_MOST = 64 << 20

#: Seconds in which a socket takes the connection, and an engine says something, which it may write first.
_TIMES = httpx2.Timeout(None, connect=30.0, read=900.0)

Params = Mapping[str, str | Sequence[str]]


class Remote:
    """One engine. Belongs to one event loop, and is used in an ``async with``.

    Args:
        socket: where it listens.
        name: what errors call it.
        writable: False refuses whatever would change it, before it is asked.
    """

    def __init__(self, socket: Path, name: str, *, writable: bool = False) -> None:
        self.socket = socket
        self.name = name
        self.writable = writable
        self._prefix = ""
        # No TLS on a unix socket: by default the client loads all authorities, which takes 0.1 s.
        unused = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx2.AsyncHTTPTransport(uds=str(socket), verify=unused, trust_env=False)
        self._client = httpx2.AsyncClient(
            transport=transport,
            base_url="http://docker",
            timeout=_TIMES,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        try:
            found = await self.ask("GET", "/version")
            newest, oldest = (_version(found.get(key)) for key in ("ApiVersion", "MinAPIVersion"))
        except BaseException:
            await self._client.aclose()
            raise
        major, minor = max(min(newest, API), oldest)
        self._prefix = f"/v{major}.{minor}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def ask(self, method: str, path: str, *, params: Params | None = None, body: Any = None) -> Any:
        """What the engine answers: decoded JSON, or None if it says nothing.

        Args:
            method: such as ``GET``.
            path: without the version.
            params: of the query.
            body: sent as JSON; bytes are sent as a tar archive.

        Raises:
            EngineError: ``engine.unreachable``; ``engine.not_found``, ``engine.conflict`` or
                ``engine.answer``: what it has against it.
        """
        if isinstance(body, bytes):
            content, kind = body, "application/x-tar"
        else:
            content, kind = b"" if body is None else msgspec.json.encode(body), "application/json"
        headers = {"Content-Type": kind} if content else {}
        async with self._asked(method, path, params, headers, content) as answer:
            return self._decoded(await self._body(answer, f"{method} {path}"), f"{method} {path}")

    @asynccontextmanager
    async def pull(self, path: str, params: Params) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer to ``GET`` in pieces, as they come. Raises as ``ask``, also while it is read."""
        async with self._asked("GET", path, params, {}, b"") as answer:
            yield self._pieces(answer)

    async def push(
        self, method: str, path: str, pieces: AsyncIterator[bytes], *, params: Params | None = None
    ) -> bytes:
        """Send a tar archive in pieces; what is answered. Raises as ``ask``, and what ``pieces`` raises."""
        headers = {"Content-Type": "application/x-tar"}
        async with self._asked(method, path, params, headers, pieces) as answer:
            return await self._body(answer, f"{method} {path}")

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Mapping[str, str],
        content: bytes | AsyncIterator[bytes],
    ) -> AsyncIterator[httpx2.Response]:
        if not self.writable and method not in {"GET", "HEAD"}:
            raise EngineError(f"{self.name} is only read: {method} {path} is not sent", code="read_only")
        request = self._client.build_request(
            method, self._prefix + path, params=params, headers=headers, content=content
        )
        try:
            answer = await self._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise self._lost(error) from error
        try:
            if answer.is_error:
                said = await self._body(answer, path)
                raise self._refused(f"{method} {path}", answer.status_code, said)
            yield answer
        finally:
            await answer.aclose()

    async def _pieces(self, answer: httpx2.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        except httpx2.TransportError as error:
            raise self._lost(error) from error

    async def _body(self, answer: httpx2.Response, question: str) -> bytes:
        body = bytearray()
        async for piece in self._pieces(answer):
            body += piece
            if len(body) > _MOST:
                raise EngineError(f"{self.name}: the answer to {question} is too long", code="answer")
        return bytes(body)

    def _decoded(self, body: bytes, question: str) -> Any:
        if not body.strip():
            return None
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"{self.name}: the answer to {question}: {error}", code="answer") from error

    def _refused(self, question: str, status: int, said: bytes) -> EngineError:
        try:
            text = str(msgspec.json.decode(said)["message"])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
            text = said[:500].decode(errors="replace").strip()
        message = f"{self.name} answered {question} with {status}: {text}"
        if status == 404:
            return EngineError(message, code="not_found")
        if status == 409:
            return EngineError(message, code="conflict")
        return EngineError(message, code="answer")

    def _lost(self, error: Exception) -> EngineError:
        message = f"{self.name} at {self.socket} cannot be reached: {str(error) or type(error).__name__}"
        return EngineError(
            message, code="unreachable", hint="start it, and run the same command again: it goes on"
        )


def _version(text: Any) -> tuple[int, int]:
    """A version of the API as numbers; 1.24 is the oldest that has all that is asked here."""
    major, _, minor = str(text).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (1, 24)
