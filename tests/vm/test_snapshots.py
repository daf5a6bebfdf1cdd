"""Snapshots of machines with a real guest: what comes back, what is refused, what is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time

import pytest
from guests import eventually
from msgspec.structs import replace
from processes import machines_running

import atoll
from atoll import aio, blocking
from atoll.cli.main import main
from atoll.errors import AtollError, BootError, StoreError
from atoll.events import TaskAdvanced, Warned
from atoll.machine.launching import reach
from atoll.paths import SnapshotPaths
from atoll.snapshot import catalog, packs
from atoll.vm.chain import read_chain
from atoll.vm.client import Control
from atoll.vm.messages import Capture
from atoll.vm.state import Phase, StateError

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def config(own_config):
    return own_config


@pytest.fixture(autouse=True)
def tidy(dev):
    """Whatever was done, nothing but the machine and its snapshots is there."""
    yield
    place = dev.find().place
    names = [*os.listdir(place.directory), *os.listdir(place.directory.parent)]
    if (snapshots := place.directory.parent.parent / "snapshots").exists():
        names += os.listdir(snapshots)
    assert [name for name in names if name.startswith(".") or name == "before"] == []
    status = dev.status() if dev.state.active else None
    eventually(lambda: machines_running() == ({status.vm} if status else set()))
    eventually(lambda: not copies_of_ram(os.getpid(), *([status.supervisor] if status else [])))


def copies_of_ram(*pids):
    """Files in memory that a process holds open."""
    fds = [f"/proc/{pid}/fd/{number}" for pid in pids for number in os.listdir(f"/proc/{pid}/fd")]
    found = []
    for fd in fds:
        with contextlib.suppress(OSError):
            found.append(os.readlink(fd))
    return [name for name in found if name.startswith("/memfd:")]


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def mark(machine, text):
    """Have it in the guest's RAM and on its disk; what was flushed of the disk's is another."""
    output(machine, f"echo old > /root/disk; sync; echo {text} > /dev/shm/ram; echo {text} > /root/disk")


def marks(machine):
    return output(machine, "cat /dev/shm/ram /root/disk").split()


def running(machine):
    """What tells whether a machine went on undisturbed: its VM, and when its guest had last come up."""
    return machine.status().vm, machine.state.booted


@contextlib.contextmanager
def other(config, name, snapshot):
    """Another machine from a snapshot."""
    machine = blocking.Machine.from_snapshot(name, snapshot, config=config)
    try:
        yield machine
    finally:
        machine.remove(force=True)
        machine.close()


def forged(config, snapshot, *, damage=None, **changes):
    """A snapshot that says so, with digests that are right; ``damage`` is done to its devices' state."""
    paths, manifest = config.paths, replace(snapshot.manifest, name="forged", **changes)
    place = SnapshotPaths(paths.snapshots / ".forged")
    shutil.copytree(snapshot.place.directory, place.directory, copy_function=os.link)
    for path in (place.manifest, *((place.directory / "index",) if damage else ())):
        path.unlink()
    if damage:
        index = packs.load(snapshot.place.directory, manifest.packs)
        with contextlib.ExitStack() as stack, packs.Writer(place.directory) as writer:
            for number, image in enumerate(index.images):
                fd = os.memfd_create("image")
                stack.callback(os.close, fd)
                packs.restore(image, snapshot.place.directory, fd)
                if number == 0:
                    damage(fd)
                writer.add(fd, image.size)
            manifest = replace(manifest, packs=writer.finish().digest)
    return catalog.seal(paths, place, manifest)


def test_ram_and_disk_come_back_whatever_was_done_since(dev):
    mark(dev, "one")
    output(dev, "sleep 1000 > /dev/null 2>&1 & echo $! > /dev/shm/pid")
    first = dev.snapshot("first", description="a word", labels={"a": "b"})
    assert (first.manifest.ram, first.manifest.parent, first.manifest.labels) == (True, "", {"a": "b"})
    assert marks(dev) == ["one", "one"]
    output(dev, "kill $(cat /dev/shm/pid)")
    mark(dev, "two")
    second = dev.snapshot("second")
    assert second.manifest.parent == first.id
    output(dev, "rm -r /root /dev/shm/*; sync")
    assert dev.restore("first").phase is Phase.RUNNING
    assert marks(dev) == ["one", "one"]
    output(dev, "kill -0 $(cat /dev/shm/pid)")
    assert abs(float(output(dev, "date +%s.%N")) - time.time()) < 1.0
    assert dev.restore(second.id[:6]).phase is Phase.RUNNING
    assert marks(dev) == ["two", "two"]
    assert dev.snapshot("third").manifest.parent == second.id
    assert [one.manifest.name for one in dev.snapshots()] == ["first", "second", "third"]


