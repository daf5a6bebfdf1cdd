"""Directories of the host in a guest: one machine for all tests, in the order in which they stand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from guests import eventually, running_machine
from processes import descendants

from atoll.errors import UsageError
from atoll.vm.state import Phase, StateError

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What is shared, and beside it what is not."""
    place = tmp_path_factory.mktemp("host")
    for name in ("always", "now", "safe"):
        (place / name).mkdir()
        (place / name / "file").write_text(f"{name}\n")
    (place / "secret").write_text("of the host\n")
    return place


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths, host):
    data = tmp_path_factory.mktemp("data")
    with running_machine(
        data, paths, disk="256M", memory="256M", mounts=[f"{host}/always:/mnt/always"]
    ) as machine:
        yield machine


def sh(machine, script):
    return machine.run(["sh", "-c", script])


def daemons(machine):
    """The processes that serve the machine's shares, by the directory in the guest."""
    record = json.loads(machine.find().place.shares.read_text())
    return {one["share"]["guest"]: one["daemon"]["pid"] for one in record["shares"] if one["daemon"]}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_asked_for_at_the_making_is_there_when_the_machine_runs(dev, host):
    assert sh(dev, "cat /mnt/always/file").stdout == "always\n"
    assert sh(dev, "echo from the guest > /mnt/always/answer; mkdir -p /mnt/always/a/b").ok
    assert (host / "always" / "answer").read_text() == "from the guest\n"
    assert (host / "always" / "a" / "b").stat().st_uid == os.geteuid()


def test_a_directory_is_shared_while_the_machine_runs_and_taken_away_again(dev, host):
    dev.share(host / "now", "/mnt/new/now")
    assert sh(dev, "cat /mnt/new/now/file").stdout == "now\n"
    assert [share.guest for share in dev.spec.shares] == ["/mnt/always", "/mnt/new/now"]
    daemon = daemons(dev)["/mnt/new/now"]
    dev.unshare("/mnt/new/now")
    assert not alive(daemon)
    assert sh(dev, "ls -A /mnt/new/now").stdout == ""
    assert [share.guest for share in dev.spec.shares] == ["/mnt/always"]


def test_a_read_only_share_stays_so_whatever_root_in_the_guest_does(dev, host):
    dev.share(host / "safe", "/mnt/safe", read_only=True)
    tried = sh(
        dev,
        "touch /mnt/safe/a; mount -o remount,rw /mnt/safe && touch /mnt/safe/b; rm /mnt/safe/file;"
        "mkdir /tmp/again; mount -t virtiofs atoll-share1 /tmp/again; touch /tmp/again/c; umount /tmp/again",
    )
    assert tried.stderr.count("Read-only file system") >= 3
    assert sorted(os.listdir(host / "safe")) == ["file"]
    assert sh(dev, "cat /mnt/safe/file").stdout == "safe\n"


