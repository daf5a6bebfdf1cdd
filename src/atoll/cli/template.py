"""``atoll template``: what sandboxes start from."""

from __future__ import annotations

import argparse
import time

from atoll import runtime
from atoll.cli.options import add_json, add_vm_options, resolve
from atoll.cli.output import listener, print_json, print_table, size
from atoll.config import load
from atoll.errors import StoreError, UsageError
from atoll.template import cache

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = commands.add_parser("ls", help="list what is here")
    listing.add_argument("--verify", action="store_true", help="compare each one's RAM with its digest")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    build = commands.add_parser("build", help="make the template of an image before its first use")
    build.add_argument("image", metavar="IMAGE", help="such as debian, or debian:bookworm")
    add_vm_options(build)
    build.add_argument("--force", "-f", action="store_true", help="make it also if it is here already")
    add_json(build, "events and the result")
    build.set_defaults(act=_build)
    remove = commands.add_parser("rm", help="remove templates; running VMs do not need them")
    remove.add_argument("names", nargs="*", metavar="TEMPLATE")
    remove.add_argument("--all", "-a", action="store_true", help="remove every template")
    remove.set_defaults(act=_remove)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _list(arguments: argparse.Namespace) -> int:
    listed = cache.installed(load().config.paths)
    states = {one.name: _state(one, verify=arguments.verify) for one in listed}
    if arguments.json:
        print_json([_described(one, states[one.name]) for one in listed])
    else:
        rows = [_row(one, states[one.name]) for one in listed]
        print_table(("TEMPLATE", "IMAGE", "VCPUS", "MEMORY", "DISK", "CREATED", "STATE"), rows)
    return 1 if "changed" in states.values() else 0


def _state(one: cache.Listed, *, verify: bool) -> str:
    if one.error or one.template is None:
        return one.error
    if not verify:
        return "ready"
    return "verified" if cache.verify(one.template) else "changed"


def _row(one: cache.Listed, state: str) -> tuple[str, ...]:
    if one.template is None:
        return (one.name, "-", "-", "-", "-", "-", state)
    manifest = one.template.manifest
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
    disk = "-" if manifest.failure else size(one.template.size)
    return (one.name, manifest.image, str(manifest.vcpus), size(manifest.memory), disk, date, state)


def _described(one: cache.Listed, state: str) -> dict[str, object]:
    if one.template is None:
        return {"name": one.name, "state": state}
    manifest = one.template.manifest
    return {
        "name": one.name,
        "image": manifest.image,
        "accelerator": manifest.accelerator,
        "vcpus": manifest.vcpus,
        "memory": manifest.memory,
        "disk": 0 if manifest.failure else one.template.size,
        "created": manifest.created,
        "hypervisor": manifest.hypervisor,
        "digest": manifest.digest,
        "state": state,
    }


def _build(arguments: argparse.Namespace) -> int:
    config = resolve(arguments).config
    emit = listener(json=arguments.json)
    template = runtime.build_template(config, arguments.image, force=arguments.force, emit=emit)
    if arguments.json:
        print_json(_described(cache.Listed(template.manifest.name, template), "ready"))
    else:
        print(f"{template.manifest.name}: {size(template.size)}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    config = load().config
    here = [one.name for one in cache.installed(config.paths)]
    hint = "`atoll template ls` lists them"
    if not arguments.names and not arguments.all:
        raise UsageError("no template is named", code="arguments", hint=f"{hint}; --all removes all")
    for name in arguments.names:
        if name not in here:
            raise StoreError(f"there is no template {name}", code="missing", hint=hint)
    if arguments.all:
        cache.sweep(config.paths)
    for name in here if arguments.all else dict.fromkeys(arguments.names):
        cache.discard(config.paths, name)
        print(name)
    return 0
