"""Sandboxes that are written down for good, and sandboxes that go on from there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

import atoll
from atoll import aio
from atoll.errors import StoreError, UsageError
from atoll.events import TaskEnded, VmCaptured
from atoll.hypervisor.model import Disk
from atoll.snapshot import catalog
from atoll.vm.state import StateError

pytestmark = [pytest.mark.vm]

COUNTER = (
    "echo made > /root/made; setsid sh -c 'while sleep 0.05; do echo x >> /root/log; done' > /dev/null 2>&1 &"
)
IDENTITY = [
    "sh",
    "-c",
    "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; date +%s",
]
MORE = "head -c 6000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big"


@pytest.fixture(scope="module")
def shelf(config):
    """The session's settings, whose templates depend on where images are; no snapshots before, none after."""

    def clear():
        for one in catalog.listed(config.paths):
            catalog.remove(config.paths, one.id)

    clear()
    yield config
    clear()


@pytest.fixture(scope="module")
def kept(shelf):
    """Two snapshots of a sandbox that is gone, and what was told of them."""
    events = []
    with atoll.Sandbox("debian", config=shelf, on_event=events.append) as box:
        box.run(["sh", "-c", COUNTER], check=True)
        first = box.snapshot("first", description="a counter", labels={"a": "b"})
        box.run(["sh", "-c", "echo later > /root/later"], check=True)
        second = box.snapshot("second")
        name = box.name
    assert len([event for event in events if isinstance(event, VmCaptured) and event.vm == name]) == 2
    assert [event.ok for event in events if isinstance(event, TaskEnded) and event.task == "snapshot"] == [
        True
    ] * 2
    return first, second


@pytest.fixture
def command(environment):
    """Runs the installed command."""

    def run(*words):
        argv = [str(Path(sys.executable).parent / "atoll"), *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


def files_in_memory():
    """Digests of this process's files in memory that hold RAM."""
    digests = []
    for number in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{number}"
        if os.path.exists(path) and "memfd:atoll-ram" in os.readlink(path):
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def test_a_second_snapshot_of_a_sandbox_stores_what_has_changed(kept):
    first, second = kept
    manifest = first.manifest
    assert (manifest.kind, manifest.memory, manifest.parent) == ("sandbox", 512 << 20, "")
    assert (manifest.description, manifest.labels) == ("a counter", {"a": "b"})
    assert 0 < manifest.stopped < 5
    assert set(manifest.files) == {"vm.json", "root.erofs", "modules.erofs"}
    assert manifest.machine_id == second.manifest.machine_id
    packs = [{path.name: path for path in one.place.directory.glob("*.pack")} for one in kept]
    [shared] = packs[0].keys() & packs[1].keys()
    assert packs[0][shared].samefile(packs[1][shared])
    assert sum(path.stat().st_size for path in packs[1].values() if path.name != shared) < 5 << 20
    for one in kept:
        catalog.verify(one)


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_sandboxes_go_on_from_one_snapshot_each_as_itself_and_so_do_their_copies(shelf, kept):
    first, _ = kept
    boxes = [aio.Sandbox(snapshot=reference, config=shelf) for reference in ("first", first.id)]
    async with boxes[0], boxes[1]:
        [ram] = files_in_memory()
        assert (await boxes[0].run(["cat", "/root/made"], check=True)).stdout == "made\n"
        assert (await boxes[0].run(["test", "-e", "/root/later"])).code == 1
        assert boxes[0].image == "debian"
        [copy] = await boxes[1].fork()
        async with copy:
            everyone = [*boxes, copy]
            await asyncio.gather(*(counts_on(box) for box in everyone))
            said = [(await box.run(IDENTITY, check=True)).stdout.split() for box in everyone]
            assert [lines[0] for lines in said] == [box.name for box in everyone]
            assert all(len({lines[which] for lines in said}) == 3 for which in (1, 2))
            assert max(int(lines[3]) for lines in said) - min(int(lines[3]) for lines in said) < 5
            await boxes[0].run(["sh", "-c", "head -c 6000000 /dev/urandom > /root/own"], check=True)
            assert (await copy.run(["test", "-e", "/root/own"])).code == 1
            grandchild = await copy.snapshot("third")
        again = await boxes[0].snapshot("fourth")
        assert files_in_memory() == [ram]
    assert files_in_memory() == []
    assert [one.manifest.parent for one in (grandchild, again)] == [first.id] * 2
    assert grandchild.manifest.machine_id != again.manifest.machine_id
    packs = [{path.name for path in one.place.directory.glob("*.pack")} for one in (first, grandchild)]
    assert packs[0] < packs[1]
    async with aio.Sandbox(snapshot="fourth", config=shelf) as box:
        assert (await box.run(["stat", "-c", "%s", "/root/own"], check=True)).stdout == "6000000\n"


async def counts_on(box):
    script = """
n=$(wc -l < /root/log)
for i in $(seq 100); do sleep 0.05; m=$(wc -l < /root/log); test $m -gt $n && exit 0; done; exit 1
"""
    await box.run(["sh", "-c", script], check=True)


def test_a_snapshot_outlives_its_sandbox_for_other_processes_and_pools(shelf, kept, command):
    done = command("run", "--snapshot", "second", "--", "cat", "/root/made", "/root/later")
    assert (done.stdout, done.stderr) == ("made\nlater\n", "")
    with atoll.Pool(size=1, snapshot="second", config=shelf) as pool, pool.claim() as box:
        assert box.run(["cat", "/root/later"], check=True).stdout == "later\n"


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_memory_that_was_plugged_in_and_what_was_booted_can_be_kept_and_removed_beneath_a_sandbox(
    shelf,
):
    for name, options in (("grown", {"memory": "768M"}), ("booted", {"cold": True, "memory": "256M"})):
        async with aio.Sandbox("debian", config=shelf, **options) as box:
            digest = (await box.run(["sh", "-c", MORE], check=True)).stdout
            total = (await box.info()).memory_total
            made = await box.snapshot(name)
        assert made.manifest.memory == (768 if name == "grown" else 256) << 20
        async with aio.Sandbox(snapshot=name, config=shelf) as box:
            catalog.remove(shelf.paths, made.id)
            assert (await box.info()).memory_total == total
            assert (await box.run(["sha256sum", "/dev/shm/big"], check=True)).stdout == digest


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_what_cannot_be_is_refused_and_the_sandbox_goes_on(shelf, kept, monkeypatch):
    async with aio.Sandbox("debian", config=shelf) as box:
        before = sorted(os.listdir(shelf.paths.snapshots))
        with pytest.raises(StoreError) as taken:
            await box.snapshot("first")
        assert taken.value.code == "store.already_exists"
        with pytest.raises(UsageError) as nameless:
            await box.snapshot("../x")
        assert nameless.value.code == "usage.snapshot"
        with monkeypatch.context() as patch:
            disk = Disk(Path("/x"), "data")
            patch.setattr(box.vm, "machine", replace(box.vm.machine, disks=(*box.vm.machine.disks, disk)))
            with pytest.raises(UsageError) as writing:
                await box.snapshot("other")
        assert writing.value.code == "usage.snapshot"
        making = asyncio.create_task(box.snapshot("cancelled"))
        await asyncio.sleep(0.25)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert sorted(os.listdir(shelf.paths.snapshots)) == before
        assert (await box.run(["echo", "here"])).stdout == "here\n"
    with pytest.raises(UsageError) as closed:
        await box.snapshot("other")
    assert closed.value.code == "usage.state"
    with pytest.raises(StoreError) as missing:
        await aio.Sandbox(snapshot="nonsuch", config=shelf).open()
    assert missing.value.code == "store.missing"


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_nothing_goes_on_from_a_snapshot_that_was_changed(shelf, kept):
    _, second = kept
    pack = next(path for path in second.place.directory.glob("*.pack") if path.stat().st_nlink == 1)
    for path in (second.place.vm, pack):
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 4] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StoreError) as caught:
            await aio.Sandbox(snapshot="second", config=shelf).open()
        assert caught.value.code == "store.corrupt"
        path.write_bytes(original)


