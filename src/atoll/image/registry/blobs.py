"""A blob as a stream: it goes on behind what broke off, and is what its digest says or an error.

Source: the OCI distribution specification 1.1, "Pulling blobs"; RFC 9110, 13.1.5 (If-Range) and 14.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NoReturn, Self

from atoll.errors import RegistryError
from atoll.image.registry.patience import AttemptError
from atoll.image.registry.places import Place
from atoll.image.registry.session import Answer, Ask, Session

__all__ = ["Blob", "hasher_of", "range_start", "read_whole"]

#: Bytes without which a connection brought nothing: a peer that gives one at a time is given up.
_LITTLE = 64 << 10


def hasher_of(digest: str) -> hashlib._Hash:
    """What computes digests of that kind."""
    return hashlib.new(digest.partition(":")[0], usedforsecurity=True)


def range_start(field: str) -> int | None:
    """Where a part begins by its field Content-Range; None if that cannot be read."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)", field.strip())
    return int(found[1]) if found else None


class Blob:
    """The bytes of a blob. Used as a context; ``close`` may come from another thread and ends a read there.

    Args:
        session: with its registries.
        places: where it may be, in this order.
        digest: of it.
        size: of it.
    """

    def __init__(self, session: Session, places: Sequence[Place], digest: str, size: int) -> None:
        self._session = session
        self._places = list(places)
        self._digest = digest
        self._size = size
        self._hasher = hasher_of(digest)
        self._at = 0
        self._pending = memoryview(b"")
        self._answer: Answer | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._retrying = session.retrying()
        self._closed = False
        self._etag = ""
        self._parts = True
        self._begun_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._disconnect()

    def close(self) -> None:
        """End it: a read that another thread is in raises."""
        self._closed = True
        self._retrying.ended.set()
        answer = self._answer
        if answer is not None:
            answer.interrupt()

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end.

        The last of them are given only when the digest of all is right.

        Raises:
            RegistryError: ``registry.digest``, ``registry.truncated``, or why it cannot be had.
        """
        if not self._pending and self._at < self._size:
            self._pending = memoryview(self._next())
        if not self._size:
            self._check()
        found = bytes(self._pending[:size])
        self._pending = self._pending[size:]
        return found

    def _next(self) -> bytes:
        """The next bytes that were not had before, checked."""
        piece = self._piece()
        self._at += len(piece)
        if self._at > self._size:
            self._too_large()
        self._hasher.update(piece)
        if self._at - self._begun_at >= _LITTLE:
            self._retrying.progressed()
        if self._at == self._size:
            self._check()
            self._disconnect()
        return piece

    def _piece(self) -> bytes:
        """The next bytes, however often they have to be asked for."""
        while True:
            if self._closed:
                raise self._error("truncated", "was closed while it was read")
            try:
                if self._answer is None:
                    self._connect()
                return next(self._pieces, b"") or self._cut_off()
            except AttemptError as trouble:
                self._recover(trouble)
            except RegistryError as error:
                if error.code == "registry.digest":
                    raise
                self._recover(AttemptError(error, again=False))

    def _recover(self, trouble: AttemptError) -> None:
        """Wait, or go on at the next place where it may be."""
        if self._answer is not None:
            self._disconnect()
            if trouble.error.code == "registry.unreachable":
                what = f"broke off after {self._at} of {self._size} bytes: {trouble.error.message}"
                trouble = AttemptError(self._error("truncated", what))
        if self._closed:
            raise self._error("truncated", "was closed while it was read") from trouble
        try:
            self._retrying.failed(trouble)
        except RegistryError:
            if len(self._places) == 1:
                raise
            del self._places[0]
            self._etag, self._parts = "", True
            self._retrying.progressed()

    def _connect(self) -> None:
        """Ask for what is not here yet."""
        place = self._places[0]
        self._begun_at = self._at
        headers = {}
        if self._at and self._parts:
            headers["Range"] = f"bytes={self._at}-"
            if self._etag:
                headers["If-Range"] = self._etag
        ask = Ask(
            place=place,
            what=f"the blob {self._digest}",
            address=place.path("blobs", self._digest),
            headers=headers,
            good=frozenset({200, 206, 416}),
        )
        answer = self._session.open(ask)
        try:
            self._pieces = self._wanted(answer)
        except BaseException:
            answer.close()
            raise
        self._answer = answer
        if self._closed:
            answer.interrupt()  # it was not yet known to whoever closed this

    def _wanted(self, answer: Answer) -> Iterator[bytes]:
        """The bytes of an answer behind those that are here already."""
        known = self._at
        if answer.status == 206 and range_start(answer.headers.get("content-range", "")) == self._at:
            known = 0
        elif answer.status != 200:
            self._parts = False  # the next time from the beginning
            raise AttemptError(self._error("protocol", "is not to be had from its middle on"))
        self._etag = answer.headers.get("etag", "")
        if not self._etag.startswith('"'):
            self._etag = ""  # a weak one says nothing of bytes (RFC 9110, 13.1.5)
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._size - self._at + known:
            self._too_large()
        return _behind(answer.pieces(), known)

    def _disconnect(self) -> None:
        answer, self._answer = self._answer, None
        self._pieces = iter(())
        if answer is not None:
            answer.close()

    def _check(self) -> None:
        name, _, wanted = self._digest.partition(":")
        found = self._hasher.hexdigest()
        if found != wanted:
            raise self._error("digest", f"arrived with other content: its digest is {name}:{found}")

    def _too_large(self) -> NoReturn:
        raise self._error("digest", f"is larger than the {self._size} bytes that it is said to have")

    def _cut_off(self) -> NoReturn:
        raise AttemptError(self._error("truncated", f"ended after {self._at} of {self._size} bytes"))

    def _error(self, code: str, what: str) -> RegistryError:
        message = f"the blob {self._digest} of {self._places[0]} {what}"
        if code == "digest":
            return RegistryError(
                message, code="digest", hint="nothing of it was kept; ask who runs the registry"
            )
        if code == "protocol":
            return RegistryError(message, code="protocol", hint="ask who runs the registry")
        return RegistryError(message, code="truncated", hint="run the same command again")


def _behind(pieces: Iterator[bytes], known: int) -> Iterator[bytes]:
    """``pieces`` without their first ``known`` bytes, and without empty ones."""
    for piece in pieces:
        if len(piece) > known:
            yield piece[known:]
        known = max(0, known - len(piece))


def read_whole(session: Session, places: Sequence[Place], digest: str, size: int) -> bytes:
    """A small blob. Raises ``RegistryError``."""
    pieces = []
    with Blob(session, places, digest, size) as blob:
        while piece := blob.read(size or 1):
            pieces.append(piece)
    return b"".join(pieces)
