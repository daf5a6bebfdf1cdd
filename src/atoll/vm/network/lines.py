"""The cards whose frames are captured or shaped, as a network's process finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from atoll.errors import NetworkError

if TYPE_CHECKING:  # who asks does without a network's inside
    from atoll.network.lan import Guest
    from atoll.vm.network.requests import Plug, Plugged

__all__ = ["Find", "Lined", "find_lined", "not_plugged"]


class Lined(Protocol):
    """A card that is plugged in.

    Attributes:
        order: as it was asked for.
        plugged: what its VM was told.
        guest: what it is plugged into; None when it was pulled.
        gone: it was pulled.
    """

    order: Plug
    plugged: Plugged
    guest: Guest | None
    gone: asyncio.Event


#: Finds a card by its owner.
Find = Callable[[str], Lined | None]


def find_lined(find: Find, owner: str) -> tuple[Lined, Guest]:
    """The card of an owner, and what it is plugged into. Raises ``NetworkError``: ``network.unplugged``."""
    card = find(owner)
    if card is None or card.guest is None:
        raise not_plugged(owner)
    return card, card.guest


def not_plugged(name: str) -> NetworkError:
    """The error of a VM whose card is in no network of Atoll's."""
    message = f"{name}: its card is not plugged into a network of Atoll's"
    hint = "it has to run, and to have Atoll's own network: `atoll inspect NAME` tells"
    return NetworkError(message, code="unplugged", hint=hint)
