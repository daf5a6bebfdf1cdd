"""What each guest of a network may reach: its policy, and the names that it was told."""

from __future__ import annotations

from collections.abc import Hashable

from atoll.network.dns.forwarder import Learned
from atoll.network.dns.message import Rcode
from atoll.network.policy.learned import LearnedNames
from atoll.network.policy.rules import Judgement, Policy, Protocol, Verdict

__all__ = ["Judge"]

#: For who has no policy.
_ANYTHING = Verdict(Judgement.ALLOW)


class Judge:
    """The policies of one network's guests; a guest without one may reach everything.

    The gateway's own services and the ports of the host that were opened to guests are no matter of policy,
    nor is what others began.
    """

    def __init__(self) -> None:
        self._policies: dict[Hashable, Policy] = {}
        self._names = LearnedNames()

    def follow(self, guest: Hashable, policy: Policy | None) -> None:
        """From now on ``guest`` has this policy, or none; what is open is the caller's to decide again."""
        if policy is None:
            self._policies.pop(guest, None)
        else:
            self._policies[guest] = policy

    def has_policy(self, guest: Hashable) -> bool:
        """Whether there is something that ``guest`` may not do."""
        return guest in self._policies

    def forget(self, guest: Hashable) -> None:
        """A guest is gone."""
        self._policies.pop(guest, None)
        self._names.forget(guest)

    def learn(self, learned: Learned, now: float) -> None:
        """A guest is about to be told addresses."""
        self._names.learn(learned.machine, learned.name, learned.addresses, learned.seconds, now)

    def resolve(self, guest: Hashable, name: str) -> Rcode | None:
        """See ``dns.forwarder.Verdict``: a name that the guest may not be told does not exist for it.

        REFUSED would be a failure of this name server, which programs take for one that passes: they ask the
        next one, and again. NXDOMAIN ends it at once; without a SOA record no one keeps it (RFC 2308, section
        5), so that a change of policy counts at once.
        """
        policy = self._policies.get(guest)
        return None if policy is None or policy.may_resolve(name) else Rcode.NXDOMAIN

    def names(self, guest: Hashable, address: bytes, now: float) -> tuple[str, ...]:
        """What the guest was told to be at an address of 4 or 16 bytes, the latest last."""
        return self._names.names(guest, address, now)

    def decide(self, guest: Hashable, protocol: Protocol, address: bytes, port: int, now: float) -> Verdict:
        """See ``Policy.decide``; by the names that the guest was told."""
        policy = self._policies.get(guest)
        if policy is None:
            return _ANYTHING
        return policy.decide(protocol, address, port, self.names(guest, address, now))

    def decide_named(
        self, guest: Hashable, protocol: Protocol, address: bytes, port: int, said: str | None, now: float
    ) -> Verdict:
        """See ``Policy.decide_named``."""
        policy = self._policies.get(guest)
        if policy is None:
            return _ANYTHING
        return policy.decide_named(protocol, address, port, self.names(guest, address, now), said)
