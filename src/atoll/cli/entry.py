"""Where the installed command begins: with the one answer that needs hardly anything, else with the whole."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and leave."""
    if sys.argv[1:] == ["ls"]:
        _list()
    from atoll.cli.main import entry

    entry()


def _list() -> None:
    """Print the machines and leave, if it is that plain."""
    from atoll.cli import quick

    data = quick.data_directory()
    text = quick.listing(data) if data is not None else None
    if text is None:
        return
    try:
        written = os.write(1, text.encode())
    except OSError:
        return
    if written == len(text.encode()):
        os._exit(0)
