"""What a migration does, and what it does not and why: two inventories in, steps out. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from atoll.containers.migration import matching, reading, translating
from atoll.containers.migration.inventory import Container, Image, Inventory, Network, Volume
from atoll.containers.migration.journal import Journal, key
from atoll.containers.migration.plans import (
    ContainerStep,
    ImageStep,
    Item,
    Kind,
    NetworkStep,
    Plan,
    Reason,
    Step,
    Tagged,
    Verdict,
    VolumeStep,
    Wishes,
)
from atoll.containers.migration.translating import Place

__all__ = ["plan"]

#: Networks of a driver that works in a machine without a part of its host.
_NETWORK_DRIVERS = frozenset({"bridge"})

_RUNNING = frozenset({"running", "paused", "restarting"})


def plan(source: Inventory, target: Inventory, wishes: Wishes, journal: Journal, place: Place) -> Plan:
    """Decide for everything that the source has.

    Args:
        source: from which.
        target: to which.
        wishes: of the user.
        journal: what was done before.
        place: what containers can have of this host.
    """
    return _Planner(source, target, wishes, journal, place).plan()


class _Planner:
    """The state of one plan while it is made."""

    def __init__(
        self, source: Inventory, target: Inventory, wishes: Wishes, journal: Journal, place: Place
    ) -> None:
        self.source, self.target, self.wishes = source, target, wishes
        self.journal, self.place = journal, place
        self.names = {one.id: one.name for one in source.containers}
        self.chosen = self._chosen()
        self.items: list[Item] = []
        self.verdicts: dict[str, Verdict] = {}
        self.twins = matching.twins(source, target)
        self.tags: dict[str, str] = {}

    def plan(self) -> Plan:
        """All of it."""
        steps: list[Step] = [*self._images(), *self._volumes(), *self._networks(), *self._containers()]
        for other in self.source.others:
            why = Reason("not_carried", f"a {other.kind} is not carried")
            self._add(
                Item(kind=Kind.OTHER, name=other.name, verdict=Verdict.LEFT, reasons=(why,)), other.name
            )
        return Plan(items=tuple(self.items), steps=tuple(steps), twins=self.twins)

    def _add(self, item: Item, name: str) -> bool:
        """Note an item; whether it is carried."""
        self.items.append(item)
        self.verdicts[key(item.kind, name)] = item.verdict
        return item.verdict is Verdict.CARRY

    def _chosen(self) -> frozenset[str]:
        """The keys of all that is wanted, and of what it needs."""
        wishes = self.wishes
        found = {
            key(Kind.CONTAINER, one.id)
            for one in self.source.containers
            if wishes.choose(Kind.CONTAINER, (one.name,))
        }
        for one in self.source.containers:
            if key(Kind.CONTAINER, one.id) in found:
                found |= set(self._needs(one))
        found |= {
            key(Kind.IMAGE, one.id)
            for one in self.source.images
            if (one.tags or one.digests)
            and wishes.choose(Kind.IMAGE, (*one.tags, *map(_short, one.tags), *one.digests))
        }
        found |= {
            key(Kind.VOLUME, one.name)
            for one in self.source.volumes
            if not _is_anonymous(one) and wishes.choose(Kind.VOLUME, (one.name,))
        }
        found |= {
            key(Kind.NETWORK, one.name)
            for one in self.source.networks
            if wishes.choose(Kind.NETWORK, (one.name,))
        }
        return frozenset(one for one in found if Kind(one.partition(":")[0]) in wishes.kinds)

    def _needs(self, container: Container) -> Iterator[str]:
        yield key(Kind.IMAGE, container.image)
        yield from (key(Kind.VOLUME, name) for name in translating.volumes(container))
        yield from (key(Kind.NETWORK, name) for name in self._networks_of(container))

    def _partners(self, container: Container) -> Iterator[str]:
        ids = {name: number for number, name in self.names.items()}
        for name in translating.partners(container, self.names):
            yield key(Kind.CONTAINER, ids.get(name, ""))

    def _networks_of(self, container: Container) -> tuple[str, ...]:
        own = {one.name for one in self.source.networks}
        found = (container.inspected.get("NetworkSettings") or {}).get("Networks") or {}
        return tuple(sorted(own.intersection(found)))

    # Images.

    def _images(self) -> Iterator[ImageStep]:
        carried = [one for image in self.source.images for one in self._image(image)]
        for group in matching.together([one for one in carried if not one.present]):
            yield ImageStep(group)
        yield from (ImageStep((one,)) for one in carried if one.present)

    def _image(self, image: Image) -> Iterator[Tagged]:
        name = next(iter((*image.tags, *image.digests, image.id[:19])))
        if key(Kind.IMAGE, image.id) not in self.chosen:
            if (
                not image.tags
                and not image.digests
                and Kind.IMAGE in self.wishes.kinds
                and not self.wishes.names
            ):
                why = Reason("untagged", "it has no name, and no container that is carried uses it")
                item = Item(kind=Kind.IMAGE, name=name, verdict=Verdict.LEFT, reasons=(why,), size=image.size)
                self._add(item, image.id)
            return
        if image.os != "linux":
            why = Reason("platform", f"it is for {image.os}")
            item = Item(kind=Kind.IMAGE, name=name, verdict=Verdict.LEFT, reasons=(why,), size=image.size)
            self._add(item, image.id)
            return
        present = self.twins.get(image.id, "")
        theirs = {tag: one.id for one in self.target.images for tag in one.tags}
        free = tuple(tag for tag in image.tags if theirs.get(tag) in {None, present or None})
        losses = []
        if image.architecture not in {"", self.target.architecture or image.architecture}:
            losses.append(f"it is for {image.architecture}: its containers need an emulator")
        if image.digests and not image.tags:
            losses.append("the name by which its registry knows it")
        missing = any(tag not in theirs for tag in free)
        verdict = Verdict.CARRY if missing or not present else Verdict.THERE
        refused = [tag for tag in image.tags if tag not in free]
        if refused and not free:
            verdict = Verdict.REFUSED
        self.tags.update(dict.fromkeys(free, image.id))
        reasons = [Reason("tag_taken", f"the target has another image {tag}") for tag in refused]
        shown = verdict is Verdict.REFUSED
        item = Item(
            kind=Kind.IMAGE,
            name=", ".join(free) or name,
            verdict=verdict,
            reasons=tuple(reasons) if shown else (),
            losses=tuple(losses),
            size=image.size if verdict is Verdict.CARRY and not present else 0,
        )
        self._add(item, image.id)
        for tag, why in () if shown else zip(refused, reasons, strict=True):
            self.items.append(Item(kind=Kind.IMAGE, name=tag, verdict=Verdict.REFUSED, reasons=(why,)))
        if verdict is Verdict.CARRY:
            yield Tagged(image, free, present)

    # Volumes.

    def _volumes(self) -> Iterator[VolumeStep]:
        theirs = {one.name: one for one in self.target.volumes}
        for volume in self.source.volumes:
            name = key(Kind.VOLUME, volume.name)
            if name not in self.chosen:
                if _is_anonymous(volume) and Kind.VOLUME in self.wishes.kinds and not self.wishes.names:
                    unused = Reason("anonymous", "no container that is carried uses it")
                    self._volume(volume, Verdict.LEFT, unused)
                continue
            defined = reading.is_definition(volume)
            found = reading.obstacle(volume, self.place)
            why = Reason(*found) if found is not None else None
            via = None if defined else reading.via(volume.name, self.source.containers)
            if why is None and not defined and via is None and not self.wishes.helper:
                text = "no container mounts it alone: --helper makes one at the source to read it"
                why = Reason("unread", text)
            there = theirs.get(volume.name)
            done = self.journal.find(name)
            if why is not None:
                self._volume(volume, Verdict.LEFT, why)
            elif there is not None and done is not None and done.done and done.target == there.created:
                self._volume(volume, Verdict.THERE)
            elif there is not None and (done is None or done.done) and not (defined and _same(there, volume)):
                why = Reason("exists", "the target has a volume of that name, and it is not from here")
                self._volume(volume, Verdict.REFUSED, why)
            elif there is not None and defined and _same(there, volume):
                self._volume(volume, Verdict.THERE)
            else:
                used = via is not None and via.running
                self._volume(volume, Verdict.CARRY, losses=reading.losses(volume, running=used))
                yield VolumeStep(volume, via, not defined, there is not None)

    def _volume(
        self, volume: Volume, verdict: Verdict, why: Reason | None = None, *, losses: tuple[str, ...] = ()
    ) -> None:
        item = Item(
            kind=Kind.VOLUME,
            name=volume.name,
            verdict=verdict,
            reasons=(why,) if why is not None else (),
            losses=losses,
            size=volume.size,
        )
        self._add(item, volume.name)

    # Networks.

    def _networks(self) -> Iterator[NetworkStep]:
        theirs = {one.name: one for one in self.target.networks}
        for network in self.source.networks:
            if key(Kind.NETWORK, network.name) not in self.chosen:
                continue
            there = theirs.get(network.name)
            verdict, why = Verdict.CARRY, _network_obstacle(network)
            if why is not None:
                verdict = Verdict.LEFT
            elif there is not None and there.wanted == network.wanted:
                verdict = Verdict.THERE
            elif there is not None:
                verdict = Verdict.REFUSED
                why = Reason("exists", "the target has another network of that name")
            elif (taken := self._overlap(network)) is not None:
                verdict, why = Verdict.REFUSED, taken
            reasons = (why,) if why is not None else ()
            item = Item(kind=Kind.NETWORK, name=network.name, verdict=verdict, reasons=reasons)
            if self._add(item, network.name):
                yield NetworkStep(network)

    def _overlap(self, network: Network) -> Reason | None:
        taken = dict.fromkeys(self.target.subnets, "that the engine made")
        taken |= {subnet: one.name for one in self.target.networks for subnet in one.subnets}
        for subnet in network.subnets:
            for other, name in taken.items():
                if _overlap(subnet, other):
                    return Reason("subnet", f"its range {subnet} overlaps {other} of the network {name}")
        return None

    # Containers.

    def _containers(self) -> Iterator[ContainerStep]:
        theirs = {one.name: one for one in self.target.containers}
        ids = {one.id for one in self.target.containers}
        networks = {one.id: one.name for one in self.source.networks}
        for container in _ordered(self.source.containers, self.names):
            if key(Kind.CONTAINER, container.id) not in self.chosen:
                continue
            done = self.journal.find(key(Kind.CONTAINER, container.id))
            there = theirs.get(container.name)
            known = there is not None and done is not None and done.target == there.id
            reasons = [Reason(*why) for why in translating.obstacles(container, self.target, self.place)]
            reasons += self._unmet(container)
            start = self.wishes.start and container.state in _RUNNING and self._is_native(container)
            if done is not None and done.done and done.target in ids:
                verdict, reasons = Verdict.THERE, []
            elif there is not None and not known:
                why = Reason("exists", "the target has a container of that name")
                verdict, reasons = Verdict.REFUSED, [why]
            else:
                verdict = Verdict.LEFT if reasons else Verdict.CARRY
            losses = tuple(translating.losses(container, start=start)) if verdict is Verdict.CARRY else ()
            item = Item(
                kind=Kind.CONTAINER,
                name=container.name,
                verdict=verdict,
                reasons=tuple(reasons),
                losses=losses,
            )
            if self._add(item, container.id):
                named = str((container.inspected.get("Config") or {}).get("Image") or "")
                image = named if self.tags.get(_full(named)) == container.image else ""
                body = translating.body(container, self.names, networks)
                needs = frozenset((*self._needs(container), *self._partners(container)))
                yield ContainerStep(container, body, image, start, needs)

    def _is_native(self, container: Container) -> bool:
        """Whether the target's processor runs it."""
        images = {one.id: one.architecture for one in self.source.images}
        wanted = images.get(container.image, "")
        return wanted in {"", self.target.architecture or wanted}

    def _unmet(self, container: Container) -> Iterator[Reason]:
        """What it needs that is not going to be there."""
        images = {one.id for one in self.source.images}
        if container.image not in images:
            yield Reason("image_gone", "the source has its image no more")
        elif not self._comes(Kind.IMAGE, container.image) and container.image not in self.twins:
            yield Reason("needs", "its image is neither carried nor at the target")
        for kind, names, have in (
            (Kind.VOLUME, translating.volumes(container), {one.name for one in self.target.volumes}),
            (Kind.NETWORK, self._networks_of(container), {one.name for one in self.target.networks}),
        ):
            for name in names:
                unasked = key(kind, name) not in self.verdicts and name in have
                if not self._comes(kind, name) and not unasked:
                    yield Reason("needs", f"its {kind} {name} is neither carried nor at the target")
        ids = {name: number for number, name in self.names.items()}
        have = {one.name for one in self.target.containers}
        for name in translating.partners(container, self.names):
            asked = key(Kind.CONTAINER, ids.get(name, "")) in self.verdicts
            if not self._comes(Kind.CONTAINER, ids.get(name, "")) and (asked or name not in have):
                yield Reason("needs", f"the container {name}, of which it is a part, is not carried")

    def _comes(self, kind: Kind, name: str) -> bool:
        return self.verdicts.get(key(kind, name)) in {Verdict.CARRY, Verdict.THERE}


