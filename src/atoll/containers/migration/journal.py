"""What a migration has done: a record that a killed one goes on from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError

__all__ = ["Entry", "Journal", "Journals", "key"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one item.

    Attributes:
        done: it is there and was verified; else it was begun.
        target: what the target calls it: an id, or for a volume the date on which it was made.
        digest: of what was carried.
    """

    done: bool
    target: str = ""
    digest: str = ""


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """All that was carried from one engine to another; kept after it is over.

    Attributes:
        source: the engine's id; ``target`` likewise.
        socket: where the source was.
        entries: by the items' keys.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    source: str
    target: str
    socket: str = ""
    entries: dict[str, Entry] = {}

    def find(self, item: str) -> Entry | None:
        """What became of an item."""
        return self.entries.get(item)


def key(kind: str, name: str) -> str:
    """Of an item: images and containers by their id at the source, others by their name."""
    return f"{kind}:{name}"


class Journals:
    """Where journals are kept.

    Args:
        directory: of all migrations.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, source: str, target: str) -> Path:
        """The journal's file for two engines, by their ids."""
        number = hashlib.sha256(f"{source}\0{target}".encode()).hexdigest()[:16]
        return self._directory / f"{number}.json"

    def lock(self, source: str, target: str) -> Path:
        """Held by who migrates between the two."""
        return self.path(source, target).with_suffix(".lock")

    def load(self, source: str, target: str, socket: Path) -> Journal:
        """The journal, or a new one. Raises ``StoreError``: it cannot be read."""
        try:
            return store.read_record(self.path(source, target), Journal)
        except StoreError as error:
            if error.code != "store.missing":
                raise
            return Journal(source=source, target=target, socket=str(socket))

    def note(self, journal: Journal, item: str, entry: Entry) -> Journal:
        """The journal with one entry more, which is on disk then. Raises ``StoreError``."""
        changed = msgspec.structs.replace(journal, entries={**journal.entries, item: entry})
        store.write_record(self.path(journal.source, journal.target), changed)
        return changed
