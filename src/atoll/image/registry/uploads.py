"""Blobs into a repository.

A blob whose digest is known is sent in one request (POST, PUT); one that is compressed on the way as a stream
(POST, PATCH, PUT), as its digest is known at its end. What breaks off is sent again from its beginning.
Source: the OCI distribution specification 1.1, "Push".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from atoll.errors import AtollError, RegistryError
from atoll.image.oci.documents import Descriptor
from atoll.image.oci.source import LayerSource
from atoll.image.registry.packed import Packed
from atoll.image.registry.patience import AttemptError
from atoll.image.registry.places import Place
from atoll.image.registry.session import REDIRECTIONS, Answer, Ask, Session

__all__ = ["Uploads", "pieces_of"]

#: Bytes of a piece of a body.
_PIECE = 256 << 10

#: Other repositories that are asked for a blob.
_MOST_NEIGHBOURS = 3

_BYTES = {"Content-Type": "application/octet-stream"}

T = TypeVar("T")


def pieces_of(layer: LayerSource) -> Iterator[bytes]:
    """The bytes of a layer."""
    with layer.open() as stream:
        while piece := stream.read(_PIECE):
            yield piece


class Uploads:
    """A repository that takes blobs. Threads may share it.

    Args:
        session: with its registry.
        place: the repository.
        neighbours: others of the same registry that may have the same blobs.
        told: called with the number of bytes that were sent so far.

    Attributes:
        sent: bytes of blobs, those that were sent again among them.
    """

    def __init__(
        self, session: Session, place: Place, neighbours: tuple[str, ...], told: Callable[[int], None]
    ) -> None:
        self.sent = 0
        self._session = session
        self._place = place
        self._neighbours = neighbours[:_MOST_NEIGHBOURS]
        self._told = told
        self._lock = threading.Lock()
        others = (Place(place.registry, one).scope() for one in self._neighbours)
        self._scopes = (place.scope("pull,push"), *others)

    def has(self, digest: str) -> bool:
        """Whether the repository has a blob, or has got it from a neighbour. Raises ``RegistryError``."""
        address = self._place.path("blobs", digest)
        # Whoever sends elsewhere for it has it; an address that is signed for GET is no good for HEAD.
        ask = self._ask(f"the blob {digest}", address, "HEAD", good={200, 404, *REDIRECTIONS})
        if self._session.have(ask, lambda answer: answer.status != 404):
            return True
        return any(self._mounted(digest, neighbour) for neighbour in self._neighbours)

    def send(self, digest: str, size: int, body: Callable[[], Iterable[bytes]]) -> None:
        """Send a blob.

        Args:
            digest: of it.
            size: of it.
            body: its bytes, for each attempt anew.

        Raises:
            RegistryError: it was not taken.
        """
        self._upload(lambda begun: self._end(begun, digest, size, lambda: self._counted(body())))

    def send_packed(self, layer: LayerSource, diff_id: str) -> Descriptor:
        """Send a tar, compressed on its way; what it became.

        Raises:
            RegistryError: it was not taken.
            ImageError: ``image.archive``: the tar is not that of ``diff_id``.
        """

        def attempt(begun: str) -> Descriptor:
            bodies = iter([Packed(pieces_of(layer), diff_id)])
            packed: list[Packed] = []

            def content() -> Iterator[bytes]:
                again = RegistryError(
                    f"{self._place.registry} wanted a new login in the middle of a layer", code="truncated"
                )
                one = next(bodies, None)
                if one is None:  # its bytes are gone: the whole upload begins anew
                    raise AttemptError(again)
                packed.append(one)
                yield from self._counted(one)

            ask = self._ask(
                f"an upload of the layer {diff_id}", begun, "PATCH", content=content, good={202, 204}
            )
            with self._session.open(ask) as answer:
                following = _location(answer) or begun
            form = packed[0].descriptor()
            self._end(following, form.digest, 0, lambda: iter(()))
            return form

        return self._upload(attempt)

    def put_manifest(self, tag: str, data: bytes, digest: str, media_type: str) -> None:
        """Give the repository an image under a tag. Raises ``RegistryError``: it has not got it."""
        ask = Ask(
            place=self._place,
            what=f"an image as {self._place.repository}:{tag}",
            address=self._place.path("manifests", tag),
            method="PUT",
            headers={"Content-Type": media_type, "Content-Length": str(len(data))},
            content=lambda: iter((data,)),
            scopes=self._scopes,
            good=frozenset({200, 201, 202}),
        )
        got = self._session.have(ask, lambda answer: answer.headers.get("docker-content-digest", digest))
        if got != digest:
            message = f"{self._place.registry} took the manifest {digest} for {got[:80]}"
            raise RegistryError(message, code="digest", hint="ask who runs the registry")

    def _mounted(self, digest: str, neighbour: str) -> bool:
        ask = self._ask(
            f"the blob {digest} of {neighbour}",
            self._place.path("blobs", "uploads/"),
            "POST",
            parameters=(("mount", digest), ("from", neighbour)),
            good={201, 202, 400, 403, 404, 405},
        )
        try:
            status, begun = self._session.have(ask, lambda answer: (answer.status, _location(answer)))
        except RegistryError as error:
            if error.code in {"registry.auth", "registry.denied"}:
                return False  # of the neighbour only
            raise
        if status == 202 and begun:
            self._cancel(begun)
        return status == 201

    def _upload(self, attempt: Callable[[str], T]) -> T:
        """What ``attempt`` makes of the address of a new upload, with all patience."""
        retrying = self._session.retrying()
        ask = self._ask("an upload", self._place.path("blobs", "uploads/"), "POST", good={202})
        while True:
            begun = ""
            try:
                with self._session.open(ask) as answer:
                    begun = _location(answer)
                if not begun:
                    self._refuse("an upload without an address")
                return attempt(begun)
            except AttemptError as trouble:
                self._cancel(begun)
                retrying.failed(trouble)
            except AtollError:
                self._cancel(begun)
                raise

    def _refuse(self, what: str) -> NoReturn:
        message = f"{self._place.registry} does not keep to the protocol: it gave {what}"
        raise RegistryError(message, code="protocol", hint="is it a registry? ask who runs it")

    def _end(self, begun: str, digest: str, size: int, body: Callable[[], Iterable[bytes]]) -> None:
        """End an upload with the blob's digest, and with its bytes if they were not sent before."""
        ask = self._ask(
            f"an upload of the blob {digest}",
            begun,
            "PUT",
            parameters=(("digest", digest),),
            headers={"Content-Length": str(size)},
            content=body,
            good={201, 204},
        )
        with self._session.open(ask):
            pass

    def _cancel(self, begun: str) -> None:
        """Forget an upload; a registry that does not know how does so by itself."""
        if not begun:
            return
        try:
            with self._session.open(self._ask("an upload", begun, "DELETE", good=set(range(200, 600)))):
                pass
        except (AttemptError, RegistryError):
            return

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            with self._lock:
                self.sent += len(piece)
                self._told(self.sent)

    def _ask(
        self,
        what: str,
        address: str,
        method: str,
        *,
        good: set[int],
        parameters: tuple[tuple[str, str], ...] = (),
        headers: dict[str, str] | None = None,
        content: Callable[[], Iterable[bytes]] | None = None,
    ) -> Ask:
        return Ask(
            place=self._place,
            what=what,
            address=address,
            method=method,
            parameters=parameters,
            headers={**(_BYTES if content is not None else {}), **(headers or {})},
            content=content,
            scopes=self._scopes,
            good=frozenset(good),
        )


def _location(answer: Answer) -> str:
    """The address in the field Location; empty if there is none."""
    found = answer.headers.get("location", "")
    return str(answer.url.join(found)) if found else ""
