"""Errors about files in a guest, out of what its agent says."""

from __future__ import annotations

import errno

from atoll.errors import AtollError, FileError, FileMissingError, GuestError

__all__ = ["REASONS", "about_file"]

#: Why a file cannot be used, by the guest's errno: the reason, and what to do.
REASONS = {
    errno.ENOTDIR: ("not_directory", "a part of the path, or what it leads to, is no directory"),
    errno.EISDIR: ("is_directory", "`list` and `remove` take directories; other methods want a file"),
    errno.EEXIST: ("exists", "choose another path, or allow that it exists"),
    errno.ENOTEMPTY: ("not_empty", "recursive=True removes a directory with all below it"),
    errno.EACCES: ("denied", 'look at its owner and mode; user="root" may more'),
    errno.EPERM: ("denied", 'look at its owner and mode; user="root" may more'),
    errno.EROFS: ("read_only", "choose a path on another file system"),
    errno.ENOSPC: ("full", "free some space in the guest"),
    errno.EDQUOT: ("full", "free some space in the guest"),
    errno.EXDEV: (
        "other_device",
        "it is on another file system, or part of the image: `mv` in the guest copies it",
    ),
    errno.EBUSY: ("busy", "something is mounted there, or uses it"),
    errno.ESRCH: ("user", "choose a user that exists in the guest"),
}
_MISSING = "check the path; a relative one begins where commands start"
#: Reasons of the agent that are about the file.
_ABOUT_FILES = {"os", "invalid"}


def about_file(error: AtollError, path: str) -> AtollError:
    """The error as one about the file at ``path``, if it is such."""
    if not isinstance(error, GuestError) or error.reason not in _ABOUT_FILES:
        return error
    if error.errno == errno.ENOENT:
        return FileMissingError(error.message, errno=error.errno, path=path, hint=_MISSING)
    reason, hint = REASONS.get(error.errno, (error.reason, ""))
    return FileError(error.message, reason=reason, errno=error.errno, path=path, hint=hint)
