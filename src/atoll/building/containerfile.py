"""Which images a Containerfile is built on, as far as its target needs them. Pure.

All else that it says is the builder's to read. Source: Docker's reference of the Dockerfile, "Parser
directives", "FROM", "ARG", "COPY --from", "RUN --mount", "Environment replacement", "Here-Documents".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

import msgspec

__all__ = ["Base", "bases"]

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z]+)\s*=\s*(\S+)\s*")
_HEREDOC = re.compile(r"<<(-?)\s*(['\"]?)([A-Za-z_][A-Za-z0-9_.]*)\2")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])((?:[^{}]|\{[^{}]*\})*))?\})|\\(.)", re.ASCII)
_FLAG = re.compile(r"--([a-z]+)(?:=(.*))?", re.DOTALL)
_SCRATCH = "scratch"


class Base(msgspec.Struct, frozen=True):
    """An image that is needed.

    Attributes:
        name: with variables replaced.
        platform: that is asked for with it; empty for that of the build.
        written: the name as it is written, by which the builder looks it up.
    """

    name: str
    platform: str = ""
    written: str = ""


class _Stage:
    """What one FROM begins."""

    def __init__(self, name: str, base: Base) -> None:
        self.name = name
        self.needs = [base]


def bases(text: str, arguments: Mapping[str, str], *, target: str = "") -> tuple[Base, ...]:
    """The images that building ``target`` needs, by default the last stage, each once.

    Args:
        text: of the Containerfile.
        arguments: variables that are given to the build, beside those that the file has defaults for.
        target: name or number of a stage.
    """
    stages = _stages(text, arguments)
    if not stages:
        return ()
    last = _find(stages, target, len(stages)) if target else len(stages) - 1
    found: dict[Base, None] = {}
    wanted, seen = [len(stages) - 1 if last is None else last], set[int]()
    while wanted:
        number = wanted.pop()
        if number in seen:
            continue
        seen.add(number)
        for base in stages[number].needs:
            other = _find(stages, base.name, number)
            if other is not None:
                wanted.append(other)
            elif base.name and base.name != _SCRATCH:
                found[base] = None
    return tuple(sorted(found, key=lambda base: (base.name, base.platform, base.written)))


def _find(stages: list[_Stage], name: str, before: int) -> int | None:
    """The stage that a name means where ``before`` of them are there."""
    if name.isdecimal() and int(name) < before:
        return int(name)
    known = [number for number in range(before) if stages[number].name == name.lower() != ""]
    return known[-1] if known else None


def _stages(text: str, arguments: Mapping[str, str]) -> list[_Stage]:
    known = dict(arguments)
    stages: list[_Stage] = []
    for word, rest in _instructions(text):
        if word == "ARG" and not stages:
            _note(rest, known, arguments)
        elif word == "FROM":
            flags, words = _flags(rest)
            name = words[2].lower() if len(words) > 2 and words[1].lower() == "as" else ""
            written = words[0] if words else ""
            platform = _expanded(flags.get("platform", ""), known)
            stages.append(_Stage(name, Base(_expanded(written, known), platform, written)))
        elif word in {"COPY", "ADD"} and stages:
            source = _flags(rest)[0].get("from", "")
            stages[-1].needs.append(Base(_expanded(source, known), written=source))
        elif word == "RUN" and stages:
            stages[-1].needs += [Base(_expanded(one, known), written=one) for one in _mounted(rest)]
    return stages


def _note(rest: str, known: dict[str, str], given: Mapping[str, str]) -> None:
    """Take the variables of an ARG with their defaults."""
    for one in _words(rest):
        name, equals, value = one.partition("=")
        if equals and name not in given:
            known[name] = _expanded(value, known)


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError:  # an odd quote: the builder says so
        return rest.split()


def _flags(rest: str) -> tuple[dict[str, str], list[str]]:
    words = rest.split()
    flags: dict[str, str] = {}
    while words and (match := _FLAG.fullmatch(words[0])):
        flags[match[1]] = (match[2] or "").strip("\"'")
        words.pop(0)
    return flags, words


def _mounted(rest: str) -> Iterator[str]:
    """What the mounts of a RUN are from."""
    for word in rest.split():
        if not word.startswith("--"):
            return
        if word.startswith("--mount="):
            for part in word.removeprefix("--mount=").split(","):
                key, _, value = part.partition("=")
                if key == "from":
                    yield value


def _expanded(text: str, known: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[5] is not None:
            return match[5]
        name, how, other = match[1] or match[2], match[3] or "", match[4] or ""
        found = known.get(name)
        there = bool(found) if ":" in how else found is not None
        if how.endswith("-"):
            return (found or "") if there else _expanded(other, known)
        if how.endswith("+"):
            return _expanded(other, known) if there else ""
        return found or ""

    return _VARIABLE.sub(value, text)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction's word in capitals and what follows it, on one line, without here-documents."""
    lines = iter(text.removeprefix("\ufeff").splitlines())
    escape = _escape(text)
    for line in lines:
        whole = line.strip()
        if not whole or whole.startswith("#"):
            continue
        while whole.endswith(escape):
            following = next(lines, None)
            if following is None:
                whole = whole.removesuffix(escape)
                break
            if following.strip() and not following.lstrip().startswith("#"):
                whole = whole.removesuffix(escape) + following.rstrip()
        word, _, rest = whole.partition(" ") if " " in whole else whole.partition("\t")
        if word.upper() in {"RUN", "COPY", "ADD"}:
            for dash, _, end in _HEREDOC.findall(rest):
                for body in lines:
                    if (body.lstrip("\t") if dash else body) == end:
                        break
        yield word.upper(), rest.strip()


def _escape(text: str) -> str:
    for line in text.removeprefix("\ufeff").splitlines():
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None:
            return "\\"
        if match[1].lower() == "escape":
            return "`" if match[2] == "`" else "\\"
    return "\\"
