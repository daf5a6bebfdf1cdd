"""What is seen of /dev/kvm without starting a guest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from atoll.hypervisor.qemu.verdict import Finding, Verdict, examine_device


def test_a_device_that_is_not_there_is_missing_and_says_how_to_get_it(tmp_path):
    verdict = examine_device(tmp_path / "kvm")
    assert verdict.finding is Finding.MISSING
    assert verdict.reason == f"{tmp_path / 'kvm'} does not exist"
    assert "firmware" in verdict.hint
    assert not verdict.usable


def test_a_device_that_opens_proves_nothing_yet(tmp_path):
    (tmp_path / "kvm").touch()
    before = len(os.listdir("/proc/self/fd"))
    assert examine_device(tmp_path / "kvm") is None
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["directory", "socket"])
def test_a_device_that_cannot_be_opened_is_missing_with_the_reason(tmp_path, kind):
    path = tmp_path / "kvm"
    if kind == "directory":
        path.mkdir()
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    verdict = examine_device(path)
    assert verdict.finding is Finding.MISSING
    expected = "Is a directory" if kind == "directory" else "No such device or address"
    assert verdict.reason == f"{path} cannot be opened: {expected}"


EXAMINE = """
import os, pathlib, sys
from atoll.hypervisor.qemu.verdict import examine_device
examine_device(pathlib.Path("/nowhere"))  # loads all that is needed while it can be read
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)  # permissions do not bind root
verdict = examine_device(pathlib.Path(sys.argv[1]))
print(verdict.finding, "|", verdict.reason, "|", verdict.hint)
"""


def test_a_device_that_others_own_says_how_to_be_let_in(tmp_path):
    path = tmp_path / "kvm"
    path.touch()
    path.chmod(0)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.getuid() and parent.name.startswith(("pytest-", "test_")):
            parent.chmod(0o755)
    environment = {**os.environ, "USER": "someone"}
    command = [sys.executable, "-c", EXAMINE, str(path)]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    finding, reason, hint = done.stdout.decode().strip().split(" | ")
    assert finding == "no permission"
    assert reason == f"no permission to open {path}"
    assert hint == "sudo usermod -aG kvm someone, then log in again"


def test_only_what_works_is_usable():
    assert [finding for finding in Finding if Verdict(finding, "").usable] == [Finding.WORKS]
