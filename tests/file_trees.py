"""Trees of files on this host: some to be copied, and what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MTIME = 1_700_000_000_123_456_789


def listing(top):
    """All below ``top`` with what can be told about it."""
    found = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(top))] = (kind, what, mode, status.st_nlink, status.st_mtime_ns)
    return found


def make_tree(top):
    """Something of each kind, with times in the past."""
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a").write_bytes(b"text")
    (top / "nothing").touch()
    (top / "sub" / "program").write_bytes(os.urandom(3_000_000))
    (top / "sub" / "program").chmod(0o750)
    (top / "sub" / "second").hardlink_to(top / "a")
    (top / "sub" / "deep" / "away").symlink_to("/etc/passwd")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    Path(os.fsdecode(bytes(top / "no-utf8-") + b"\xff")).write_text("odd")
    (top / "read-only").mkdir()
    (top / "read-only" / "f").write_text("x")
    (top / "read-only" / "f").chmod(0o444)
    (top / "read-only").chmod(0o555)
    for number, path in enumerate([*sorted(top.rglob("*"), reverse=True), top]):
        os.utime(path, ns=(MTIME + number, MTIME + number), follow_symlinks=False)