def test_nothing_beside_the_directory_can_be_reached(dev, host):
    (host / "always" / "link").symlink_to(host / "secret")
    (host / "always" / "up").symlink_to("../secret")
    assert not sh(dev, "cat /mnt/always/link").ok
    assert not sh(dev, "cat /mnt/always/up").ok
    assert sh(dev, "cat /mnt/always/../always/file").stdout == "always\n"
    parent = daemons(dev)["/mnt/always"]
    served = [pid for pid in children_of(parent) if alive(pid)]
    assert served
    for pid in served:  # the daemon itself sees nothing else: the directory is its root
        assert os.path.samestat(os.stat(f"/proc/{pid}/root/."), os.stat(host / "always"))


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_daemon_holds_nothing_of_the_machine(dev):
    place = dev.find().place
    for pid in daemons(dev).values():
        for process in (pid, *children_of(pid)):
            held = {os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")}
            ours = {link for link in held if link.startswith(str(place.directory))}
            assert ours <= {str(place.log("shares"))}


def test_what_is_in_use_is_not_taken_away(dev):
    user = dev.run(["sh", "-c", "cd /mnt/safe && (sleep 60 >/dev/null 2>&1 & echo $!)"]).stdout.strip()
    with pytest.raises(StateError, match="in use") as caught:
        dev.unshare("/mnt/safe")
    assert caught.value.code == "state.share_busy"
    assert sh(dev, f"cat /mnt/safe/file; kill {user}").stdout == "safe\n"
    assert "/mnt/safe" in daemons(dev)


def test_what_another_mount_namespace_has_is_not_taken_away_and_no_suspend_begins(dev):
    script = "mount --bind /mnt/safe /opt && umount /mnt/safe && exec sleep 60"
    keeper = f"unshare -m sh -c '{script}' > /dev/null 2>&1 & echo $!"
    keeper = sh(dev, keeper).stdout.strip()
    eventually(lambda: sh(dev, f"grep -q ' /opt .* virtiofs ' /proc/{keeper}/mountinfo").ok)
    for take in (dev.suspend, lambda: dev.unshare("/mnt/safe")):
        with pytest.raises(
            StateError, match=rf"elsewhere in the guest, too: process {keeper} \(sleep\)"
        ) as caught:
            take()
        assert caught.value.code == "state.share_busy"
        assert dev.state.phase is Phase.RUNNING
        both = f"cat /mnt/safe/file /mnt/always/file /proc/{keeper}/root/opt/file"
        assert sh(dev, both).stdout == "safe\nalways\nsafe\n"
    assert "/mnt/safe" in daemons(dev)
    assert sh(dev, f"kill {keeper}").ok


def test_places_that_are_taken_or_are_none_are_refused(dev, host):
    with pytest.raises(UsageError, match="already"):
        dev.share(host / "now", "/mnt/always")
    with pytest.raises(UsageError, match="no directory"):
        dev.share(host / "missing", "/mnt/missing")
    with pytest.raises(UsageError, match="no share"):
        dev.unshare("/mnt/nothing")
    for place in ("/", "mnt", "/mnt/../..", ""):
        with pytest.raises(UsageError, match="no place"):
            dev.share(host / "now", place)


def test_a_machine_has_room_for_so_many(dev, host):
    dev.share(host / "now", "/mnt/third")
    dev.share(host / "now", "/mnt/fourth")
    with pytest.raises(StateError, match="room"):
        dev.share(host / "now", "/mnt/fifth")
    assert len(daemons(dev)) == 4
    dev.unshare("/mnt/third")
    dev.unshare("/mnt/fourth")


def test_shares_outlive_the_supervisor_and_the_next_one_can_take_them_away(dev):
    before = daemons(dev)
    supervisor = dev.status().supervisor
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not alive(supervisor))
    assert all(alive(pid) for pid in before.values())
    dev.close()
    dev.connect()
    assert sh(dev, "cat /mnt/safe/file /mnt/always/file").stdout == "safe\nalways\n"
    assert daemons(dev) == before
    dev.unshare("/mnt/safe")
    assert not alive(before["/mnt/safe"])
    assert alive(before["/mnt/always"])


def test_a_daemon_that_is_killed_is_replaced(dev):
    killed = daemons(dev)["/mnt/always"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: daemons(dev).get("/mnt/always") not in {killed, None})
    eventually(lambda: sh(dev, "cat /mnt/always/file").stdout == "always\n")


def test_what_was_added_while_it_ran_is_there_after_a_reboot(dev, host):
    dev.share(host / "now", "/mnt/now", read_only=True)
    old = daemons(dev)
    reboot(dev)
    assert sh(dev, "cat /mnt/now/file /mnt/always/file").stdout == "now\nalways\n"
    assert not any(alive(pid) for pid in old.values())


def reboot(machine):
    before = machine.status().vm
    sh(machine, "sync; (sleep 0.2; echo b > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    eventually(lambda: machine.status().vm not in {before, 0})
    machine.wait(Phase.RUNNING, timeout=60)


def test_no_daemon_is_left_when_supervisor_and_hypervisor_are_killed(dev):
    status = dev.status()
    left = daemons(dev)
    children = [child for pid in left.values() for child in children_of(pid)]
    os.kill(status.supervisor, signal.SIGKILL)
    os.kill(status.vm, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in (*left.values(), *children)))
    dev.close()
    eventually(lambda: dev.state.phase is Phase.FAILED)


def test_a_share_whose_directory_is_gone_fails_the_start_with_its_name(dev, host):
    (host / "now").rename(host / "moved")
    with pytest.raises(StateError, match=f"{host}/now") as caught:
        dev.start()
    assert caught.value.code == "state.share"
    dev.unshare("/mnt/now")
    assert dev.start().state.phase is Phase.RUNNING
    assert sh(dev, "cat /mnt/always/file").stdout == "always\n"


def test_nothing_is_left_when_the_machine_stops(dev):
    left = daemons(dev)
    assert left
    dev.stop(force=True)
    assert not any(alive(pid) for pid in left.values())
    assert not dev.find().place.shares.exists()
    assert "virtiofsd" not in descendants().values()
