"""The surroundings of a share's daemon: what is read-only there is so for root, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from atoll.hypervisor.qemu.virtiofs import Range, enclosed

pytestmark = pytest.mark.skipif(
    subprocess.run(
        ["unshare", "--mount", "--map-root-user", "true"], check=False, capture_output=True
    ).returncode
    != 0,
    reason="this host lets nobody have namespaces",
)

#: Somebody who is nobody on this host.
STRANGER = 61_234


def inside(script, source, *, read_only):
    """Run a script in the surroundings; whoever is not root is it there."""
    users = (Range(0, os.geteuid()),) if os.geteuid() else ()
    groups = (Range(0, os.getegid()),) if os.geteuid() else ()
    words = enclosed(("/bin/sh", "-c", script), str(source), read_only=read_only, users=users, groups=groups)
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, cwd="/")


def test_what_is_shared_can_be_written(tmp_path):
    ended = inside(f"echo x > {tmp_path}/file", tmp_path, read_only=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "x\n"


def test_a_read_only_share_cannot_be_written_and_all_beside_it_can(tmp_path):
    source, beside = tmp_path / "source", tmp_path / "beside"
    source.mkdir()
    beside.mkdir()
    (source / "file").write_text("old")
    ended = inside(
        f"echo x > {beside}/file; cat {source}/file; echo x > {source}/file", source, read_only=True
    )
    assert ended.returncode != 0
    assert "Read-only file system" in ended.stderr
    assert ended.stdout == "old"
    assert (beside / "file").read_text() == "x\n"


def test_what_is_mounted_below_a_read_only_share_cannot_be_written_either(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    mounted = ("unshare", "--mount", *(("--map-root-user",) if os.geteuid() else ()))
    words = enclosed(("/bin/sh", "-c", f"touch {below}/file"), str(tmp_path), read_only=True)
    script = f'mount -t tmpfs -o nosuid none {below} && exec "$@"'
    ended = subprocess.run(
        [*mounted, "/bin/sh", "-c", script, "sh", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Read-only file system" in ended.stderr


def test_nothing_of_it_is_seen_outside(tmp_path):
    before = Path("/proc/self/mountinfo").read_text()
    inside("true", tmp_path, read_only=True)
    assert Path("/proc/self/mountinfo").read_text() == before
    (tmp_path / "file").write_text("still writable")


def test_it_may_have_all_descriptors_that_it_could_have(tmp_path):
    assert inside('[ "$(ulimit -Sn)" = "$(ulimit -Hn)" ]', tmp_path, read_only=False).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/usr/bin/python3"), reason="needs root")
def test_an_ordinary_user_is_root_there_and_stays_who_it_is_outside():
    before = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups")
    source = subprocess.check_output([*before, "mktemp", "-d", "/tmp/atoll-test-XXXXXX"], text=True).strip()
    readable = shutil.copy(enclosed((), "/", read_only=False)[3], "/tmp/atoll-test-enclosure.py")
    try:
        words = enclosed(
            ("/bin/sh", "-c", f"id -u; touch {source}/file"),
            source,
            read_only=False,
            users=(Range(0, STRANGER),),
            groups=(Range(0, STRANGER),),
        )
        ended = subprocess.run(
            [*before, "/usr/bin/python3", *words[1:3], readable, *words[4:]],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
        assert (ended.stdout, ended.stderr) == ("0\n", "")
        status = os.stat(f"{source}/file")
        assert (status.st_uid, status.st_gid) == (STRANGER, STRANGER)
    finally:
        os.unlink(readable)
        shutil.rmtree(source)
