"""Starting programs that outlive whoever starts them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from atoll import process
from atoll.errors import ProcessError

__all__ = ["in_background"]

#: Seconds in which a program that forks into the background has done so.
_FORK_WAIT = 10.0


def in_background(program: Sequence[str], *, cwd: Path, output: int) -> socket.socket:
    """Start a program that goes into the background by itself, and serves ``--client FD``; that connection.

    Args:
        program: with its arguments.
        cwd: its working directory.
        output: descriptor for what it writes.

    Raises:
        ProcessError: it could not be started.
    """
    ours, theirs = socket.socketpair()
    try:
        child = process.spawn(
            [*program, "--client", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            output=output,
            cwd=cwd,
            die_with_parent=False,
        )
        started = child.wait(_FORK_WAIT) == 0
        child.close()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    if not started:
        ours.close()
        raise ProcessError(f"{program[0]} did not go into the background", argv=tuple(program))
    return ours
