"""Having a guest believe certificates: its files are written, and none of its programs has to run.

`update-ca-certificates` would do the same, in 10 seconds where the CPU is emulated. Whoever runs it in the
guest later finds the certificates among those of the guest's own administrator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from atoll.errors import FileError, FileMissingError
from atoll.guest.files import Files
from atoll.vm.inheriting.certificates import certificates_of
from atoll.vm.inheriting.inheritance import CERTIFICATES, Certificate
from atoll.vm.inheriting.rendering import with_certificates

__all__ = ["Believing", "read_text", "write_text"]

#: The bundles of Debian and Alpine, Fedora, SUSE; the first is made where there is none. With each, where its
#: system looks for certificates of administrators, if that is elsewhere than in Debian.
_BUNDLES: Final = {
    "/etc/ssl/certs/ca-certificates.crt": "",
    "/etc/pki/tls/certs/ca-bundle.crt": "/etc/pki/ca-trust/source/anchors/atoll-host.crt",
    "/var/lib/ca-certificates/ca-bundle.pem": "/etc/pki/trust/anchors/atoll-host.crt",
}
_USUAL: Final = next(iter(_BUNDLES))

#: Where OpenSSL of Debian and Alpine looks for a certificate by the hash of its subject.
_HASHED: Final = "/etc/ssl/certs"

#: What `update-ca-certificates` makes of ours there.
_LINK: Final = f"{_HASHED}/atoll-host.pem"

#: Bytes of a guest's file that are read at most, and certificates with one subject's hash.
_MOST: Final = 8 << 20
_MOST_ALIKE: Final = 10


class Believing:
    """The certificates that a guest is given, which it has in a file of their own, too.

    All methods raise ``FileError``, or ``ChannelError`` if the guest is gone.

    Args:
        files: of the guest, as root.
        wanted: what it shall believe.
    """

    def __init__(self, files: Files, wanted: Sequence[Certificate]) -> None:
        self._files = files
        self._wanted = tuple(wanted)
        self._text = "".join(one.pem for one in wanted)

    async def give(self) -> None:
        """Have it believe these, and no others that it was given before."""
        record = await read_text(self._files, CERTIFICATES)
        if record is None:
            if self._wanted:
                await self._give_first()
        elif record != self._text or not await self.is_whole():
            await self._give_again(record)

    async def is_whole(self) -> bool:
        """Whether each is in the bundle by which the guest's programs go."""
        bundle = await read_text(self._files, await self._bundle())
        return all(one.pem in (bundle or "") for one in self._wanted)

    async def _give_first(self) -> None:
        """As a guest is given that has none: nothing has to be read but the end of what was written."""
        path = await self._bundle()
        await write_text(self._files, CERTIFICATES, self._text)
        size = await self._size(path)
        if size:
            await self._files.write(path, self._text, append=True)
        else:
            await write_text(self._files, path, self._text)
        await self._anchor(path)
        for one in self._wanted:
            await self._hash(path, one)
        if await self._files.read(path, offset=size, limit=_MOST) != self._text.encode():
            raise _not_whole(path)

    async def _give_again(self, record: str) -> None:
        try:
            former = certificates_of(record)
        except ValueError:
            former = ()  # somebody in the guest has changed it
        gone = [one for one in former if one not in self._wanted]
        both = "".join(one.pem for one in (*gone, *self._wanted))
        await write_text(self._files, CERTIFICATES, both)  # nothing is left that nobody knows of
        path = await self._bundle()
        bundle = await read_text(self._files, path) or ""
        whole = with_certificates(bundle, [one.pem for one in former], [one.pem for one in self._wanted])
        if whole != bundle:
            await write_text(self._files, path, whole)
        for one in gone:
            await self._unhash(one)
        for one in self._wanted:
            await self._hash(path, one)
        if not await self.is_whole():
            raise _not_whole(path)
        await self._anchor(path)
        if self._wanted:
            await write_text(self._files, CERTIFICATES, self._text)
        else:
            await self._files.remove(_LINK, missing_ok=True)
            await self._files.remove(CERTIFICATES, missing_ok=True)

    async def _bundle(self) -> str:
        for path in _BUNDLES:
            if await self._files.exists(path):
                return path
        return _USUAL

    async def _size(self, path: str) -> int:
        try:
            return (await self._files.stat(path)).size
        except FileMissingError:
            return 0

    async def _anchor(self, bundle: str) -> None:
        """Have the guest's own tools find them, where that is not where they are."""
        place = _BUNDLES[bundle]
        if place and self._wanted:
            await write_text(self._files, place, self._text)
        elif place:
            await self._files.remove(place, missing_ok=True)

    async def _hash(self, bundle: str, one: Certificate) -> None:
        """Have OpenSSL find it; others may have the same hash."""
        if bundle != _USUAL:
            return
        for number in range(_MOST_ALIKE):
            path = f"{_HASHED}/{one.hash}.{number}"
            try:
                await self._files.write(path, one.pem, exclusive=True)
            except FileError as error:
                if error.reason != "exists":
                    raise
                if await read_text(self._files, path) == one.pem:
                    return
            else:
                return

    async def _unhash(self, one: Certificate) -> None:
        """Take it away, and close the gap: OpenSSL looks no further than that."""
        there: list[tuple[str, str]] = []
        for number in range(_MOST_ALIKE):
            path = f"{_HASHED}/{one.hash}.{number}"
            text = await read_text(self._files, path)
            if text is None:
                break
            there.append((path, text))
        place = next((path for path, text in there if text == one.pem), None)
        if place is not None and place != there[-1][0]:
            await self._files.move(there[-1][0], place)
        elif place is not None:
            await self._files.remove(place, missing_ok=True)


async def read_text(files: Files, path: str) -> str | None:
    """The content of a guest's file, whatever bytes it has; None if there is no such file."""
    try:
        return (await files.read(path, limit=_MOST)).decode("utf-8", errors="surrogateescape")
    except FileMissingError:
        return None


async def write_text(files: Files, path: str, text: str) -> None:
    """Write what ``read_text`` gave, or a text; directories are made."""
    await files.write(path, text.encode("utf-8", "surrogateescape"), parents=True)


def _not_whole(path: str) -> FileError:
    return FileError(f"{path} lacks a certificate that was written to it", reason="invalid", path=path)
