"""Snapshots of real guests in one file: taken in elsewhere, and gone on from there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from guests import running_machine

import atoll
from atoll import blocking
from atoll.blocking.core import wait_for
from atoll.config import load
from atoll.snapshot import catalog

pytestmark = [pytest.mark.vm]


@pytest.fixture(scope="module", autouse=True)
def loop():
    """The event loop of the blocking interface stays: it is nothing that a test leaves."""
    wait_for(asyncio.sleep(0))


@pytest.fixture
def elsewhere(tmp_path, paths):
    """Settings of another data directory."""
    flags = {"data_dir": tmp_path / "elsewhere", "cache_dir": paths.cache}
    return load(flags, environment={}, files=()).config


def output(guest, script):
    return guest.run(["sh", "-c", script], check=True).stdout


def test_a_machine_goes_on_elsewhere_with_its_processes_and_files(tmp_path, paths, elsewhere, environment):
    archive = tmp_path / "archive"
    with running_machine(tmp_path / "data", paths, disk="256M", memory="256M") as dev:
        output(dev, "echo kept > /root/disk; echo kept > /dev/shm/ram")
        output(dev, "sleep 1000 > /dev/null 2>&1 & echo $! > /dev/shm/pid")
        dev.snapshot("first")
        output(dev, "echo more >> /root/disk")
        made = dev.snapshot("second")
        command = [str(Path(sys.executable).parent / "atoll"), "snapshot", "export", made.id, "-"]
        told = {**environment, "ATOLL_DATA_DIR": str(tmp_path / "data")}
        with archive.open("wb") as file:
            subprocess.run(command, env=told, stdout=file, check=True, timeout=60)
    found = atoll.import_snapshot(archive, config=elsewhere)
    assert (found.id, len(found.manifest.layers)) == (made.id, 2)
    machine = blocking.Machine.from_snapshot("twin", found.id, config=elsewhere)
    try:
        assert output(machine, "hostname; cat /root/disk /dev/shm/ram") == "twin\nkept\nmore\nkept\n"
        output(machine, "kill -0 $(cat /dev/shm/pid)")
        again = machine.snapshot("third")
        assert again.manifest.parent == found.id
        catalog.verify(again)
        machine.restart()
        assert output(machine, "cat /root/disk") == "kept\nmore\n"
    finally:
        machine.remove(force=True)
        machine.close()


@pytest.mark.usefixtures("no_leftovers")
def test_a_sandbox_goes_on_elsewhere(tmp_path, config, elsewhere):
    archive = tmp_path / "archive"
    with atoll.Sandbox("debian", config=config) as box:
        output(box, "echo kept > /root/file; sleep 1000 > /dev/null 2>&1 & echo $! > /root/pid")
        made = box.snapshot("moving")
    try:
        atoll.export_snapshot("moving", archive, config=config)
    finally:
        catalog.remove(config.paths, made.id)
    found = atoll.import_snapshot(archive, config=elsewhere)
    assert (found.id, found.imported) == (made.id, True)
    with atoll.Sandbox(snapshot="moving", config=elsewhere) as box:
        assert output(box, "cat /root/file") == "kept\n"
        output(box, "kill -0 $(cat /root/pid)")
