"""Shell completion: a small script for the shell, which asks this program for the candidates."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from atoll.cli.main import build_parser

__all__ = ["complete", "configure", "run"]

_SCRIPTS = {
    "bash": """\
_atoll() {
    local IFS=$'\\n'
    local found=$(atoll __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    COMPREPLY=($(compgen -W "$found" -- "${COMP_WORDS[COMP_CWORD]#=}"))
}
complete -o default -F _atoll atoll
""",
    "zsh": """\
#compdef atoll
_atoll() {
    local -a found
    found=(${(f)"$(atoll __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    (( ${#found} )) && compadd -- $found || _files
}
compdef _atoll atoll
""",
    "fish": """\
complete -c atoll -f -a '(atoll __complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "shell", choices=tuple(_SCRIPTS), help='bash: add `eval "$(atoll completion bash)"` to ~/.bashrc'
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(_SCRIPTS[arguments.shell], end="")
    return 0


def complete(words: Sequence[str]) -> int:
    """Print the candidates for the last of ``words``, one a line."""
    if "--" in words[:-1]:
        return 0  # what follows is the guest's
    whole, there = _joined(words)
    for candidate in sorted(_candidates(whole)):
        print(candidate.removeprefix(there))
    return 0


def _joined(words: Sequence[str]) -> tuple[list[str], str]:
    """Words as they were typed, and what of the last is known: bash takes ``A=B`` for three words."""
    whole: list[str] = []
    ends_in_sign = False
    there = ""
    for word in words:
        there = ""
        if whole and (word == "=" or ends_in_sign):
            there = whole[-1] + "=" * (word == "=")
            whole[-1] += word
        else:
            whole.append(word)
        ends_in_sign = word == "="
    return whole, there


def _candidates(words: Sequence[str]) -> Iterator[str]:
    current = words[-1] if words else ""
    parser = build_parser(words[:-1])
    before = list(words[:-1])
    for word in words[:-1]:
        commands = _commands(parser)
        if commands is not None and word in commands:
            parser = commands[word]
            before = before[before.index(word) + 1 :]
    option = _option_awaiting_value(parser, before)
    if option is not None:
        offered = [*_values(option)]
    elif current.startswith("-"):
        offered = [name for action in parser._actions for name in _options(action, current)]  # noqa: SLF001
    else:
        offered = [*(_commands(parser) or ()), *_values(_awaited(parser, before))]
    yield from (candidate for candidate in offered if candidate.startswith(current))


def _options(action: argparse.Action, current: str) -> Iterator[str]:
    """The names of an option; with the values that are a part of it once its name is whole."""
    yield from (name for name in action.option_strings if not name.endswith("=NAME"))
    if getattr(action, "whole_words", False) and current.startswith("--network="):
        yield from (f"--network={name}" for name in _networks())


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser] | None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk its table
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return None


def _option_awaiting_value(parser: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    if not before or not before[-1].startswith("-"):
        return None
    for action in parser._actions:  # noqa: SLF001
        if before[-1] in action.option_strings and action.nargs != 0:
            return action
    return None


def _awaited(parser: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    """The positional argument that comes next."""
    options = {name: action for action in parser._actions for name in action.option_strings}  # noqa: SLF001
    given = 0
    words = iter(before)
    for word in words:
        if not word.startswith("-"):
            given += 1
        elif word in options and options[word].nargs != 0:
            next(words, None)
    positional = [action for action in parser._actions if not action.option_strings]  # noqa: SLF001
    if given < len(positional):
        return positional[given]
    return positional[-1] if positional and positional[-1].nargs in {"+", "*"} else None


def _values(action: argparse.Action | None) -> Iterator[str]:
    if action is None or isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
        return
    match action.dest:
        case "image" | "images":
            yield from _images()
        case "template" | "templates":
            yield from _templates(made_by_itself=action.dest == "templates")
        case "snapshot" | "snapshots":
            yield from _snapshots(None)
        case "machine_snapshot" | "sandbox_snapshot":
            yield from _snapshots(action.dest.removesuffix("_snapshot"))
        case "machine" | "machines":
            yield from _machines()
        case "source" | "target":
            yield from (f"{name}:" for name in _machines())
        case "of":
            yield from (*_machines(), *_networks())
        case "changes" | "egress" | "engine" | "network" | "networks":
            yield from _words(action.dest)
        case _:
            yield from (str(choice) for choice in action.choices or ())


def _words(dest: str) -> Iterator[str]:
    """Words, and names of networks."""
    if dest == "engine":
        from atoll.containers.migration.sources import NAMES

        yield from NAMES
    elif dest == "egress":
        from atoll.network.policy.presets import PRESETS

        yield from PRESETS
    elif dest != "changes":
        yield from _networks()
    else:
        from atoll.cli.options import NETWORK_KINDS
        from atoll.machine.editing import EDITABLE

        yield from (f"{name}=" for name in EDITABLE)
        yield from (f"network={name}" for name in (*NETWORK_KINDS, *_networks()))


def _networks() -> Iterator[str]:
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.vm.network.names import known

    try:
        yield from known(load().config.paths.networks)
    except AtollError:
        return


def _machines() -> Iterator[str]:
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.machine import registry

    try:
        yield from (entry.name for entry in registry.listed(load().config.paths))
    except AtollError:
        return


def _snapshots(kind: str | None) -> Iterator[str]:
    """Of machines, of sandboxes, or all: by their names, or by their ids where several have the same."""
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.snapshot import catalog

    try:
        listed = catalog.listed(load().config.paths)
    except AtollError:
        return
    found = [(one.id, one.manifest) for one in listed if one.manifest is not None]
    named = [(name, manifest.name) for name, manifest in found if kind is None or manifest.kind == kind]
    names = [name for _, name in named]
    yield from {name if names.count(name) == 1 else number for number, name in named}


def _templates(*, made_by_itself: bool) -> Iterator[str]:
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.template import cache

    try:
        paths = load().config.paths
    except AtollError:
        return
    for shelf in (paths.own, paths) if made_by_itself else (paths.own,):
        yield from (one.name for one in cache.installed(shelf))


def _images() -> Iterator[str]:
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.image import catalog
    from atoll.image.recipes import RECIPES

    try:
        listed = catalog.installed(load().config.paths)
    except AtollError:
        listed = []
    buildable = {f"{name}:{tag}" for name, recipe in RECIPES.items() for tag in recipe.tags}
    yield from {
        *RECIPES,
        *buildable,
        *(entry.image.manifest.name for entry in listed if entry.image is not None),
    }