def test_a_second_snapshot_takes_what_has_changed(dev):
    first = dev.snapshot("whole")
    size = sum(path.stat().st_size for path in first.place.directory.glob("*.pack"))
    assert dev.snapshot("more").stored < size / 4


def test_one_made_without_a_pause_is_like_the_others(dev, config):
    told = []
    whole = dev.snapshot("with")
    size = sum(path.stat().st_size for path in whole.place.directory.glob("*.pack"))
    mark(dev, "live")
    with atoll.Machine(dev.name, config=config, on_event=told.append) as same:
        live = same.snapshot("without", pause=False)
    assert [event for event in told if isinstance(event, Warned)] == []
    assert live.stored < size / 4
    assert live.manifest.stopped > 0
    mark(dev, "later")
    dev.restore("without")
    assert marks(dev) == ["live", "live"]
    dev.pause()
    assert dev.snapshot("paused-live", pause=False).manifest.ram  # there is nothing to go on
    dev.resume()
    for one in (whole, live):
        catalog.verify(one)


def test_each_snapshot_is_whole_without_the_others(dev, config):
    mark(dev, "kept")
    doomed = [dev.snapshot("before"), dev.snapshot("after")]
    kept = dev.snapshot("between")
    for one in doomed:
        catalog.remove(config.paths, one.id)
    for one in dev.snapshots():
        catalog.verify(one)
    mark(dev, "lost")
    dev.restore(kept.id)
    assert marks(dev) == ["kept", "kept"]


def test_another_machine_goes_on_from_it_as_somebody_else(dev, config):
    mark(dev, "shared")
    dev.snapshot("parent")
    who = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"
    with other(config, "one", "parent") as one, other(config, "two", "parent") as two:
        facts = [output(machine, who).splitlines() for machine in (one, two, dev)]
        assert [name for name, *_ in facts] == ["one", "two", "dev"]
        for fact in zip(*facts, strict=True):
            assert len(set(fact)) == 3
        for machine in (one, two):
            assert marks(machine) == ["shared", "shared"]
            mark(machine, machine.name)
        assert marks(one) == ["one", "one"]
        grandchild = one.snapshot("child")
        assert grandchild.manifest.parent == catalog.find(config.paths, "parent").id
        with pytest.raises(StateError) as caught:
            dev.restore(grandchild.id)
        assert caught.value.code == "state.foreign"
        with pytest.raises(StoreError) as caught:
            blocking.Machine.from_snapshot("two", "parent", config=config)
        assert caught.value.code == "store.already_exists"
        two.restart()
        assert output(two, "cat /root/disk; hostname") == "two\ntwo\n"
    assert marks(dev) == ["shared", "shared"]
    with other(config, "again", grandchild.id) as again:  # its machine was removed
        assert marks(again) == ["one", "one"]


def test_a_paused_machine_stays_paused_and_its_snapshot_runs(dev):
    mark(dev, "paused")
    dev.pause()
    vm = running(dev)
    dev.snapshot("paused")
    assert (dev.state.phase, running(dev)) == (Phase.PAUSED, vm)
    assert dev.restore("paused").phase is Phase.RUNNING
    assert marks(dev) == ["paused", "paused"]


def test_shares_are_set_aside_and_come_back(dev, tmp_path):
    (tmp_path / "file").write_text("of the host\n")
    dev.share(tmp_path, "/mnt/host")
    dev.snapshot("sharing")
    assert output(dev, "cat /mnt/host/file") == "of the host\n"
    with dev.start_process(["sleep", "60"], cwd="/mnt/host"), pytest.raises(StateError) as caught:
        dev.snapshot("busy")
    assert caught.value.code == "state.share_busy"
    (tmp_path / "file").write_text("newer\n")
    dev.restore("sharing")
    assert output(dev, "cat /mnt/host/file") == "newer\n"
    dev.unshare("/mnt/host")


