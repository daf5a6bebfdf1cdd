"""Which files of a directory are no part of a build: ``.dockerignore``. Pure.

Syntax and meaning are those of Docker's client (its documentation, "Build context", and the project
moby/patternmatcher): one pattern a line, relative to the context, the last one that fits decides, ``!`` takes
files in again, ``**`` stands for any number of directories, and what is in a directory goes with it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

import msgspec

from atoll.errors import BuildError

__all__ = ["Ignored", "parse"]

#: What ``regexp`` would take for its own, and a pattern means as it is.
_PLAIN = frozenset(".+()|{}$^")

_WILD = re.compile(r"[*?\[\\]")


class _Rule(msgspec.Struct, frozen=True):
    """A line.

    Attributes:
        pattern: its words, for a look at what may lie below a directory.
        matches: whether a path is meant by it.
        keep: it takes files in again.
    """

    pattern: str
    matches: re.Pattern[str]
    keep: bool


class Ignored:
    """What is left out of a context.

    Args:
        rules: in their order.
    """

    def __init__(self, rules: Sequence[_Rule] = ()) -> None:
        self._rules = tuple(rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: str) -> bool:
        """Whether the file or directory at ``path``, relative and with slashes, is left out."""
        parts = path.split("/")
        ways = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        excluded = False
        for rule in self._rules:
            if rule.keep == excluded and any(rule.matches.fullmatch(way) for way in ways):
                excluded = not rule.keep
        return excluded

    def may_keep_below(self, directory: str) -> bool:
        """Whether a line may take in again what is below a directory that is left out."""
        parts = directory.split("/")
        return any(rule.keep and _may_lead(rule.pattern.split("/"), parts) for rule in self._rules)


def _may_lead(pattern: list[str], directory: list[str]) -> bool:
    """Whether a pattern may mean something below a directory, or that, or one that it lies in."""
    for word, name in zip(pattern, directory, strict=False):
        if _WILD.search(word):
            return True
        if word != name:
            return False
    return True


def parse(text: str, *, name: str) -> Ignored:
    """What the file ``name``, which holds ``text``, leaves out.

    Raises:
        BuildError: ``build.ignore``: a line of it is no pattern.
    """
    rules = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        pattern = "" if line.startswith("#") else line.strip()
        keep = pattern.startswith("!")
        pattern = pattern[keep:].strip()
        if not pattern:
            if keep:
                raise _refuse(name, number, "! stands alone")
            continue
        pattern = posixpath.normpath(pattern)
        pattern = re.sub(r"^/+", "", pattern) or "/"
        try:
            rules.append(_Rule(pattern, re.compile(_expression(pattern), re.DOTALL), keep))
        except re.error as error:
            raise _refuse(name, number, f"{pattern!r} is no pattern") from error
    return Ignored(rules)


def _refuse(name: str, number: int, what: str) -> BuildError:
    hint = "write one pattern a line, as docs/*.md, and ! before one to take files in again"
    return BuildError(f"{name}, line {number}: {what}", code="ignore", hint=hint)


def _expression(pattern: str) -> str:
    """A regular expression that means the same."""
    made = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*" and pattern[at : at + 1] == "*":
            at += 1
            at += pattern[at : at + 1] == "/"
            made.append(".*" if at >= len(pattern) else "(?:.*/)?")
        elif character == "*":
            made.append("[^/]*")
        elif character == "?":
            made.append("[^/]")
        elif character == "[":
            word, at = _class(pattern, at)
            made.append(word)
        elif character == "\\":
            if at >= len(pattern):
                raise re.error("it ends with a backslash")
            made.append(re.escape(pattern[at]))
            at += 1
        else:
            made.append(re.escape(character))
    return "".join(made)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class of characters that begins behind the bracket, and where it ends (Go's path.Match)."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while pattern[at : at + 1] != "]" or not ranges:
        low, at = _letter(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _letter(pattern, at + 1)
        if high < low:
            raise re.error("a range goes backwards")
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")
    return f"[{'^/' if negated else ''}{''.join(ranges)}]", at + 1


def _letter(pattern: str, at: int) -> tuple[str, int]:
    at += pattern[at : at + 1] == "\\"
    if at >= len(pattern) or (pattern[at] in "-]" and pattern[at - 1 : at] != "\\"):
        raise re.error("a class of characters is malformed")
    return pattern[at], at + 1
