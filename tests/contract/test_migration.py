"""A migration between two engines that speak the parts of Docker's API that it uses."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import tarfile

import msgspec
import pytest
from docker_engines import Engine, plain, serving

from atoll.containers.migration.plans import Kind, Verdict, Wishes
from atoll.containers.migration.remote import Remote
from atoll.containers.migration.session import Ends, migrate, outline
from atoll.errors import EngineError, StoreError, UsageError


def source():
    engine = Engine("source")
    number = engine.add_image(os.urandom(3000), ["web:1", "registry.test:5000/team/web:stable"])
    root = plain("", 0)
    root.type, root.mode, root.uid = tarfile.DIRTYPE, 0o1770, 7
    file = plain("file\nname", 2000)
    file.mode, file.uid = 0o4755, 1000
    tree = engine.volume("things", {}, {"a": "b"})["tree"]
    tree[""] = (root, b"")
    tree["file\nname"] = (file, os.urandom(2000))
    engine.networks["lan"] = {
        "Id": "n-source",
        "Name": "lan",
        "Driver": "bridge",
        "Scope": "local",
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]},
        "Labels": {"x": "y"},
    }
    mounts = [{"Type": "volume", "Source": "things", "Target": "/data"}]
    made = engine.container(
        "web",
        {
            "Image": "web:1",
            "HostConfig": {"NetworkMode": "lan", "Mounts": mounts},
            "NetworkingConfig": {"EndpointsConfig": {"lan": {"Aliases": ["www"]}}},
        },
    )
    engine.containers[made]["State"]["Status"] = "running"
    engine.volume("alone")
    return engine, number


@pytest.fixture
def ends(tmp_path):
    return Ends(source=tmp_path / "source", target=tmp_path / "target", journals=tmp_path / "journals")


async def told(path, order=None):
    async with Remote(path, "it", writable=True) as remote:
        return await remote.ask("POST", "/_tell", body=order)


async def carried(ends, **wishes):
    async with migrate(ends, Wishes(**wishes)) as (_, plan, carrier):
        return plan, await carrier.carry(plan)


def in_child(work):
    """Run ``work`` in a process that may be killed; its exit status, negative for a signal."""
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(work)
        finally:
            os._exit(0)
    work.close()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def verdicts(plan):
    return {(one.kind, one.name): one.verdict for one in plan.items}


def test_a_migration_that_is_killed_anywhere_is_ended_by_the_same_command(tmp_path):
    engine = source()[0]
    places = [tmp_path / name for name in ("source", "target")]

    def ended(number, when):
        """What a migration comes to that is killed then, and run again."""
        ends = Ends(source=places[0], target=places[1], journals=tmp_path / f"{number}-{when}")
        with serving((ends.source, engine), (ends.target, Engine("target"))):
            before = asyncio.run(told(ends.source))
            asyncio.run(told(ends.target, [number, when]))
            if number:
                assert in_child(carried(ends)) == -signal.SIGKILL
                asyncio.run(told(ends.target, [0, "never"]))
            _, outcome = asyncio.run(carried(ends))
            assert not outcome.failures, (number, when)
            assert asyncio.run(told(ends.source)) == before
            state = asyncio.run(told(ends.target))
            return before, state.pop("changes"), state.pop("uploads"), state

    before, changes, uploads, expected = ended(0, "never")
    assert (len(uploads), changes > 10) == (2, True)
    kills = [
        *itertools.product(range(1, changes + 1), ("before", "after")),
        *((n, "during") for n in uploads),
    ]
    for number, when in kills:
        assert ended(number, when)[3] == expected, (number, when)
    assert set(expected["containers"]) == {"/web"}
    assert expected["containers"]["/web"][0] == "running"
    assert expected["volumes"]["things"] == before["volumes"]["things"]
    assert expected["images"] == before["images"]
    assert expected["networks"] == {"lan": {"x": "y"}}


def test_what_was_carried_is_there_and_what_cannot_be_is_told_before(ends):
    engine, number = source()
    with serving((ends.source, engine), (ends.target, Engine("target"))):
        found, planned = asyncio.run(outline(ends, Wishes()))
        assert found.images[0].id == number
        first, outcome = asyncio.run(carried(ends, start=False))
        assert first.items == planned.items or verdicts(first) == verdicts(planned)
        assert (outcome.carried, outcome.failures) == (4, ())
        assert verdicts(first)[Kind.VOLUME, "alone"] is Verdict.LEFT
        again, outcome = asyncio.run(carried(ends))
        assert (again.steps, outcome.carried, outcome.bytes) == ((), 0, 0)
        assert set(verdicts(again).values()) == {Verdict.THERE, Verdict.LEFT}
        state = asyncio.run(told(ends.target))
        assert state["containers"]["/web"][0] == "created"
        helped, outcome = asyncio.run(carried(ends, helper=True))
        assert [one.volume.name for one in helped.steps] == ["alone"]
        assert (outcome.carried, outcome.failures) == (1, ())
        assert set(asyncio.run(told(ends.source))["containers"]) == {"/web"}


def test_a_part_that_arrives_changed_fails_alone_and_leaves_nothing_half(ends):
    class Careless(Engine):
        def unpack(self, name, data):
            super().unpack(name, data)
            for volume in self.volumes.values():
                for place, (member, content) in volume["tree"].items():
                    volume["tree"][place] = (member, content[::-1])

    with serving((ends.source, source()[0]), (ends.target, Careless("target"))):
        _, outcome = asyncio.run(carried(ends))
        codes = {(one.kind, one.name): one.code for one in outcome.failures}
        assert codes == {
            (Kind.VOLUME, "things"): "engine.verify",
            (Kind.CONTAINER, "web"): "engine.needs",
        }
        state = asyncio.run(told(ends.target))
        assert (state["volumes"], state["containers"]) == ({}, {})
        assert set(state["networks"]) == {"lan"}


def test_names_that_are_taken_are_refused_and_left_as_they_are(ends):
    target = Engine("target")
    target.add_image(b"other", ["web:1"])
    target.volume("things", {}, {"mine": "yes"})
    target.networks["lan"] = {"Id": "n", "Name": "lan", "Driver": "bridge", "Labels": {}, "IPAM": {}}
    with serving((ends.source, source()[0]), (ends.target, target)):
        before = asyncio.run(told(ends.target))
        plan, outcome = asyncio.run(carried(ends))
        refused = {key for key, verdict in verdicts(plan).items() if verdict is Verdict.REFUSED}
        assert refused == {(Kind.IMAGE, "web:1"), (Kind.VOLUME, "things"), (Kind.NETWORK, "lan")}
        assert verdicts(plan)[Kind.CONTAINER, "web"] is Verdict.LEFT
        assert not outcome.failures
        state = asyncio.run(told(ends.target))
        assert (state["volumes"], state["networks"]) == (before["volumes"], before["networks"])
        assert before["images"].items() <= state["images"].items()


def test_the_engine_itself_one_that_is_gone_and_a_second_migration_are_refused(ends, tmp_path):
    with serving((ends.source, source()[0]), (ends.target, Engine("source"))):
        with pytest.raises(UsageError) as caught:
            asyncio.run(carried(ends))
        assert caught.value.code == "usage.own_engine"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(ends.source))
    with pytest.raises(EngineError) as lost:
        asyncio.run(carried(ends))
    assert lost.value.code == "engine.unreachable"
    ends.source.unlink()

    async def twice():
        async with migrate(ends, Wishes()):
            await carried(ends)

    with serving((ends.source, source()[0]), (ends.target, Engine("target"))):
        with pytest.raises(StoreError) as busy:
            asyncio.run(twice())
        assert busy.value.code == "store.busy"


def test_the_source_is_never_asked_to_change(ends):
    async def ask():
        async with Remote(ends.source, "the source") as remote:
            await remote.ask("DELETE", "/volumes/things")

    with serving((ends.source, source()[0])):
        with pytest.raises(EngineError) as caught:
            asyncio.run(ask())
        assert caught.value.code == "engine.read_only"
        assert msgspec.json.encode(asyncio.run(told(ends.source))["volumes"]).count(b"things") == 1
