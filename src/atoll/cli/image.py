"""``atoll image``: root images and the kernel that boots them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, print_table, size
from atoll.config import Config, load
from atoll.image import catalog, kernel
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.manifest import Listed
from atoll.platforms import image_architecture

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = commands.add_parser("build", help="build an image, and the kernel if there is none")
    build.add_argument(
        "image", help="debian, debian-machine, ubuntu, ubuntu-machine or engine; or NAME:SUITE"
    )
    build.add_argument("--force", "-f", action="store_true", help="build it also if it is here already")
    _add_platform(build)
    build.add_argument("--refresh-kernel", action="store_true", help="ask apt for a newer kernel")
    build.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    add_json(build, "events and the result")
    build.set_defaults(act=_build)
    importing = commands.add_parser("import", help="make an image of a root file system in a tar")
    importing.add_argument(
        "file", type=Path, help="a tar, plain or compressed, or an OCI image layout as a tar"
    )
    importing.add_argument("image", metavar="NAME[:TAG]")
    importing.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    add_json(importing, "events and the result")
    importing.set_defaults(act=_import)
    listing = commands.add_parser("ls", help="list what is here")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    inspect = commands.add_parser("inspect", help="show what an image holds and check it")
    inspect.add_argument("image")
    _add_platform(inspect)
    inspect.add_argument("--packages", action="store_true", help="list the packages too")
    add_json(inspect, "the manifest")
    inspect.set_defaults(act=_inspect)
    remove = commands.add_parser("rm", help="remove images; running VMs keep theirs until they end")
    remove.add_argument("images", nargs="+", metavar="image")
    _add_platform(remove)
    remove.set_defaults(act=_remove)
    emulator = commands.add_parser(
        "emulator",
        help="fetch what runs programs of another platform, without root",
    )
    emulator.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    emulator.set_defaults(act=_emulator)


def _add_platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform", metavar="PLATFORM", help="of the image, as linux/arm64 (default this host's)"
    )


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


def _import(arguments: argparse.Namespace, config: Config) -> int:
    emit = listener(json=arguments.json, verbose=arguments.verbose)
    image = catalog.import_rootfs(config.paths, arguments.file, arguments.image, emit=emit)
    if arguments.json:
        print_json(image.manifest)
    else:
        print(f"{image.manifest.name}: {size(image.manifest.size)}, init {image.manifest.init or 'none'}")
    return 0


def _list(arguments: argparse.Namespace, config: Config) -> int:
    listed = catalog.installed(config.paths)
    if arguments.json:
        print_json([_described(entry) for entry in listed])
        return 0
    rows = []
    for entry in listed:
        if entry.image is None:
            rows.append((entry.directory.name, "-", "-", "-", f"damaged: {entry.error}"))
            continue
        manifest = entry.image.manifest
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
        rows.append((manifest.name, manifest.architecture, size(manifest.size), date, manifest.digest[:12]))
    print_table(("IMAGE", "ARCHITECTURE", "SIZE", "CREATED", "DIGEST"), rows)
    return 0


def _described(entry: Listed) -> dict[str, object]:
    if entry.image is None:
        return {"directory": str(entry.directory), "error": str(entry.error)}
    manifest = entry.image.manifest
    return {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "size": manifest.size,
        "created": manifest.created,
        "digest": manifest.digest,
        "directory": str(entry.directory),
    }


def _inspect(arguments: argparse.Namespace, config: Config) -> int:
    image, superblock = catalog.inspect(
        config.paths, arguments.image, architecture=image_architecture(config)
    )
    catalog.verify(image)
    manifest = image.manifest
    if arguments.json:
        print_json(manifest)
        return 0
    print(f"name          {manifest.name}")
    print(f"architecture  {manifest.architecture}")
    print(f"file          {image.root}")
    print(f"size          {size(manifest.size)} ({superblock.inodes} inodes)")
    print(f"digest        {manifest.digest} (verified)")
    print(f"created       {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(manifest.created))}")
    print(f"init          {manifest.init or 'none'}")
    print(f"packages      {len(manifest.packages)}")
    print(f"built with    {', '.join(f'{name} {version}' for name, version in manifest.tools.items())}")
    if arguments.packages:
        print_table(("PACKAGE", "VERSION"), [(item.name, item.version) for item in manifest.packages])
    return 0


def _remove(arguments: argparse.Namespace, config: Config) -> int:
    for name in arguments.images:
        catalog.remove(config.paths, name, architecture=image_architecture(config))
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