def test_the_command_line_shows_them_and_leaves_machines_alone(kept, command):
    first, _ = kept
    table = command("snapshot", "ls").stdout
    line = next(line for line in table.splitlines() if line.startswith("first"))
    assert " 512.0 MiB RAM " in line
    assert "disk" not in line
    assert first.manifest.machine in line
    assert json.loads(command("snapshot", "inspect", "first").stdout)["kind"] == "sandbox"
    assert command("snapshot", "verify", "first").returncode == 0
    refused = command("snapshot", "restore", "--as", "dev", "first")
    assert "error[state.foreign]" in refused.stderr
    assert f"atoll run --snapshot {first.id}" in refused.stderr
    both = command("run", "--snapshot", "first", "--memory", "1G", "--", "true")
    assert (both.returncode, "error[usage.snapshot]" in both.stderr) == (2, True)


@pytest.mark.parametrize("cause", ["hypervisor", "cpu"])
def test_one_that_was_made_elsewhere_is_refused(shelf, kept, cause):
    from atoll.sandbox import reviving

    first, _ = kept
    manifest = replace(first.manifest, name=f"from-another-{cause}", **{cause: "another"})
    place = shelf.paths.snapshot(f"staged-{cause}")
    place.directory.mkdir()
    shutil.copy(first.place.vm, place.vm)
    made = catalog.seal(shelf.paths, place, manifest)
    try:
        with pytest.raises(StateError) as caught:
            reviving.launch(shelf, "box", made.id)
        assert caught.value.code == "state.mismatch"
    finally:
        catalog.remove(shelf.paths, made.id)


def test_files_that_changed_between_two_snapshots_are_told(shelf, kept, no_leftovers):
    first, second = kept
    told = {one.path: str(one.change) for one in atoll.compare_snapshots(first.id, second.id, config=shelf)}
    assert told.pop("/root/log", "M") == "M"  # a command writes to it all the time
    assert told == {"/root/later": "A"}
    with pytest.raises(UsageError, match="no parent") as caught:
        atoll.compare_snapshots("second", config=shelf)
    assert caught.value.code == "usage.snapshot"
