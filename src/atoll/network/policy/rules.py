"""Rules about what a guest may reach, and a policy made of them.

The first rule that matches decides, else the default. A rule by domain matches an address that the network's
name server gave the guest for such a name; what that proves, and what the guest's first bytes must prove
beside it, is said at ``Policy.decide`` and ``Policy.decide_named``.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

import msgspec

__all__ = ["Action", "Domain", "Judgement", "Limits", "Policy", "Ports", "Protocol", "Rule", "Verdict"]

#: Ports where a client says first, and in the clear, whom it wants: HTTP and TLS (IANA, Service Names).
NAMED_PORTS: Final = frozenset({80, 443, 8080, 8443})

#: Where HTTP/3 is; its first bytes name nobody in the clear (RFC 9001, section 5.2).
_QUIC_PORT: Final = 443


class Action(StrEnum):
    """What a rule does."""

    ALLOW = "allow"
    DENY = "deny"


class Protocol(StrEnum):
    """What is told apart above IP."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class Domain(msgspec.Struct, frozen=True):
    """A name, or all names below it.

    Attributes:
        name: lower case, no dot at its end.
        below: names with any number of labels before ``name``; then ``name`` itself is not meant.
    """

    name: str
    below: bool = False

    def matches(self, name: str) -> bool:
        """Whether ``name``, written likewise, is meant."""
        return name.endswith(f".{self.name}") if self.below else name == self.name

    def __str__(self) -> str:
        return f"*.{self.name}" if self.below else self.name


class Ports(msgspec.Struct, frozen=True):
    """Ports from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Rule(msgspec.Struct, frozen=True):
    """One rule.

    Attributes:
        action: what becomes of what it matches.
        where: None is everywhere.
        protocol: None is any.
        ports: none are all; a rule with ports is of no use to ICMP.
    """

    action: Action
    where: Domain | IPv4Network | IPv6Network | None = None
    protocol: Protocol | None = None
    ports: tuple[Ports, ...] = ()

    def concerns(self, protocol: Protocol, port: int) -> bool:
        """Whether it says anything of this protocol and port."""
        if self.protocol not in {None, protocol}:
            return False
        return not self.ports or any(ports.first <= port <= ports.last for ports in self.ports)

    @property
    def is_total(self) -> bool:
        """Whether it concerns all protocols and ports."""
        return self.protocol is None and not self.ports

    def __str__(self) -> str:
        where = "*" if self.where is None else str(self.where)
        if self.ports:
            where = f"[{where}]" if isinstance(self.where, IPv6Network) else where
            where += ":" + ",".join(map(str, self.ports))
        return " ".join([self.action, *([self.protocol] if self.protocol else []), where])


class Judgement(StrEnum):
    """What becomes of a connection or datagram; ``ASK`` is up to the first bytes of the guest's."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Verdict(msgspec.Struct, frozen=True):
    """A decision.

    Attributes:
        judgement: what becomes of it.
        rule: the rule that decided; None is the default.
    """

    judgement: Judgement
    rule: Rule | None = None


class Limits(msgspec.Struct, frozen=True):
    """How much may be had of what is allowed.

    Attributes:
        rate: bytes of payload in a second, in each direction; 0 for any number.
        connections: new ones in a second; 0 for any number.
    """

    rate: int = 0
    connections: int = 0


class Policy(msgspec.Struct, frozen=True):
    """Rules in their order, what is done where none matches, and how much may be had."""

    rules: tuple[Rule, ...] = ()
    default: Action = Action.ALLOW
    limits: Limits = Limits()

    def decide(self, protocol: Protocol, address: bytes, port: int, names: Collection[str]) -> Verdict:
        """Decide before a byte has passed.

        A rule by domain matches if it matches one of ``names``. But others may be at the same address, which
        the guest has not asked for. So where what it says could change the verdict, and the port is one of
        ``NAMED_PORTS``, it is ``ASK``: connect, but pass nothing of the guest's on before ``decide_named``
        has allowed it. At other ports nothing more can be known.

        Args:
            protocol: of the packet.
            address: 4 or 16 bytes.
            port: 0 for ICMP.
            names: that the guest was told to be at this address.
        """
        end = (protocol, address, port)
        known = frozenset(names)
        verdict = self._first(*end, known, known)
        if protocol is Protocol.TCP and port in NAMED_PORTS:
            silent = self.decide_named(*end, known, None)
            said = (self.decide_named(*end, known, name) for name in known)
            if self._may_be_denied(silent, port) or any(
                each.judgement is not silent.judgement for each in said
            ):
                return Verdict(Judgement.ASK, verdict.rule)
        return verdict

    def decide_named(
        self, protocol: Protocol, address: bytes, port: int, names: Collection[str], said: str | None
    ) -> Verdict:
        """Decide after ``ASK``, when the guest has said whom it wants; ``said`` is None if it does not say.

        It may say what it likes: a rule by domain that allows only matches a name that is both said and known
        for the address. One that denies matches what is said, whoever is at the address.
        """
        claimed = frozenset() if said is None else frozenset({said})
        return self._first(protocol, address, port, claimed & frozenset(names), claimed)

    def may_resolve(self, name: str) -> bool:
        """Whether the guest may be told addresses of a name, lower case and without a dot at its end.

        It may if some protocol and port at that name could be allowed. Rules about addresses do not count:
        what is asked of a name server reaches others, so that under a default of deny it would be a way out.
        """
        for rule in self.rules:
            is_meant = rule.where is None or (isinstance(rule.where, Domain) and rule.where.matches(name))
            if is_meant and rule.action is Action.ALLOW:
                return True
            if is_meant and rule.is_total:
                return False
        return self.default is Action.ALLOW

    def _first(
        self,
        protocol: Protocol,
        address: bytes,
        port: int,
        allowable: frozenset[str],
        deniable: frozenset[str],
    ) -> Verdict:
        for rule in self.rules:
            if not rule.concerns(protocol, port):
                continue
            names = allowable if rule.action is Action.ALLOW else deniable
            if _is_at(rule, protocol, address, port, names):
                return Verdict(Judgement(rule.action), rule)
        return Verdict(Judgement(self.default))

    def _may_be_denied(self, silent: Verdict, port: int) -> bool:
        """Whether one who would be allowed without a name would be denied with some name."""
        for rule in self.rules:
            if rule is silent.rule:
                break
            is_denial = rule.action is Action.DENY and isinstance(rule.where, Domain)
            if is_denial and rule.concerns(Protocol.TCP, port):
                return silent.judgement is Judgement.ALLOW
        return False


def _is_at(rule: Rule, protocol: Protocol, address: bytes, port: int, names: Collection[str]) -> bool:
    where = rule.where
    if where is None:
        return True
    if not isinstance(where, Domain):
        return len(where.network_address.packed) == len(address) and ip_address(address) in where
    hides_its_name = protocol is Protocol.UDP and port == _QUIC_PORT
    if hides_its_name and rule.action is Action.ALLOW and rule.protocol is not Protocol.UDP:
        return False
    return any(where.matches(name) for name in names)