def ruin(fd):
    """The head stays: QEMU takes it for a migration, and ends in the middle of it."""
    size = os.fstat(fd).st_size
    os.pwrite(fd, os.urandom(size // 2), size // 2)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED])
def test_where_qemu_does_not_go_on_the_machine_is_what_it_was(dev, config, phase):
    good = dev.snapshot(f"good-{phase}")
    broken = forged(config, good, damage=ruin)
    mark(dev, "now")
    output(dev, "sleep 1000 > /dev/null 2>&1 & echo $! > /dev/shm/pid")
    if phase is Phase.PAUSED:
        dev.pause()
    with pytest.raises(BootError):
        dev.restore(broken.id)
    assert dev.state.phase is phase
    if phase is Phase.PAUSED:
        dev.resume()
    assert marks(dev) == ["now", "now"]
    output(dev, "kill $(cat /dev/shm/pid)")
    with pytest.raises(BootError):
        blocking.Machine.from_snapshot("other", broken.id, config=config)
    assert os.listdir(config.paths.machines) == ["dev"]
    assert dev.snapshot(f"after-{phase}").manifest.parent == good.id
    catalog.remove(config.paths, broken.id)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"hypervisor": "9.9.9"}, "QEMU 9.9.9"), ({"cpu": "other"}, "another CPU")],
    ids=["qemu", "cpu"],
)
def test_what_this_host_cannot_go_on_from_is_refused_with_the_reason(dev, config, change, reason):
    found = forged(config, dev.snapshots()[0], **change)
    before = running(dev)
    with pytest.raises(StateError, match=reason) as caught:
        dev.restore(found.id)
    assert caught.value.code == "state.mismatch"
    assert running(dev) == before
    disk = blocking.Machine.from_snapshot("disk", found.id, disk_only=True, config=config)
    assert disk.state.phase is Phase.CREATED
    disk.remove()
    catalog.remove(config.paths, found.id)


def test_a_flipped_bit_in_any_file_is_found_and_refused_and_the_machine_runs_on(dev, config):
    snapshot = dev.snapshots()[0]  # it uses all of its pack
    before = running(dev)
    every = sorted(snapshot.place.directory.iterdir())
    files = {path.name if path.suffix == ".json" else path.suffix: path for path in every}.values()
    assert len(files) == 8, every  # of its disk there is one layer
    for path in files:
        good = path.with_name("good")
        path.rename(good)
        shutil.copy2(good, path)  # the machine has the file, too
        flip(path)
        with pytest.raises(StoreError) as caught:
            catalog.verify(catalog.read(config.paths, snapshot.id))
        assert caught.value.code == "store.corrupt", path.name
        with pytest.raises(AtollError) as caught:
            dev.restore(snapshot.id)
        assert caught.value.code == "store.corrupt", path.name
        good.rename(path)
    catalog.verify(snapshot)
    assert running(dev) == before


def flip(path):
    """A bit in the middle; the date is as it was."""
    status = path.stat()
    with path.open("r+b") as file:
        at = status.st_size // 2
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), at)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_of_a_command_that_is_gone_while_the_machine_is_written_down_no_copy_is_kept(dev):
    place = dev.find().place
    before = read_chain(place)

    async def ask():
        control = Control(reach(place))
        await control.status()
        control._channel.open(Capture())
        await asyncio.sleep(0.05)
        control.close()

    asyncio.run(ask())
    eventually(lambda: read_chain(place) != before)
    dev.pause()  # waits for the end of what is under way
    dev.resume()
    eventually(lambda: not copies_of_ram(dev.status().supervisor))


def test_names_are_taken_once(dev):
    before = running(dev)
    with pytest.raises(StoreError) as caught:
        dev.snapshot("first")
    assert caught.value.code == "store.already_exists"
    names = {dev.snapshot(disk_only=True).manifest.name for _ in range(3)}  # within a second
    assert len(names) == 3
    assert running(dev) == before


