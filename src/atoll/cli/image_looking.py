"""``atoll image inspect``, ``history`` and ``verify``: what an image is, and whether it is whole."""

from __future__ import annotations

import argparse
import time
from typing import Any

from atoll.cli.options import add_json, add_platform
from atoll.cli.output import print_json, print_table, size
from atoll.config import Config
from atoll.errors import AtollError
from atoll.image import catalog, erofs
from atoll.image.manifest import Image, Listed
from atoll.image.oci.documents import Platform, platform_of
from atoll.platforms import image_architecture

__all__ = ["configure", "digest_of", "find", "wanted_platform"]


def configure(commands: Any) -> None:
    """Add the actions that look at images."""
    inspect = commands.add_parser("inspect", help="show what an image holds and check it")
    inspect.add_argument("image")
    inspect.add_argument("--packages", action="store_true", help="list the packages too")
    inspect.add_argument(
        "--remote", action="store_true", help="ask its registry, and have nothing of it here"
    )
    add_platform(inspect)
    add_json(inspect, "the manifest")
    inspect.set_defaults(act=_inspect)
    history = commands.add_parser("history", help="show how an image came to be, the newest first")
    history.add_argument("image")
    add_platform(history)
    history.add_argument("--no-trunc", action="store_true", help="show whole lines")
    add_json(history, "the history")
    history.set_defaults(act=_history)
    verify = commands.add_parser("verify", help="compare every byte of images with their digests")
    verify.add_argument("images", nargs="*", metavar="image", help="default: all")
    add_platform(verify)
    add_json(verify, "the outcome")
    verify.set_defaults(act=_verify)


def find(config: Config, name: str) -> Image:
    """The image that is here under ``name``, for the platform of the settings. Raises as ``catalog.find``."""
    architecture = image_architecture(config)
    return catalog.find(config.paths, name, architecture=architecture, default=config.default_registry)


def wanted_platform(config: Config) -> Platform:
    """That of the images that a command is about."""
    return platform_of(image_architecture(config))


def digest_of(image: Image) -> str:
    """What people know an image by: the digest of its manifest, or else of its root."""
    origin = image.manifest.origin
    return image.manifest.digest if origin is None else origin.manifest.partition(":")[2]


def _inspect(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.remote:
        from atoll.cli import image_registry

        return image_registry.inspect_remote(arguments, config)
    image = find(config, arguments.image)
    superblock = erofs.check_file(image.root)
    catalog.verify(image)
    manifest = image.manifest
    if arguments.json:
        print_json(manifest)
        return 0
    print(f"name          {manifest.name}")
    print(f"architecture  {manifest.architecture}")
    print(f"file          {image.root}")
    print(f"size          {size(manifest.size)} ({superblock.inodes} inodes)")
    print(f"digest        {digest_of(image)} (verified)")
    print(f"created       {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(manifest.created))}")
    print(f"init          {manifest.init or 'none'}")
    if manifest.origin is not None:
        _inspect_layers(image)
        return 0
    print(f"packages      {len(manifest.packages)}")
    print(f"built with    {', '.join(f'{name} {version}' for name, version in manifest.tools.items())}")
    if arguments.packages:
        print_table(("PACKAGE", "VERSION"), [(item.name, item.version) for item in manifest.packages])
    return 0


def _inspect_layers(image: Image) -> None:
    import shlex

    from atoll.image.oci.runconfig import RunConfig

    origin, run = image.manifest.origin, image.manifest.run or RunConfig()
    assert origin is not None
    rows = (
        ("id", origin.config),
        ("entrypoint", shlex.join(run.entrypoint or ())),
        ("command", shlex.join(run.cmd or ())),
        ("user", run.user),
        ("directory", run.working_dir),
        ("environment", " ".join(run.env or ())),
        ("volumes", " ".join(run.volumes or ())),
        ("ports", " ".join(run.exposed_ports or ())),
        ("stop signal", run.stop_signal),
    )
    for title, value in rows:
        if value:
            print(f"{title:13} {value}")
    for number, each in enumerate(origin.layers, 1):
        print(f"{f'layer {number}':13} {each.diff_id} ({size(each.size)})")


def _history(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.oci import documents, offering

    image = find(config, arguments.image)
    origin = offering.origin_of(image)
    steps = documents.config_of(offering.offer(image).config).history or ()
    if arguments.json:
        print_json(steps)
        return 0
    sizes = iter(each.size for each in origin.layers)
    rows = []
    for step in steps:
        text = " ".join((step.created_by or step.comment).split())
        shown = text if arguments.no_trunc or len(text) <= 70 else f"{text[:67]}..."
        rows.append(((step.created or "-")[:19], "0" if step.empty_layer else size(next(sizes, 0)), shown))
    print_table(("CREATED", "SIZE", "CREATED BY"), rows[::-1])
    return 0


def _verify(arguments: argparse.Namespace, config: Config) -> int:
    named = [find(config, name) for name in arguments.images]
    chosen = [Listed(found.directory, found, None) for found in named] or catalog.installed(config.paths)
    outcomes = [(entry, _fault(entry)) for entry in chosen]
    if arguments.json:
        print_json([{"image": _title(entry), "ok": not fault, "error": fault} for entry, fault in outcomes])
    else:
        print_table(("IMAGE", "STATE"), [(_title(entry), fault or "good") for entry, fault in outcomes])
    return int(any(fault for _, fault in outcomes))


def _title(entry: Listed) -> str:
    return entry.directory.name if entry.image is None else entry.image.manifest.name


def _fault(entry: Listed) -> str:
    """What is wrong with an image; empty if nothing is."""
    if entry.image is None:
        return str(entry.error)
    try:
        catalog.verify(entry.image)
    except AtollError as error:
        return error.message
    return ""
