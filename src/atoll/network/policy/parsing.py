"""Policies as users write them.

::

    allow tcp *.example.org:443     below example.org, at one port
    allow example.org               that name alone, by any protocol
    allow [2001:db8::/32]:80,8000-8100
    deny 10.0.0.0/8
    deny udp *                      everywhere
    registries                      the rules of a preset
    default deny                    where none of them matches
    limit rate 10M                  bytes in a second, in each direction
    limit connections 100/s         new ones in a second
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from atoll.errors import UsageError
from atoll.network.dns.labels import is_hostname
from atoll.network.policy.presets import PRESETS
from atoll.network.policy.rules import Action, Domain, Limits, Policy, Ports, Protocol, Rule

__all__ = ["parse_policy", "parse_rule"]

_HINT: Final = "write for example: allow tcp *.example.org:443"

#: An address or network of IPv6 in brackets, or whatever has no colon; and ports.
_PLACE: Final = re.compile(r"(?:\[(?P<six>[^][]*)\]|(?P<name>[^:\[\]]*))(?::(?P<ports>.*))?")
_RANGE: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")

#: What may be limited, each with how it is written. Rates are decimal, as those of links are.
_LIMITS: Final = {
    "rate": re.compile(r"(\d{1,12})([KMG]?)B?(?:/s)?", re.ASCII | re.IGNORECASE),
    "connections": re.compile(r"(\d{1,9})()(?:/s)?", re.ASCII),
}
_UNITS: Final = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}

#: The least rate, bytes in a second: below it a guest could hardly be told so.
_LEAST_RATE: Final = 1000

#: Lines of one policy, which is looked through for each connection.
MOST_LINES: Final = 1000


def parse_policy(lines: Iterable[str]) -> Policy:
    """A policy from its lines: rules, presets, ``default ACTION``, ``limit WHAT NUMBER``.

    Empty lines and ``#`` comments pass. Of several limits of one kind the last counts.

    Where no default is said it is that of the last preset; else to deny if a rule allows something, as that
    rule were of no use otherwise; else to allow.

    Raises:
        UsageError: ``usage.rule``: a line is none of these.
    """
    rules: list[Rule] = []
    default: Action | None = None
    of_preset: Action | None = None
    limits: dict[str, int] = {}
    for number, line in enumerate(lines):
        if number >= MOST_LINES:
            raise UsageError(f"a policy of more than {MOST_LINES} lines", code="rule", hint=_HINT)
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) == 1 and words[0] in PRESETS:
            rules += map(parse_rule, PRESETS[words[0]].rules)
            of_preset = Action(PRESETS[words[0]].default)
        elif words[0] == "default":
            default = _action(" ".join(words[1:]), line)
        elif words[0] == "limit":
            limits |= _limit(words[1:], line)
        else:
            rules.append(parse_rule(line.partition("#")[0]))
    implied = Action.DENY if any(rule.action is Action.ALLOW for rule in rules) else Action.ALLOW
    return Policy(tuple(rules), default or of_preset or implied, Limits(**limits))


def parse_rule(text: str) -> Rule:
    """One rule: ``ACTION [PROTOCOL] PLACE[:PORTS]``.

    Raises:
        UsageError: ``usage.rule``: it is none.
    """
    words = text.split()
    if not words:
        raise _wrong(text, "is empty")
    action = _action(words[0], text)
    protocol = Protocol(words[1]) if len(words) > 1 and words[1] in set(Protocol) else None
    places = words[2:] if protocol else words[1:]
    if len(places) != 1:
        raise _wrong(text, "names no place, or more than one", "write * for everywhere")
    where, ports = _place(places[0], text)
    if ports and protocol is Protocol.ICMP:
        raise _wrong(text, "gives ports to icmp, which has none")
    return Rule(action, where, protocol, ports)


def _limit(words: list[str], text: str) -> dict[str, int]:
    hint = "write for example: limit rate 10M, or: limit connections 100/s"
    found = _LIMITS[words[0]].fullmatch(words[1]) if len(words) == 2 and words[0] in _LIMITS else None
    if found is None:
        raise _wrong(text, "has no limit", hint)
    value = int(found[1]) * _UNITS[found[2].upper()]
    if value < (_LEAST_RATE if words[0] == "rate" else 1):
        raise _wrong(text, "is too low", f"the least rate is {_LEAST_RATE} bytes in a second")
    return {words[0]: value}


def _action(word: str, text: str) -> Action:
    if word not in set(Action):
        raise _wrong(text, "says neither allow nor deny")
    return Action(word)


def _place(place: str, text: str) -> tuple[Domain | IPv4Network | IPv6Network | None, tuple[Ports, ...]]:
    if place.count(":") > 1 and not place.startswith("["):
        return _network(place, text), ()
    found = _PLACE.fullmatch(place)
    if found is None:
        raise _wrong(text, f"has no place in {place!r}")
    ports = () if found["ports"] is None else tuple(_ports(part, text) for part in found["ports"].split(","))
    if found["six"] is not None:
        return _network(found["six"], text), ports
    name = found["name"]
    if name == "*":
        return None, ports
    if re.fullmatch(r"[\d./]+", name):
        return _network(name, text), ports
    return _domain(name, text), ports


def _network(written: str, text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(written)
    except ValueError as error:
        raise _wrong(text, f"has no network: {error}", "the bits after the prefix must be zero") from None


def _domain(written: str, text: str) -> Domain:
    name = written.lower().removesuffix(".")
    below = name.startswith("*.")
    domain = Domain(name.removeprefix("*."), below)
    if not is_hostname(domain.name):
        hint = "write a name of ASCII letters, with *. before it for all names below it"
        raise _wrong(text, f"has no domain name in {written!r}", hint)
    return domain


def _ports(written: str, text: str) -> Ports:
    found = _RANGE.fullmatch(written)
    first = int(found[1]) if found else 0
    last = int(found[2]) if found and found[2] else first
    if not 0 < first <= last <= 65535:
        raise _wrong(text, f"has no port in {written!r}", "write ports as 443, 8000-8100 or 80,443")
    return Ports(first, last)


def _wrong(text: str, why: str, hint: str = _HINT) -> UsageError:
    return UsageError(f"rule {text.strip()!r} {why}", code="rule", hint=hint)
