"""Policies of cards that are plugged in, and what their guests do: requests to a network's process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from atoll.guest.messages import Empty, Request
from atoll.network.audit import FlowStatistics
from atoll.network.policy.parsing import parse_policy
from atoll.network.policy.rules import Policy
from atoll.vm.control import Method
from atoll.vm.streams import LocalStream

if TYPE_CHECKING:
    from atoll.vm.network.requests import NetworkControl

__all__ = ["FlowsRead", "PolicySet", "policing", "policy_of", "read_flows", "set_policy"]


class PolicySet(Request, frozen=True, tag="network.policy"):
    """Hold the guest of a card that is plugged in to a policy from now on.

    Attributes:
        owner: whose the card is.
        egress: the policy's lines; none for no policy.
    """

    owner: str
    egress: tuple[str, ...] = ()


class FlowsRead(Request, frozen=True, tag="network.flows"):
    """Ask what guests have open; it comes as data, one line of JSON each."""


def policy_of(lines: Iterable[str]) -> Policy | None:
    """The policy of these lines; None if they forbid nothing. Raises ``UsageError``: ``usage.rule``."""
    policy = parse_policy(lines)
    return None if policy == Policy() else policy


def policing(
    follow: Callable[[str, tuple[str, ...]], None], flows: Callable[[], list[FlowStatistics]]
) -> Mapping[str, Method]:
    """What answers these requests.

    Args:
        follow: holds an owner's guest to a policy; raises ``NetworkError`` or ``UsageError``.
        flows: what is open.
    """

    async def answer_policy(payload: bytes, stream: LocalStream) -> None:
        order = msgspec.msgpack.decode(payload, type=PolicySet)
        follow(order.owner, order.egress)
        stream.reply(Empty())

    async def answer_flows(_: bytes, stream: LocalStream) -> None:
        stream.reply(Empty(), end=False)
        await stream.write(b"".join(msgspec.json.encode(flow) + b"\n" for flow in flows()), end=True)

    return {"network.policy": answer_policy, "network.flows": answer_flows}


async def set_policy(control: NetworkControl, owner: str, egress: tuple[str, ...]) -> None:
    """Hold a guest to a policy. Raises ``NetworkError``: ``network.card``: its card is not plugged in."""
    await control.call(PolicySet(owner, egress), Empty)


async def read_flows(control: NetworkControl) -> list[FlowStatistics]:
    """What the guests of a network have open."""
    stream = control.open(FlowsRead(), end=True)
    data = b""
    try:
        await stream.reply(Empty)
        while more := await stream.read():
            data += more
    finally:
        stream.cancel()
    return [msgspec.json.decode(line, type=FlowStatistics) for line in data.splitlines()]
