"""Sandboxes that go on where a template was frozen: they are their own, and it stays what it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time

import pytest
from guests import eventually
from msgspec.structs import replace
from processes import machines_running

from atoll import aio, runtime, store
from atoll.config import load
from atoll.errors import BootError
from atoll.events import StageReached, TaskAdvanced, TaskStarted, Warned
from atoll.hypervisor.port import MemorySize
from atoll.image.architectures import PACKAGED
from atoll.image.kernel import host_architecture
from atoll.template import cache, making

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

MIB = 1 << 20


def settings_at(directory, paths, **flags):
    """Settings with templates of their own, and the kernels and images of all tests."""
    directory.mkdir(exist_ok=True)
    for name in ("kernels", "downloads"):
        (directory / name).symlink_to(paths.cache / name)
    flags = {"data_dir": paths.data, "cache_dir": directory, "accel": "tcg", **flags}
    return load(flags, environment={}, files=()).config


def recipe_of(config):
    """What sandboxes with these settings start from."""
    return runtime.template_recipe(config, runtime.prepare(config, "test", "debian"))


@pytest.fixture(scope="module")
def own(tmp_path_factory, paths, config):
    """Settings of this module, with a template of the usual size."""
    runtime.prepare(config, "test", "debian")
    settings = settings_at(tmp_path_factory.mktemp("templates"), paths)
    patch = pytest.MonkeyPatch()
    patch.setattr(making, "_SETTLED", 0.0)  # a clone then does what is left, which takes no longer
    yield settings
    patch.undo()


@pytest.fixture(scope="module")
def made(own):
    """The template, made once."""
    return runtime.build_template(own, "debian")


@pytest.fixture
def spoiled(own, made, tmp_path):
    """The template for a test that does away with it; it is back afterwards."""
    kept = tmp_path / "kept"
    subprocess.run(["cp", "-a", made.place.directory, kept], check=True)
    yield made
    store.remove_tree(made.place.directory)
    subprocess.run(["cp", "-a", kept, made.place.directory], check=True)


@pytest.fixture
def empty(tmp_path, paths):
    """Settings where no template was made yet."""
    return settings_at(tmp_path / "cache", paths)


@contextlib.asynccontextmanager
async def started(config, **options):
    """A sandbox that went on from a template."""
    said = []
    async with aio.Sandbox("debian", config=config, on_event=said.append, **options) as box:
        assert box.vm.clone is not None, said
        assert not [event for event in said if isinstance(event, Warned)]
        yield box


async def is_booted(config, said):
    """Whether a sandbox boots; it is given up before it has."""
    spawned = await asyncio.to_thread(runtime.launch, config, "test", "debian", emit=said.append)
    spawned.vm.discard()
    return spawned.clone is None


async def output(box, script):
    return (await box.run(["sh", "-c", script], check=True)).stdout


class TestIsolation:
    async def test_no_clone_changes_its_template(self, own, made):
        assert cache.digest_of(made.place.ram) == made.manifest.digest
        blocks = made.place.ram.stat().st_blocks

        async def writes():
            async with started(own) as box:
                await output(
                    box, "yes | head -c 60M > /root/much; yes no | head -c 30M > /dev/shm/more; sync"
                )

        async def drops():
            async with started(own) as box:
                await output(box, "find /usr/bin /etc -type f | head -100 | xargs cat > /dev/null 2>&1; true")
                await output(box, "echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory")

        async def grows_and_shrinks():
            async with started(own, memory="1G") as box:
                await output(box, "yes | head -c 60M > /dev/shm/much; rm /dev/shm/much")
                plugging = box.vm.hypervised.plugging
                await plugging.plug_memory(512 * MIB)
                while (await plugging.memory()).now > 512 * MIB:  # noqa: ASYNC110 - only asking again tells
                    await asyncio.sleep(0.02)

        async def is_killed():
            async with started(own) as box:
                writing = asyncio.create_task(box.run(["sh", "-c", "yes > /dev/shm/much & echo; wait"]))
                await output(box, "until test -s /dev/shm/much; do :; done")
                os.kill(box.vm.pid, signal.SIGKILL)
                with pytest.raises(BootError, match="SIGKILL"):
                    await writing

        async def panics():
            async with started(own) as box:
                with pytest.raises(BootError, match="panic"):
                    await box.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"])

        async with asyncio.timeout(250):
            await asyncio.gather(writes(), drops(), grows_and_shrinks(), is_killed(), panics())
        assert cache.digest_of(made.place.ram) == made.manifest.digest
        assert made.place.ram.stat().st_blocks == blocks  # and no hole was punched
        assert cache.find(own.paths, made.manifest.name) == made

    @pytest.mark.usefixtures("made")
    async def test_no_two_clones_have_anything_in_common_that_tells_them_apart(self, own):
        script = (
            "od -An -tx1 -N16 /dev/urandom; cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname;"
            "cat /proc/sys/kernel/random/uuid"
        )

        async def identity():
            async with started(own) as box:
                told = (await output(box, script)).splitlines()
                assert told[3] == box.name
                return told

        everyone = await asyncio.gather(*(identity() for _ in range(8)))
        for each in zip(*everyone, strict=True):
            assert len(set(each)) == 8, each

    async def test_a_template_may_go_the_moment_after_a_start(self, own, spoiled):
        def on_event(event):
            if isinstance(event, StageReached) and event.stage == "spawn":
                cache.discard(own.paths, spoiled.manifest.name)

        async with aio.Sandbox("debian", config=own, on_event=on_event) as box:
            assert box.vm.clone is not None
            assert await output(box, "cat /etc/debian_version")
            assert not spoiled.place.ram.exists()


FACTS = {
    "kernel": "uname -srvmo",
    "who": "id; pwd; umask; env | sort",
    "mounts": "cut -d' ' -f4- /proc/self/mountinfo | sed -E 's/,?(size|nr_inodes)=[0-9]+k?//g'",
    "root": "ls -lAn --time-style=+ / | awk '{ print $1, $3, $4, $NF }'",
    "names": "cat /etc/resolv.conf /etc/hosts 2>&1; ls -A /etc /run /dev/shm /tmp /root /mnt",
    "processors": "nproc; grep -c ^processor /proc/cpuinfo; grep ^flags /proc/cpuinfo",
    "limits": "ulimit -a | grep -v 'process\\|pending'",
    "files": "ls -l /proc/self/fd | awk '{ print $NF }' | sed 's/[0-9]//g'; cat /proc/self/cgroup",
    "network": "ls /sys/class/net; cat /sys/class/net/*/operstate; cat /proc/net/route",
    "devices": "ls /sys/block /sys/class/net; cat /sys/block/vd*/size",
    "modules": "cut -d' ' -f1 /proc/modules | grep -v virtio_mem | sort",
}
#: Half of the memory; the kernel's own counts differ by what it took for itself until then.
SIZES = {
    "files below /": "df --output=size / | tail -1",
    "inodes below /": "df --output=itotal / | tail -1",
    "/dev/shm": "df --output=size /dev/shm | tail -1",
    "/run": "df --output=size /run | tail -1",
    "memory": "awk '/MemTotal/ { print $2 }' /proc/meminfo",
    "threads": "cat /proc/sys/kernel/threads-max",
    "open files": "cat /proc/sys/fs/file-max",
    "processes": "sh -c 'ulimit -u' 2> /dev/null || awk '/processes/ { print $3 }' /proc/self/limits",
    "signals": "awk '/pending signals/ { print $4 }' /proc/self/limits",
}


@pytest.mark.usefixtures("made")
async def test_a_clone_is_like_a_vm_that_was_booted(own):
    """But for the kernel's command line and log, ``virtio_mem``, the size of ``/dev``, the time it is up."""
    script = "\n".join(f"echo '=== {name}'; {command}" for name, command in (FACTS | SIZES).items())

    async def told(*, cold):
        box = aio.Sandbox("debian", config=own, memory="1536M", cold=cold)
        async with box:
            assert (box.vm.clone is None) is cold
            text = await output(box, script)
        return dict(part.split("\n", 1) for part in text.split("=== ")[1:])

    booted, clone = await asyncio.gather(told(cold=True), told(cold=False))
    assert {name: clone[name] for name in FACTS} == {name: booted[name] for name in FACTS}
    for name in SIZES:
        assert int(clone[name]) == pytest.approx(int(booted[name]), rel=0.05), name


