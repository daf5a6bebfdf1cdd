"""``atoll image pull``, ``push`` and ``tags``, and what a registry says of an image."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from atoll.cli.image_looking import wanted_platform
from atoll.cli.options import add_json, add_platform
from atoll.cli.output import listener, print_json, quoted, size
from atoll.config import Config

if TYPE_CHECKING:
    pass

__all__ = ["configure", "inspect_remote"]


def configure(commands: Any) -> None:
    """Add the actions."""
    pull = commands.add_parser("pull", help="have an image of a registry here")
    pull.add_argument("image", metavar="REFERENCE", help="such as python:3.12-slim, HOST/NAME@sha256:...")
    add_platform(pull)
    _add_quiet(pull)
    add_json(pull, "events and the manifest")
    pull.set_defaults(act=_pull)
    push = commands.add_parser("push", help="give an image to a registry")
    push.add_argument("image", help="an image that is here")
    push.add_argument("reference", nargs="?", metavar="REFERENCE", help="default: the image's own name")
    push.add_argument("--tag", action="append", default=[], metavar="TAG", help="a further tag; repeatable")
    add_platform(push)
    _add_quiet(push)
    add_json(push, "events and the result")
    push.set_defaults(act=_push)
    tags = commands.add_parser("tags", help="list the tags of a repository in its registry")
    tags.add_argument("repository", metavar="REFERENCE")
    add_json(tags, "the tags")
    tags.set_defaults(act=_tags)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", "-q", action="store_true", help="print the digest alone")


def _pull(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.registry.carrying import pull

    emit = listener(json=arguments.json, quiet=arguments.quiet)
    image = pull(config, arguments.image, wanted_platform(config), emit=emit)
    origin = image.manifest.origin
    digest = origin.manifest if origin is not None else ""
    if arguments.json:
        print_json(image.manifest)
    else:
        print(digest if arguments.quiet else f"{image.manifest.name}: {size(image.manifest.size)}, {digest}")
    return 0


def _push(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.registry.carrying import push_kept

    done = push_kept(
        config,
        arguments.image,
        arguments.reference or arguments.image,
        platform=wanted_platform(config),
        tags=arguments.tag,
        emit=listener(json=arguments.json, quiet=arguments.quiet),
    )
    if arguments.json:
        print_json(done)
    elif arguments.quiet:
        print(done.digest)
    else:
        print(f"{done.reference}: {size(done.sent)} sent, {done.there} blobs were there")
    return 0


def _tags(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.oci.reference import parse
    from atoll.image.registry.pulling import tags

    reference = parse(arguments.repository, default=config.default_registry)
    found = tags(reference, registries=config.registries, emit=listener(json=arguments.json))
    if arguments.json:
        print_json(found)
    else:
        print("".join(f"{tag}\n" for tag in found), end="")
    return 0


def inspect_remote(arguments: argparse.Namespace, config: Config) -> int:
    """Show what a registry says of an image."""
    from atoll.image.oci.reference import parse
    from atoll.image.registry.pulling import inspect

    reference = parse(arguments.image, default=config.default_registry)
    found = inspect(
        reference,
        wanted_platform(config),
        registries=config.registries,
        emit=listener(json=arguments.json),
    )
    if arguments.json:
        names = ("reference", "digest", "index_digest", "platforms", "manifest", "config")
        print_json({name: getattr(found, name) for name in names})
        return 0
    print(f"name          {found.reference}")
    print(f"digest        {found.digest}")
    print(f"architecture  {found.config.architecture}")
    print(f"size          {size(sum(layer.size for layer in found.manifest.layers))}, compressed")
    print(f"layers        {len(found.manifest.layers)}")
    print(f"created       {quoted(found.config.created or 'unknown')}")
    if found.platforms:
        print(f"platforms     {quoted(', '.join(found.platforms))}")
    return 0
