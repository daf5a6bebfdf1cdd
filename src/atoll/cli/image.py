"""``atoll image``: root images and the kernel that boots them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from atoll.cli import image_registry, image_transfer
from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, print_table, size
from atoll.config import Config, load
from atoll.errors import AtollError
from atoll.image import catalog, kernel
from atoll.image.manifest import Image, Listed
from atoll.image.oci import names
from atoll.image.oci.reference import parse

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
    build.add_argument("--force", "-f", action="store_true", help="build it also if it is here already")
    build.add_argument("--refresh-kernel", action="store_true", help="ask apt for a newer kernel")
    build.add_argument("--verbose", "-v", action="store_true", help="show the programs that are run")
    add_json(build, "events and the result")
    build.set_defaults(act=_build)
    image_transfer.configure(commands)
    listing = commands.add_parser("ls", help="list what is here")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    _configure_one(commands)
    prune = commands.add_parser("prune", help="remove images that no reference means, and rests of pulls")
    prune.add_argument(
        "--all", "-a", action="store_true", help="also those that no machine, snapshot or template uses"
    )
    prune.add_argument("--unused-for", metavar="AGE", help="only what was not used for so long, such as 30d")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed")
    add_json(prune, "what was removed")
    prune.set_defaults(act=_prune)


def _configure_one(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="show what an image holds and check it")
    inspect.add_argument("image")
    inspect.add_argument("--packages", action="store_true", help="list the packages too")
    inspect.add_argument(
        "--remote", action="store_true", help="ask its registry, and have nothing of it here"
    )
    inspect.add_argument("--platform", help="with --remote: which of several platforms, as linux/arm64")
    add_json(inspect, "the manifest")
    inspect.set_defaults(act=_inspect)
    history = commands.add_parser("history", help="show how an image came to be, the newest first")
    history.add_argument("image")
    history.add_argument("--no-trunc", action="store_true", help="show whole lines")
    add_json(history, "the history")
    history.set_defaults(act=_history)
    verify = commands.add_parser("verify", help="compare every byte of images with their digests")
    verify.add_argument("images", nargs="*", metavar="image", help="default: all")
    add_json(verify, "the outcome")
    verify.set_defaults(act=_verify)
    tag = commands.add_parser("tag", help="give an image another reference")
    tag.add_argument("image")
    tag.add_argument("reference", metavar="REFERENCE")
    tag.set_defaults(act=_tag)
    image_registry.configure(commands)
    remove = commands.add_parser("rm", help="remove images; running VMs keep theirs until they end")
    remove.add_argument("images", nargs="+", metavar="image")
    remove.set_defaults(act=_remove)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments, load().config)
    return status


def _build(arguments: argparse.Namespace, config: Config) -> int:
    emit = listener(json=arguments.json, verbose=arguments.verbose)
    kernel.ensure(config.paths, kernel=config.kernel, refresh=arguments.refresh_kernel, emit=emit)
    mirror = config.ubuntu_mirror
    image = catalog.build(config.paths, arguments.image, force=arguments.force, mirror=mirror, emit=emit)
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
        rest = (manifest.architecture, size(manifest.size), date, _digest(entry.image)[:12])
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


def _digest(image: Image) -> str:
    """What people know an image by: the digest of its manifest, or else of its root."""
    origin = image.manifest.origin
    return image.manifest.digest if origin is None else origin.manifest.partition(":")[2]


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
        "digest": _digest(entry.image),
        "directory": str(entry.directory),
    }


def _inspect(arguments: argparse.Namespace, config: Config) -> int:
    if arguments.remote:
        return image_registry.inspect_remote(arguments, config)
    image, superblock = catalog.inspect(config.paths, arguments.image, default=config.default_registry)
    catalog.verify(image)
    manifest = image.manifest
    if arguments.json:
        print_json(manifest)
        return 0
    print(f"name          {manifest.name}")
    print(f"architecture  {manifest.architecture}")
    print(f"file          {image.root}")
    print(f"size          {size(manifest.size)} ({superblock.inodes} inodes)")
    print(f"digest        {_digest(image)} (verified)")
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

    image = catalog.find(config.paths, arguments.image, default=config.default_registry)
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
    chosen = [
        Listed(found.directory, found, None)
        for found in (
            catalog.find(config.paths, name, default=config.default_registry) for name in arguments.images
        )
    ] or catalog.installed(config.paths)
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


def _tag(arguments: argparse.Namespace, config: Config) -> int:
    from atoll.image.oci import offering

    default = config.default_registry
    image = catalog.find(config.paths, arguments.image, default=default)
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
        print(f"{' '.join(one.names) or one.directory.name} {size(one.size)}")
    if not arguments.dry_run:
        print(f"{size(freed)} are free now")
    return 0


def _doomed(one: Any) -> dict[str, object]:
    return {"names": one.names, "directory": str(one.directory), "size": one.size}


def _remove(arguments: argparse.Namespace, config: Config) -> int:
    for name in arguments.images:
        catalog.remove(config.paths, name, default=config.default_registry)
        print(name)
    return 0
