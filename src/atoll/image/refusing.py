"""The error for an image that is not taken in."""

from __future__ import annotations

from atoll.errors import ImageError

__all__ = ["refuse"]


def refuse(message: str, *, hint: str = "") -> ImageError:
    """The error for an archive that is not taken in."""
    return ImageError(message, code="archive", hint=hint or "nothing was imported")
