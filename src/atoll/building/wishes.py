"""What is wanted of a build, and buildah's words for it. Pure but for what the wishes name of this host."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from atoll.building.guest import memory_of, work_of
from atoll.errors import BuildError, UsageError
from atoll.image.oci.documents import Platform

__all__ = [
    "Secret",
    "Source",
    "Wishes",
    "arguments",
    "locate",
    "parse_arguments",
    "parse_secret",
    "variables",
]

#: Bytes of a Containerfile, and of a secret.
_MOST = 1 << 20

_NAMES = ("Containerfile", "Dockerfile")


class Secret(msgspec.Struct, frozen=True):
    """What a step of a build may read, and no image keeps."""

    id: str
    value: bytes


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted beside the directory and the Containerfile.

    Attributes:
        names: references that the image gets.
        arguments: values for ARG.
        target: the stage at which it ends; empty for the last one.
        platform: of the image; None for this host's.
        labels: for the image.
        secrets: that steps may mount.
        pull: ask registries for the base images also if they are here.
        cache: use what earlier builds have made.
    """

    names: tuple[str, ...] = ()
    arguments: dict[str, str] = {}
    target: str = ""
    platform: Platform | None = None
    labels: dict[str, str] = {}
    secrets: tuple[Secret, ...] = ()
    pull: bool = False
    cache: bool = True


class Source(msgspec.Struct, frozen=True):
    """What is built.

    Attributes:
        directory: the context.
        file: the Containerfile; None if it was read from standard input.
        text: of that.
    """

    directory: Path
    file: Path | None
    text: str


def locate(context: str, file: str | None) -> Source:
    """The context and the Containerfile that words of a command mean.

    Args:
        context: a directory.
        file: a path, or ``-`` for standard input; by default ``Containerfile`` or ``Dockerfile`` in the
            directory.

    Raises:
        BuildError: ``build.context``: that is no directory; ``build.file``: there is no Containerfile.
    """
    if context == "-" or "://" in context or context.startswith("git@"):
        hint = "fetch it first, as by `git clone`, and name the directory"
        raise BuildError(f"{context}: images are built of directories only", code="context", hint=hint)
    directory = Path(context)
    if not directory.is_dir():
        raise BuildError(f"there is no directory {context}", code="context", hint="name the build context")
    if file == "-":
        return Source(directory, None, _text(sys.stdin.buffer.read(_MOST + 1), "standard input"))
    if file is None:
        place = next((directory / name for name in _NAMES if (directory / name).is_file()), None)
        if place is None:
            hint = "name one with -f"
            raise BuildError(f"{context} has no Containerfile and no Dockerfile", code="file", hint=hint)
    else:
        place = Path(file)
    try:
        with place.open("rb") as opened:
            return Source(directory, place, _text(opened.read(_MOST + 1), str(place)))
    except OSError as error:
        message = f"cannot read {place}: {error.strerror}"
        raise BuildError(message, code="file", hint="name a Containerfile with -f") from error


def _text(data: bytes, name: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BuildError(f"{name} is no text", code="file", hint="a Containerfile is UTF-8") from None
    if len(data) > _MOST:
        raise BuildError(f"{name} is too large", code="file", hint="a Containerfile has 1 MiB at most")
    return text


def parse_arguments(words: Sequence[str], what: str, environment: Mapping[str, str]) -> dict[str, str]:
    """``NAME=VALUE`` each; ``NAME`` alone takes this program's variable, if there is one.

    Raises:
        UsageError: ``usage.build``.
    """
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or "\0" in word:
            raise UsageError(f"{what} {word}: no name", code="build", hint=f"write {what} NAME=VALUE")
        if equals:
            found[name] = value
        elif name in environment:
            found[name] = environment[name]
    return found


def parse_secret(word: str, environment: Mapping[str, str]) -> Secret:
    """``id=ID[,src=FILE|,env=NAME]``. Raises ``UsageError``: ``usage.build``: malformed, or not there."""
    fields = dict(part.partition("=")[::2] for part in word.split(","))
    name = fields.get("id", "")
    source = fields.get("src") or fields.get("source") or ""
    variable = fields.get("env", "")
    hint = "write --secret id=ID,src=FILE or --secret id=ID,env=VARIABLE"
    if not name or set(fields) - {"id", "src", "source", "env", "type"} or not all(map(_is_plain, name)):
        raise UsageError(f"--secret {word}: malformed", code="build", hint=hint)
    if not source:
        value = environment.get(variable or name)
        if value is None:
            raise UsageError(f"--secret {word}: there is no variable", code="build", hint=hint)
        return Secret(name, os.fsencode(value))
    try:
        with open(os.path.expanduser(source), "rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise UsageError(f"--secret {word}: {error.strerror}", code="build", hint=hint) from error
    if len(data) > _MOST:
        raise UsageError(f"--secret {word}: it has more than 1 MiB", code="build", hint=hint)
    return Secret(name, data)


def _is_plain(letter: str) -> bool:
    return letter.isascii() and (letter.isalnum() or letter in "._-")


def variables(wishes: Wishes, native: Platform) -> dict[str, str]:
    """What a Containerfile may use before its first FROM: arguments, and the platforms' names."""
    target = wishes.platform or native
    known = {}
    for which, platform in (("BUILD", native), ("TARGET", target)):
        known[f"{which}PLATFORM"] = str(platform)
        known[f"{which}OS"] = platform.os
        known[f"{which}ARCH"] = platform.architecture
        known[f"{which}VARIANT"] = platform.variant
    return {**known, **wishes.arguments}


def arguments(build: str, wishes: Wishes, bases: Mapping[str, str]) -> list[str]:
    """The command that builds.

    Args:
        build: name of the build: its directories have Containerfile, context and secrets.
        wishes: what is wanted.
        bases: ids of images that the builder has, by the names that the Containerfile has for them.
    """
    memory = memory_of(build)
    words = [
        *("buildah", "build", "--format", "oci", "--isolation", "oci", "--network", "host"),
        *("--cgroup-parent", f"/atoll-build-{build}/step", "--layers", "--force-rm"),
        *("--ignorefile", f"{memory}/ignore", "--iidfile", f"{memory}/id", "-f", f"{memory}/Containerfile"),
    ]
    if not wishes.cache:
        words.append("--no-cache")
    if wishes.target:
        words += ["--target", wishes.target]
    if wishes.platform is not None:
        words += ["--platform", str(wishes.platform)]
    for name, value in wishes.arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    for name, value in wishes.labels.items():
        words += ["--label", f"{name}={value}"]
    for number, secret in enumerate(wishes.secrets):
        words += ["--secret", f"id={secret.id},src={memory}/secret.{number}"]
    for name, identifier in bases.items():
        words += ["--build-context", f"{name}=container-image://{identifier}"]
    return [*words, f"{work_of(build)}/context"]
