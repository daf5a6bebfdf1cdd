"""``atoll network``: the networks that VMs are on."""

from __future__ import annotations

import argparse

from atoll.cli.network_audit import add_log, add_stats

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_log(commands)
    add_stats(commands)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    status: int = arguments.act(arguments)
    return status
