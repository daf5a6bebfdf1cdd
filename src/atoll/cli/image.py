"""``atoll image``: root images and the kernel that boots them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from atoll.cli import image_looking, image_registry, image_transfer
from atoll.cli.options import add_json, add_platform
from atoll.cli.output import listener, print_json, print_table, size
from atoll.config import Config, load
from atoll.image import catalog, kernel
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.manifest import Image, Listed
from atoll.image.oci import names
from atoll.image.oci.reference import parse
from atoll.platforms import image_architecture

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = commands.add_parser(
        "build", help="build an image of Atoll's own, and the kernel if there is none"
    )
    build.add_argument(
        "image", help="debian, debian-machine, ubuntu, ubuntu-machine or engine; or NAME:SUITE"
    )
    add_platform(build)
    build.add_argument("--force", "-f", action="store_true", help="build it also if it is here already")
    build.add_argument("--refresh-kernel", action="store_true", help="ask apt for a newer kernel")
    build.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    add_json(build, "events and the result")
    build.set_defaults(act=_build)
    listing = commands.add_parser("ls", help="list what is here")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    image_looking.configure(commands)
    image_registry.configure(commands)
    image_transfer.configure(commands)
    tag = commands.add_parser("tag", help="give an image another reference")
    tag.add_argument("image")
    tag.add_argument("reference", metavar="REFERENCE")
    add_platform(tag)
    tag.set_defaults(act=_tag)
    remove = commands.add_parser("rm", help="remove images; running VMs keep theirs until they end")
    remove.add_argument("images", nargs="+", metavar="image")
    add_platform(remove)
    remove.set_defaults(act=_remove)
    prune = commands.add_parser("prune", help="remove images that no reference means, and rests of pulls")
    prune.add_argument("--all", "-a", action="store_true", help="also those that no machine or snapshot uses")
    prune.add_argument("--unused-for", metavar="AGE", help="only what was not used for so long, such as 30d")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed")
    add_json(prune, "what was removed")
    prune.set_defaults(act=_prune)
    emulator = commands.add_parser(
        "emulator",
        help="fetch what runs programs of another platform, without root",
    )
    emulator.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    emulator.set_defaults(act=_emulator)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    flags = {"platform": getattr(arguments, "platform", None)}
    status: int = arguments.act(arguments, load(flags).config)
    return status


def _build(arguments: argparse.Namespace, config: Config) -> int:
    emit = listener(json=arguments.json, verbose=arguments.verbose)
    kernel.ensure(config.paths, kernel=config.kernel, refresh=arguments.refresh_kernel, emit=emit)
    mirror = config.ubuntu_mirror
    image = catalog.build(
        config.paths,
        arguments.image,
        architecture=image_architecture(config),
        force=arguments.force,
        mirror=mirror,
        emit=emit,
    )
    if arguments.json:
        print_json(image.manifest)
    else:
        print(f"{image.manifest.name}: {size(image.manifest.size)}, {len(image.manifest.packages)} packages")
    return 0


def _list(arguments: argparse.Namespace, config: Config) -> int:
    listed = catalog.installed(config.paths)
    meaning = _meaning(config)
    if arguments.json:
        print_json([_described(entry, meaning) for entry in listed])
        return 0
    rows = []
    for entry in listed:
        if entry.image is None:
            rows.append((entry.directory.name, "-", "-", "-", f"damaged: {entry.error}"))
            continue
        manifest = entry.image.manifest
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
        rest = (manifest.architecture, size(manifest.size), date, image_looking.digest_of(entry.image)[:12])
        rows += [(name, *rest) for name in _names(entry.image, meaning) or ["<none>"]]
    print_table(("IMAGE", "ARCHITECTURE", "SIZE", "CREATED", "DIGEST"), sorted(rows))
    return 0


def _meaning(config: Config) -> dict[str, list[str]]:
    """The references to each image that has some, by the digest of its manifest."""
    meaning: dict[str, list[str]] = {}
    for name in names.names(config.paths):
        meaning.setdefault(name.manifest, []).append(parse(name.reference).short(config.default_registry))
    return meaning


def _names(image: Image, meaning: dict[str, list[str]]) -> list[str]:
    origin = image.manifest.origin
    return [image.manifest.name] if origin is None else meaning.get(origin.manifest, [])


def _described(entry: Listed, meaning: dict[str, list[str]]) -> dict[str, object]:
    if entry.image is None:
        return {"directory": str(entry.directory), "error": str(entry.error)}
    manifest = entry.image.manifest
    return {
        "name": manifest.name,
        "names": _names(entry.image, meaning),
        "architecture": manifest.architecture,
        "size": manifest.size,
        "created": manifest.created,
        "digest": image_looking.digest_of(entry.image),
        "directory": str(entry.directory),
    }


def _tag(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.oci import offering

    default = config.default_registry
    image = image_looking.find(config, arguments.image)
    reference = parse(arguments.reference, default=default).tagged()
    names.point(config.paths, reference, image.manifest.architecture, offering.origin_of(image).manifest)
    print(reference.short(default))
    return 0


def _prune(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.oci import pruning
    from atoll.snapshot.pruning import parse_age

    age = 0.0 if arguments.unused_for is None else parse_age(arguments.unused_for)
    doomed = pruning.plan(
        catalog.installed(config.paths),
        names.names(config.paths),
        every=arguments.all,
        unused_for=age,
        now=time.time(),
    )
    freed = 0 if arguments.dry_run else pruning.prune(config.paths, doomed)
    if arguments.json:
        print_json(
            {"removed": [_doomed(one) for one in doomed], "freed": freed, "done": not arguments.dry_run}
        )
        return 0
    for one in doomed:
        named = [parse(name).short(config.default_registry) for name in one.names]
        print(f"{' '.join(named) or one.directory.name} {size(one.size)}")
    if not arguments.dry_run:
        print(f"{size(freed)} are free now")
    return 0


def _doomed(one: Any) -> dict[str, object]:
    return {"names": one.names, "directory": str(one.directory), "size": one.size}


def _remove(arguments: argparse.Namespace, config: Config) -> int:
    for name in arguments.images:
        architecture = image_architecture(config)
        catalog.remove(config.paths, name, architecture=architecture, default=config.default_registry)
        print(name)
    return 0


def _emulator(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image import emulation

    native = kernel.host_architecture()
    emit = listener(verbose=arguments.verbose)
    emulation.fetch(config.paths, FOREIGN[native], native=native, emit=emit)
    made = emulation.ensure(config.paths, FOREIGN[native], native=native, emit=emit)
    print(f"programs of {PLATFORMS[FOREIGN[native]]} run by {made.program}")
    return 0
