"""``atoll build``: an image of a Containerfile."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, settle, size
from atoll.cli.parts import running
from atoll.config import load
from atoll.events import Emit, Event, OutputReceived, TaskAdvanced

if TYPE_CHECKING:
    from atoll.building.wishes import Wishes

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("context", metavar="DIRECTORY", help="whose files the build may copy")
    parser.add_argument(
        "--tag", "-t", action="append", default=[], metavar="NAME", help="name of the image; repeatable"
    )
    parser.add_argument(
        "--file",
        "-f",
        metavar="FILE",
        help="default: Containerfile or Dockerfile there; - for standard input",
    )
    for flag, what in (
        ("--build-arg", "a value for ARG, NAME=VALUE; NAME alone takes the variable of the environment"),
        ("--label", "a label of the image, NAME=VALUE"),
        ("--secret", "id=ID,src=FILE or id=ID,env=VARIABLE, which RUN --mount=type=secret sees"),
    ):
        parser.add_argument(flag, action="append", default=[], metavar="WORD", help=f"{what}; repeatable")
    parser.add_argument("--target", default="", metavar="STAGE", help="the stage at which to end")
    parser.add_argument("--platform", help="of the image, as linux/arm64; this host's by default")
    parser.add_argument("--pull", action="store_true", help="ask registries also for images that are here")
    parser.add_argument("--no-cache", action="store_true", help="do all steps anew")
    parser.add_argument("--quiet", "-q", action="store_true", help="print the digest alone")
    add_json(parser, "events and the manifest")


def run(arguments: argparse.Namespace) -> int:
    """Build, and print the image's digest."""
    from atoll.building.building import build
    from atoll.building.wishes import locate

    source = locate(arguments.context, arguments.file)
    progress = listener(json=arguments.json, quiet=arguments.quiet)
    emit = progress if arguments.json or arguments.quiet else _with_output(progress)
    image = running(build(load().config, source, _wishes(arguments), on_event=emit))
    settle(progress)
    origin = image.manifest.origin
    digest = origin.manifest if origin is not None else ""
    if arguments.json:
        print_json(image.manifest)
    elif arguments.quiet:
        print(digest)
    else:
        print(f"{', '.join(arguments.tag) or 'image'}: {size(image.manifest.size)}, {digest}")
    return 0


def _wishes(arguments: argparse.Namespace) -> Wishes:
    from atoll.building.wishes import Wishes, parse_arguments, parse_secret
    from atoll.image.oci.documents import parse_platform

    return Wishes(
        names=tuple(arguments.tag),
        arguments=parse_arguments(arguments.build_arg, "--build-arg", os.environ),
        target=arguments.target,
        platform=parse_platform(arguments.platform) if arguments.platform else None,
        labels=parse_arguments(arguments.label, "--label", {}),
        secrets=tuple(parse_secret(word, os.environ) for word in arguments.secret),
        pull=arguments.pull,
        cache=not arguments.no_cache,
    )


def _with_output(progress: Emit) -> Emit:
    """What steps say goes to standard error as it comes; what else goes on is told beside."""

    def emit(event: Event) -> None:
        if isinstance(event, OutputReceived):
            settle(progress)
            sys.stderr.write(event.text)
            sys.stderr.flush()
        elif not isinstance(event, TaskAdvanced) or sys.stderr.isatty():
            progress(event)

    return emit
