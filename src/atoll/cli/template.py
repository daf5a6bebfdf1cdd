"""``atoll template``: what sandboxes start from."""

from __future__ import annotations

import argparse
import time

from atoll import runtime
from atoll.cli.options import add_json, add_vm_options, resolve
from atoll.cli.output import listener, print_json, print_table, size
from atoll.config import Config, load
from atoll.errors import StoreError, UsageError
from atoll.events import Emit
from atoll.machine.spec import parse_probe
from atoll.template import cache

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = commands.add_parser("ls", help="list what is here")
    listing.add_argument("--verify", action="store_true", help="compare each one's RAM with its digest")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    build = commands.add_parser("build", help="make a template of your own, or that of an image")
    build.add_argument(
        "name", metavar="NAME", help="with --image what to call it, or one to make anew; else an image"
    )
    build.add_argument("--image", metavar="IMAGE", help="make a template of your own of this image")
    build.add_argument(
        "--run",
        dest="commands",
        action="append",
        default=[],
        metavar="COMMAND",
        help="run this in it; may be repeated",
    )
    build.add_argument("--ready-probe", metavar="PORT|COMMAND", help="wait until this works, then freeze it")
    build.add_argument("--network", action="store_true", help="give it a network, and what starts from it")
    add_vm_options(build)
    build.add_argument("--force", "-f", action="store_true", help="make it also if it is here already")
    add_json(build, "events and the result")
    build.set_defaults(act=_build)
    remove = commands.add_parser("rm", help="remove templates; running VMs do not need them")
    remove.add_argument("templates", nargs="*", metavar="TEMPLATE")
    remove.add_argument("--all", "-a", action="store_true", help="remove all that Atoll made by itself")
    remove.set_defaults(act=_remove)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _list(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    listed = [*cache.installed(paths.own), *cache.installed(paths)]
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
    template = _built(arguments, config, emit)
    if arguments.json:
        print_json(_described(cache.Listed(template.manifest.name, template), "ready"))
    else:
        print(f"{template.manifest.name}: {size(template.size)}")
    return 0


def _built(arguments: argparse.Namespace, config: Config, emit: Emit) -> cache.Template:
    from atoll.sandbox import warm

    name = arguments.name
    if arguments.image is not None:
        probe = parse_probe(arguments.ready_probe) if arguments.ready_probe is not None else None
        preparation = cache.Preparation(tuple(arguments.commands), probe, arguments.network)
        return warm.build(config, name, arguments.image, preparation, emit=emit)
    if arguments.commands or arguments.ready_probe is not None or arguments.network:
        hint = "say of which with --image"
        raise UsageError("a template of your own is made of an image", code="template", hint=hint)
    if cache.find(config.paths.own, name) is not None:
        return warm.build(*warm.rebuilt(config, name), emit=emit)
    return runtime.build_template(config, name, force=arguments.force, emit=emit)


def _remove(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    here = {one.name: where for where in (paths, paths.own) for one in cache.installed(where)}
    hint = "`atoll template ls` lists them"
    if not arguments.templates and not arguments.all:
        raise UsageError("no template is named", code="arguments", hint=f"{hint}; --all removes all")
    for name in arguments.templates:
        if name not in here:
            raise StoreError(f"there is no template {name}", code="missing", hint=hint)
    if arguments.all:
        cache.sweep(paths)
    every = [name for name, where in here.items() if where == paths]
    for name in every if arguments.all else dict.fromkeys(arguments.templates):
        cache.discard(here[name], name)
        print(name)
    return 0
