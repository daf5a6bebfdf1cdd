"""A machine as users make it: Debian with systemd, a network and a user of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from guests import eventually

from atoll import blocking
from atoll.config import load
from atoll.machine import ssh
from atoll.paths import Paths
from atoll.vm.state import Phase

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths):
    """It has just started; its services are still coming up."""
    data = tmp_path_factory.mktemp("systemd")
    (paths.images).mkdir(parents=True, exist_ok=True)
    (data / "images").symlink_to(paths.images)
    config = load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config
    machine = blocking.Machine.create("dev", user="ada", disk="2G", accel="tcg", config=config)
    try:
        machine.start()
        yield machine
    finally:
        machine.remove(force=True)
        machine.close()


def ran(machine, script, user="root"):
    return machine.run(["sh", "-c", script], user=user, check=True).stdout.strip()


def test_commands_run_before_the_services_are_up(dev):
    assert ran(dev, "cat /proc/1/comm") == "systemd"
    assert dev.run(["systemctl", "is-active", "multi-user.target"]).stdout != "active\n"


def test_the_services_come_up_and_none_fails(dev):
    def settled():
        return dev.run(["systemctl", "is-system-running"]).stdout.strip() in {"running", "degraded"}

    eventually(settled, within=60)
    assert dev.run(["systemctl", "--failed", "--no-legend"]).stdout.strip() == ""


def test_commands_are_run_by_the_machine_s_user_who_may_become_root(dev):
    assert dev.run(["id", "-un"]).stdout == "ada\n"
    assert dev.run(["pwd"]).stdout == "/home/ada\n"
    assert dev.run(["sudo", "id", "-u"]).stdout == "0\n"


def test_the_guest_knows_its_name_its_network_and_the_time(dev):
    assert ran(dev, "hostname") == "dev"
    assert ran(dev, "getent hosts dev").split()[-1] == "dev"
    assert "10.0.2.15/24" in ran(dev, "ip -brief address show eth0")
    assert ran(dev, "ip route show default").split()[2] == "10.0.2.2"
    before = time.time()
    assert before - 1 < float(ran(dev, "date +%s.%N")) < time.time() + 1
    assert ran(dev, "cat /etc/machine-id") == dev.spec.id


def test_what_is_deleted_leaves_the_host_s_file(dev):
    disk = dev.find().place.data
    ran(dev, "dd if=/dev/urandom of=/var/tmp/large bs=1M count=64 2>/dev/null; sync")
    full = disk.stat().st_blocks * 512
    ran(dev, "rm /var/tmp/large; sync")
    eventually(lambda: disk.stat().st_blocks * 512 < full - (60 << 20), within=60)


def test_a_guest_under_pressure_leaves_a_clean_disk_when_it_is_stopped(dev):
    ran(dev, "for i in $(seq 200); do echo $i > /var/tmp/$i; done")
    stopped = dev.stop()
    assert [step.how for step in stopped.steps] == ["agent"]
    assert dev.state.phase is Phase.STOPPED
    header = subprocess.run(
        ["dumpe2fs", "-h", dev.find().place.data], capture_output=True, text=True, check=True
    )
    assert "needs_recovery" not in header.stdout
    assert "clean" in header.stdout


def test_what_was_written_is_there_after_the_next_start(dev):
    dev.start()
    assert ran(dev, "cat /var/tmp/200") == "200"


def test_a_stop_right_after_the_start_is_in_order_too(dev):
    dev.restart()
    assert [step.how for step in dev.stop().steps] == ["agent"]


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client here")
def test_ssh_reaches_the_machine_without_a_port(dev, paths, tmp_path):
    dev.start()
    own = Paths(data=dev.find().place.directory.parent.parent, cache=paths.cache)
    environment = {**os.environ, "ATOLL_DATA_DIR": str(own.data), "ATOLL_CACHE_DIR": str(own.cache)}
    ssh.ensure_keys(own, "dev")
    (tmp_path / "config").write_text(ssh.config_block(own))
    done = subprocess.run(
        ["ssh", "-F", tmp_path / "config", "ada@dev.atoll", "id -un; hostname"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "ada\ndev\n", done.stderr