def _ordered(containers: Iterable[Container], names: Mapping[str, str]) -> list[Container]:
    """Those first without which others cannot be; else as they were started."""
    waiting = sorted(containers, key=_started)
    placed: dict[str, Container] = {}
    while waiting:
        known = {one.name for one in waiting}
        ready = [
            one for one in waiting if not known.intersection(translating.partners(one, names)) - {one.name}
        ]
        first = (ready or waiting)[0]  # a ring of partners is taken as it comes
        placed[first.name] = first
        waiting.remove(first)
    return list(placed.values())


def _started(container: Container) -> tuple[str, str]:
    return str((container.inspected.get("State") or {}).get("StartedAt") or ""), container.name


def _network_obstacle(network: Network) -> Reason | None:
    if network.special:
        return Reason("special", network.special)
    if network.scope != "local":
        return Reason("swarm", "it spans a swarm")
    if network.driver not in _NETWORK_DRIVERS:
        return Reason("driver", f"its driver is {network.driver}, which needs a network card of its host")
    return None


def _overlap(one: str, other: str) -> bool:
    try:
        first, second = ipaddress.ip_network(one, strict=False), ipaddress.ip_network(other, strict=False)
    except ValueError:
        return False
    return first.version == second.version and first.overlaps(second)


def _is_anonymous(volume: Volume) -> bool:
    if "com.docker.volume.anonymous" in volume.labels:
        return True
    return len(volume.name) == 64 and not volume.name.strip("0123456789abcdef")


def _same(one: Volume, other: Volume) -> bool:
    return (one.driver, one.options, one.labels) == (other.driver, other.options, other.labels)


def _full(name: str) -> str:
    """A name of an image with its tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _short(tag: str) -> str:
    return tag.rpartition(":")[0]