def test_the_disk_alone_is_whole_and_comes_back_at_rest(dev):
    mark(dev, "disk")
    snapshot = dev.snapshot("disk", disk_only=True)
    assert not snapshot.manifest.ram
    mark(dev, "later")
    assert dev.restore("disk").phase is Phase.STOPPED
    at_rest = dev.snapshot("resting")
    assert not at_rest.manifest.ram
    dev.start()
    assert output(dev, "cat /root/disk") == "disk\n"
    mark(dev, "later")
    dev.stop()
    assert dev.restore("resting").phase is Phase.STOPPED
    assert dev.restore("first").phase is Phase.RUNNING
    assert marks(dev) == ["one", "one"]
    assert dev.restore("first", disk_only=True).phase is Phase.STOPPED
    dev.start()
    assert output(dev, "cat /root/disk") == "one\n"  # it was flushed


BEFORE = """
mkdir /root/diff && cd /root/diff
echo one > same-size && touch -d 2020-01-01 same-size
echo x > mode; echo x > gone; echo x > renamed; head -c 200000 /dev/urandom > kept
"""
AFTER = """
cd /root/diff
echo two > same-size && touch -d 2020-01-01 same-size
chmod 751 mode; rm gone; mv renamed other; cp kept copy && mv copy kept
printf x > 'new
line'; ln -s mode link
rm -r /etc/skel; mkdir /etc/skel; echo x > /etc/skel/.bashrc; rm /etc/shells; echo >> /etc/profile
"""


def test_files_that_changed_between_two_snapshots_are_told(dev, config, capsys, monkeypatch):
    output(dev, f"rm -rf /root/diff; {BEFORE}")
    first = dev.snapshot("diff-1")
    output(dev, AFTER)
    second = dev.snapshot("diff-2", disk_only=True)
    disks = [sorted(os.listdir(one.place.directory)) for one in (first, second)]
    told = {one.path: one for one in atoll.compare_snapshots("diff-1", second.id, config=config)}
    log = {path for path in told if path.startswith(("/var/", "/tmp"))}  # what the guest itself may write
    assert {path: str(one.change) for path, one in told.items() if path not in log} == {
        "/etc/profile": "M",
        "/etc/shells": "D",
        "/etc/skel/.bash_logout": "D",
        "/etc/skel/.bashrc": "M",
        "/etc/skel/.profile": "D",
        "/root/diff/gone": "D",
        "/root/diff/link": "A",
        "/root/diff/mode": "m",
        "/root/diff/new\nline": "A",
        "/root/diff/other": "A",
        "/root/diff/renamed": "D",
        "/root/diff/same-size": "M",
    }
    assert told["/root/diff/mode"].before.mode == 0o644
    assert told["/root/diff/mode"].after.mode == 0o751
    assert told["/root/diff/link"].after.target == "mode"
    monkeypatch.setenv("ATOLL_DATA_DIR", str(config.paths.data))
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(config.paths.cache))
    assert main(["snapshot", "diff", "--exit-code", "diff-2"]) == 1  # against its parent
    lines = capsys.readouterr().out.splitlines()
    assert "m /root/diff/mode" in lines
    assert "A /root/diff/new\\nline" in lines
    assert main(["snapshot", "diff", "--exit-code", "diff-2", "diff-2"]) == 0
    assert capsys.readouterr().out == ""
    assert [sorted(os.listdir(one.place.directory)) for one in (first, second)] == disks
    catalog.verify(first)
    catalog.verify(second)
    catalog.remove(config.paths, first.id)
    with pytest.raises(StoreError, match="was removed") as caught:
        atoll.compare_snapshots("diff-2", config=config)
    assert caught.value.code == "store.missing"
    assert second.id in caught.value.hint


def test_a_comparison_that_is_cut_short_leaves_nothing(dev, config):
    first = dev.snapshot("diff-3")
    output(dev, "echo more > /root/more")
    second = dev.snapshot("diff-4")

    async def cut_short():
        comparing = asyncio.create_task(
            aio.compare_snapshots(first.id, second.id, config=config, on_event=tell)
        )
        await up.wait()
        comparing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await comparing

    def tell(event):
        if isinstance(event, TaskAdvanced) and event.task == "compare":
            up.set()

    up = asyncio.Event()
    asyncio.run(cut_short())
