"""Templates that users make: prepared, frozen with their processes, started from again."""

from __future__ import annotations

import asyncio
import os

import pytest
from msgspec.structs import replace

import atoll
from atoll import aio
from atoll.errors import BootError, ImageError, UsageError
from atoll.events import TaskAdvanced
from atoll.sandbox import warm
from atoll.template import cache
from atoll.template.cache import Preparation
from atoll.vm.bootplan import Probe

pytestmark = [pytest.mark.vm]

SERVER = "setsid sh -c 'while sleep 0.05; do echo tick >> /root/log; done' > /dev/null 2>&1 &"


@pytest.fixture(scope="module")
def shelf(paths, tmp_path_factory):
    """A configuration with the session's images and kernels, and templates of its own."""
    from atoll import runtime
    from atoll.config import load
    from atoll.image import catalog

    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    data = tmp_path_factory.mktemp("warm")
    (data / "images").symlink_to(paths.images)
    return load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config


@pytest.fixture(scope="module")
def prepared(shelf):
    """A template with a file, a process that runs, and a network."""
    notes = []

    def on_event(event):
        if isinstance(event, TaskAdvanced):
            notes.append(event.note)

    preparation = Preparation(
        ("echo made > /root/made; echo said so", SERVER),
        Probe(command=("/bin/sh", "-c", "test -s /root/log")),
        network=True,
    )
    template = warm.build(shelf, "mine", "debian", preparation, emit=on_event)
    assert "said so" in notes
    return template


async def ticks(box):
    return int((await box.run(["sh", "-c", "cat /root/log | wc -l"], check=True)).stdout)


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers", "prepared")
async def test_sandboxes_go_on_with_files_and_processes_and_are_themselves(shelf):
    identity = ["sh", "-c", "cat /root/made /etc/machine-id /sys/class/net/eth0/address; hostname"]
    boxes = [aio.Sandbox(template="mine", config=shelf) for _ in range(2)]
    async with boxes[0], boxes[1]:
        results = await asyncio.gather(*(box.run(identity, check=True) for box in boxes))
        said = [result.stdout.split() for result in results]
        assert [lines[0] for lines in said] == ["made", "made"]
        assert all(one != other for one, other in zip(said[0][1:], said[1][1:], strict=True))
        assert [lines[3] for lines in said] == [box.name for box in boxes]
        before = await ticks(boxes[0])
        while await ticks(boxes[0]) == before:  # noqa: ASYNC110 - only asking again tells
            await asyncio.sleep(0.05)
        routes = (await boxes[1].run(["ip", "route"], check=True)).stdout
        assert "default via 10.1.0.2 dev eth0" in routes


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_it_stays_as_it_was_and_serves_larger_sandboxes_but_no_smaller_ones(shelf, prepared):
    async with aio.Sandbox(template="mine", memory="1G", config=shelf) as box:
        assert (await box.info()).memory_total > 800 << 20
        await box.run(["sh", "-c", "rm /root/made; head -c 50M /dev/zero > /root/more"], check=True)
    with pytest.raises(UsageError) as caught:
        await aio.Sandbox(template="mine", memory="256M", config=shelf).open()
    assert caught.value.code == "usage.memory"
    assert cache.verify(prepared)


@pytest.mark.usefixtures("prepared")
def test_it_can_be_forked_and_pooled(shelf):
    with atoll.Sandbox(template="mine", config=shelf) as box:
        [copy] = box.fork()
        with copy:
            assert copy.run(["cat", "/root/made"]).stdout == "made\n"
    with atoll.Pool(size=1, template="mine", config=shelf) as pool, pool.claim() as box:
        assert box.run(["cat", "/root/made"]).stdout == "made\n"


def test_a_command_that_fails_leaves_no_template_and_the_one_before(shelf, prepared):
    with pytest.raises(BootError) as caught:
        warm.build(shelf, "mine", "debian", Preparation(("echo reason >&2; exit 3",)))
    assert caught.value.stage == "prepare"
    assert "status 3" in caught.value.message
    assert caught.value.detail == "reason"
    assert warm.find(shelf, "mine") == prepared
    assert [one.name for one in cache.installed(shelf.paths.own)] == ["mine"]
    assert not [name for name in os.listdir(shelf.paths.own.templates) if name.startswith(".partial")]


def test_one_that_was_made_with_another_hypervisor_is_refused_and_can_be_made_anew(shelf, prepared):
    from atoll import store

    place = prepared.place
    store.write_record(place.manifest, replace(prepared.manifest, identity="another"))
    try:
        with pytest.raises(ImageError) as caught:
            warm.launch(shelf, "box", "mine", None)
        assert caught.value.code == "image.stale"
        config, name, image, preparation = warm.rebuilt(shelf, "mine")
        assert (name, image, preparation) == ("mine", "debian:trixie", prepared.manifest.preparation)
        assert config.memory == prepared.manifest.memory
    finally:
        store.write_record(place.manifest, prepared.manifest)


@pytest.mark.parametrize(
    "options", [{"cpus": 2}, {"cold": True}, {"network": True}, {"accel": "kvm"}], ids=str
)
def test_what_a_template_has_cannot_be_asked_for(options):
    with pytest.raises(UsageError) as caught:
        aio.Sandbox(template="mine", **options)
    assert caught.value.code == "usage.template"


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "..", "a" * 64])
def test_names_that_are_none_are_refused(shelf, name):
    for use in (lambda: warm.find(shelf, name), lambda: warm.build(shelf, name, "debian", Preparation())):
        with pytest.raises(UsageError) as caught:
            use()
        assert caught.value.code == "usage.template"


def test_one_that_is_not_there_is_named(shelf):
    with pytest.raises(ImageError, match="there is no template nonsuch") as caught:
        warm.launch(shelf, "box", "nonsuch", None)
    assert caught.value.code == "image.template"
