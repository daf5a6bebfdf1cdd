"""``atoll network``: networks of machines."""

from __future__ import annotations

import argparse

from atoll.cli.network_shape import add_shape

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_shape(commands)


def run(arguments: argparse.Namespace) -> int:
    """Do what was chosen."""
    status: int = arguments.act(arguments)
    return status