class TestMemory:
    async def test_what_is_plugged_in_is_there_before_the_first_command(self, own, made):
        async def total(memory):
            async with started(own, memory=memory) as box:
                assert box.vm.clone.template == made.manifest.name
                assert await box.vm.hypervised.plugging.memory() >= MemorySize(512 * MIB, memory, memory)
                return int((await output(box, "awk '/MemTotal/ { print $2 }' /proc/meminfo")).strip())

        least = await total(512 * MIB)
        assert 0.9 < least / (512 * 1024) < 1
        for memory in (516, 600, 1024, 3072):
            assert await total(memory * MIB) == least + (memory - 512) * 1024

    async def test_a_small_vm_of_a_kernel_of_the_users_own(self, own, paths):
        """200 MiB: what its template lacks is plugged in, too."""
        (package,) = paths.downloads.glob(f"linux-image-*_{PACKAGED[host_architecture()]}.deb")
        async with started(own, memory="200M", kernel=package) as box:
            assert box.vm.clone.template.split(".")[2].startswith("128M-")
            total = int(await output(box, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))
            assert 0.75 < total / (200 * 1024) < 1


async def test_a_clones_clock_is_the_hosts_however_old_its_template(own, monkeypatch):
    """This one's guest lived in 2001, and had a program that did not end. It has two vCPUs."""
    monkeypatch.setattr(making, "_WARM_UP", (("date", "-s", "@1000000000"), ("sleep", "1000")))
    monkeypatch.setattr(making, "_WARM_UP_TIME", 0.3)
    async with started(own, cpus=2) as box:
        before = time.time()
        told = float(await output(box, "date +%s.%N"))
        assert before - 0.2 < told < time.time() + 0.2
        assert await output(box, "nproc; grep -c ^processor /proc/cpuinfo") == "2\n2\n"
        assert await output(box, "pgrep -c '^sleep' || true") == "0\n"


