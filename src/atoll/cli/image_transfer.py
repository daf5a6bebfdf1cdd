"""``atoll image import`` and ``export``: images from and to files, directories, pipes and other engines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from atoll.cli.image_looking import find, wanted_platform
from atoll.cli.options import add_json, add_platform
from atoll.cli.output import listener, print_json, size
from atoll.config import Config
from atoll.errors import UsageError

__all__ = ["configure"]

_FORMS = ("oci", "docker", "oci-dir")
_COMPRESSIONS = ("gzip", "zstd", "none")


def configure(commands: Any) -> None:
    """Add the two actions."""
    importing = commands.add_parser("import", help="make an image of what is at hand")
    importing.add_argument(
        "place",
        metavar="PLACE",
        help="a tar of a root, an OCI layout or `docker save`, plain or compressed; a directory; - for "
        "standard input; docker://IMAGE or container:NAME of a running engine",
    )
    importing.add_argument("image", metavar="NAME[:TAG]")
    importing.add_argument("--name", default="", help="which image of an archive that has several")
    add_platform(importing)
    importing.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    add_json(importing, "events and the result")
    importing.set_defaults(act=_import)
    exporting = commands.add_parser("export", help="write an image to a file or a directory")
    exporting.add_argument("image")
    exporting.add_argument(
        "file", metavar="FILE", help="a new file, or a new directory; - for standard output"
    )
    exporting.add_argument(
        "--format", choices=_FORMS, default="oci", help="a layout as a tar, for `docker load`, or a directory"
    )
    exporting.add_argument("--compression", choices=_COMPRESSIONS, help="of the layers (gzip; docker: none)")
    add_platform(exporting)
    exporting.set_defaults(act=_export)

    commit = commands.add_parser("commit", help="make an image of a machine, running or not")
    commit.add_argument("machine")
    commit.add_argument("image", metavar="NAME[:TAG]")
    commit.add_argument(
        "--change",
        "-c",
        action="append",
        default=[],
        metavar="TEXT",
        help="of how it is run, as 'CMD [\"/bin/app\"]'; ENV, USER, EXPOSE and others; repeatable",
    )
    commit.add_argument("--message", "-m", default="", help="what its history says")
    add_json(commit, "events and the manifest")
    commit.set_defaults(act=_commit)


def _commit(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.cli.parts import running
    from atoll.image.manifest import Image
    from atoll.machine.machine import Machine

    emit = listener(json=arguments.json)

    async def act() -> Image:
        machine = Machine(arguments.machine, config=config, on_event=emit)
        try:
            return await machine.commit(arguments.image, changes=arguments.change, message=arguments.message)
        finally:
            await machine.close()

    image = running(act())
    if arguments.json:
        print_json(image.manifest)
    else:
        print(f"{arguments.image}: {size(image.manifest.size)}")
    return 0


def _import(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.local.importing import bring

    image = bring(
        config.paths,
        arguments.place,
        arguments.image,
        platform=wanted_platform(config),
        pick=arguments.name,
        default=config.default_registry,
        emit=listener(json=arguments.json, verbose=arguments.verbose),
    )
    if arguments.json:
        print_json(image.manifest)
    else:
        print(f"{arguments.image}: {size(image.manifest.size)}, init {image.manifest.init or 'none'}")
    return 0


def _export(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.local.exporting import export
    from atoll.image.oci.offering import offer
    from atoll.image.oci.reference import parse

    image = find(config, arguments.image)
    name = str(parse(arguments.image, default=config.default_registry).tagged())
    digest = export(
        offer(image),
        _output(arguments),
        form=arguments.format,
        names=(name,),
        layers=arguments.compression,
        emit=listener(),
    )
    print(digest, file=sys.stderr if arguments.file == "-" else sys.stdout)
    return 0


def _output(arguments: argparse.Namespace) -> Any:
    """Where it goes: a path, or a stream."""
    if arguments.file != "-":
        return Path(arguments.file)
    if arguments.format == "oci-dir":
        raise UsageError("a directory cannot be written to standard output", code="output", hint="name one")
    if os.isatty(1):
        hint = "name a file, or write to a pipe: atoll image export NAME - | docker load"
        raise UsageError("an image is nothing for a terminal", code="output", hint=hint)
    return sys.stdout.buffer
