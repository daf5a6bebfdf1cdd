"""``atoll config``: the settings and where each value comes from."""

from __future__ import annotations

import argparse

from atoll.cli.options import add_json
from atoll.cli.output import print_json, print_table
from atoll.config import SETTINGS, load
from atoll.paths import SYSTEM_CONFIG, user_config

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = (
        f"Files, the later one wins: {SYSTEM_CONFIG}, {user_config()}; then ATOLL_* variables; then flags."
    )
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = commands.add_parser("show", help="print each setting, its value and where it comes from")
    add_json(show, "the settings")


def run(arguments: argparse.Namespace) -> int:
    """Show them."""
    resolved = load()
    rows = []
    for setting in SETTINGS:
        value = getattr(resolved.config, setting.name)
        rows.append(
            (setting.name, _readable(setting.name, value), resolved.origins[setting.name], setting.help)
        )
    if arguments.json:
        names = ("name", "value", "origin", "help")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        print_table(("SETTING", "VALUE", "FROM", "MEANING"), rows)
    return 0


def _readable(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith(("memory", "disk")) and isinstance(value, int):
        return f"{value >> 20}M"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        import msgspec

        return msgspec.json.encode(value, enc_hook=str).decode() if value else ""
    return str(value)
