"""Networks for tests: their processes end soon after they were used."""

from __future__ import annotations

from msgspec.structs import replace

from atoll import store
from atoll.paths import NetworkPaths
from atoll.vm.network.records import Network, new_network

#: Seconds for which the process of a network stays when nobody uses it.
LINGER = 0.5


def brief_network(place: NetworkPaths) -> None:
    """Make a network, unless it is there."""
    if not place.record.exists():
        store.write_record(place.record, replace(new_network(place.directory.name), linger=LINGER))
    place.directory.chmod(0o700)


def brief(place: NetworkPaths) -> None:
    """Have the process of a network end soon after it was used; a built-in one is made."""
    brief_network(place)
    record = store.read_record(place.record, Network)
    store.write_record(place.record, replace(record, linger=LINGER))


def pid_of(place: NetworkPaths) -> int:
    """The process of a network that runs."""
    assert store.is_held(place.lock)
    return int(place.lock.read_text())