class TestUse:
    async def test_one_that_was_made_of_something_else_is_made_anew(self, own, spoiled):
        stale = replace(spoiled.manifest, identity="another QEMU")
        store.write_record(spoiled.place.manifest, stale)
        async with started(own) as box:
            made = cache.find(own.paths, spoiled.manifest.name, spoiled.manifest.identity)
            assert made is not None
            assert box.vm.clone.created == made.manifest.created > stale.created

    async def test_one_whose_ram_was_written_to_is_not_used_and_nobody_waits_for_another(self, own, spoiled):
        with spoiled.place.ram.open("r+b") as file:
            file.write(b"x")
        said = []
        with store.lock(cache.lock_of(own.paths, spoiled.manifest.name)):  # somebody makes it anew
            assert await is_booted(own, said)
        assert not [event for event in said if isinstance(event, (Warned, TaskStarted))]

    async def test_one_of_no_use_is_discarded_and_the_vm_is_booted(self, own, spoiled):
        size = spoiled.place.state.stat().st_size
        os.truncate(spoiled.place.state, size // 2)
        spoiled_manifest = replace(spoiled.manifest, state=store.stamp(spoiled.place.state))
        store.write_record(spoiled.place.manifest, spoiled_manifest)
        said = []
        async with aio.Sandbox("debian", config=own, on_event=said.append) as box:
            assert box.vm.clone is None
            assert await output(box, "echo up") == "up\n"
        (warning,) = (event.message for event in said if isinstance(event, Warned))
        assert "discarded" in warning
        assert spoiled.manifest.name not in {one.name for one in cache.installed(own.paths)}

    async def test_none_is_made_where_all_are_to_be_booted(self, empty):
        flags = {"data_dir": empty.data_dir, "cache_dir": empty.cache_dir}
        assert await is_booted(load(flags, environment={"ATOLL_COLD": "1"}, files=()).config, [])
        assert not empty.paths.templates.exists()

    async def test_none_is_made_where_one_is_to_be_booted(self, empty):
        spawned = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_event(event):
            if isinstance(event, StageReached):
                loop.call_soon_threadsafe(spawned.set)

        box = aio.Sandbox("debian", config=empty, cold=True, on_event=on_event)
        starting = asyncio.create_task(box.open())
        await spawned.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not empty.paths.templates.exists()

    async def test_where_none_can_be_kept_the_vm_is_booted(self, empty):
        empty.paths.templates.write_text("no directory")
        said = []
        assert await is_booted(empty, said)
        (warning,) = (event.message for event in said if isinstance(event, Warned))
        assert str(empty.paths.templates) in warning


class TestMaking:
    async def test_a_failure_of_clones_is_remembered_until_it_is_tried_again(self, empty, monkeypatch):
        real = making.clone_of

        def wrong(machine, name, ram):
            return replace(real(machine, name, ram), consoles=True)

        monkeypatch.setattr(making, "clone_of", wrong)
        said = []
        recipe = recipe_of(empty)
        assert await asyncio.to_thread(making.ensure, empty.paths, recipe, emit=said.append) is None
        (warning,) = (event.message for event in said if isinstance(event, Warned))
        monkeypatch.undo()
        (listed,) = cache.installed(empty.paths)
        assert listed.error
        assert listed.error in warning
        assert os.listdir(listed.template.place.directory) == ["manifest.json"]
        said.clear()
        assert await is_booted(empty, said)
        assert not [event for event in said if isinstance(event, (TaskStarted, Warned))]
        with pytest.raises(BootError) as caught:
            await asyncio.to_thread(runtime.build_template, empty, "debian")
        assert caught.value.stage == "template"
        monkeypatch.setattr(making, "_SETTLED", 0.0)
        made = await asyncio.to_thread(runtime.build_template, empty, "debian", force=True)
        assert cache.verify(made)

    async def test_a_guest_that_dies_while_it_is_made_warm_is_remembered(self, empty, monkeypatch):
        monkeypatch.setattr(making, "_WARM_UP", (("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 9"),))
        recipe = recipe_of(empty)
        assert await asyncio.to_thread(making.ensure, empty.paths, recipe) is None
        (listed,) = cache.installed(empty.paths)
        assert "panic" in listed.error

    async def test_a_maker_whose_vm_is_killed_says_so_and_it_is_tried_again(self, empty):
        before = machines_running()
        said = []

        def on_event(event):
            said.append(event)
            if isinstance(event, TaskAdvanced) and event.note == "booting":
                eventually(lambda: machines_running() - before)  # a moment later it is QEMU
                for pid in machines_running() - before:
                    os.kill(pid, signal.SIGKILL)

        recipe = recipe_of(empty)
        assert await asyncio.to_thread(making.ensure, empty.paths, recipe, emit=on_event) is None
        (warning,) = (event.message for event in said if isinstance(event, Warned))
        assert "SIGKILL" in warning
        assert cache.installed(empty.paths) == []
