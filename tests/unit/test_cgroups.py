"""Where cgroups may be made, from what the kernel says of this process's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.hypervisor.cgroups import Bounds, Facts, Home, homes, judge, limit_files, name, owner

V1 = """\
12:memory:/user.slice/session-1.scope
9:name=systemd:/user.slice/session-1.scope
8:pids:/
3:cpu,cpuacct:/
"""
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 master:1 - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
"""
V2_MOUNT = "41 31 0:38 / {} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = V2_MOUNT.format("/sys/fs/cgroup")
UNIFIED = V2_MOUNT.format("/sys/fs/cgroup/unified")
BOUNDS = Bounds(memory=1 << 30, tasks=99)


def test_in_version_1_each_controller_has_a_hierarchy():
    assert homes(V1, V1_MOUNTS) == (
        Home(
            1,
            "/user.slice/session-1.scope",
            Path("/sys/fs/cgroup/memory/user.slice/session-1.scope"),
            ("memory",),
        ),
        Home(1, "/", Path("/sys/fs/cgroup/pids"), ("pids",)),
    )


def test_in_version_1_controllers_may_share_a_hierarchy():
    mounts = "39 31 0:36 / /cg rw - cgroup cgroup rw,memory,pids\n"
    assert homes("4:pids,memory:/a\n", mounts) == (Home(1, "/a", Path("/cg/a"), ("memory", "pids")),)


def test_in_version_2_there_is_one_for_both():
    found = homes("0::/user.slice/a b:c\n", V2)
    place = Path("/sys/fs/cgroup/user.slice/a b:c")
    assert found == (Home(2, "/user.slice/a b:c", place, ("memory", "pids")),)


def test_a_controller_that_version_1_has_is_not_in_version_2():
    memberships = "8:pids:/p\n0::/u\n"
    assert homes(memberships, V1_MOUNTS + UNIFIED) == (
        Home(1, "/p", Path("/sys/fs/cgroup/pids/p"), ("pids",)),
        Home(2, "/u", Path("/sys/fs/cgroup/unified/u"), ("memory",)),
    )
    assert [home.version for home in homes(V1 + "0::/\n", V1_MOUNTS + UNIFIED)] == [1, 1]


@pytest.mark.parametrize(
    ("memberships", "mounts"),
    [
        ("", ""),
        (V1, ""),
        ("", V1_MOUNTS),
        ("0::/\n", V1_MOUNTS),
        ("8:pids:/\n", UNIFIED),
        ("0::/../other\n", V2),  # outside of its cgroup namespace
        ("0::/elsewhere\n", "41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        ("0::/docker/xy\n", "41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
    ],
)
def test_of_what_is_not_mounted_nothing_can_be_made(memberships, mounts):
    assert homes(memberships, mounts) == ()


def test_a_mount_may_show_a_part_of_the_hierarchy_and_its_name_may_have_spaces():
    mounts = "41 31 0:38 /docker/x /my\\040cgroups rw - cgroup2 cgroup2 rw\n"
    assert homes("0::/docker/x\n", mounts)[0].directory == Path("/my cgroups")
    assert homes("0::/docker/x/y\n", mounts)[0].directory == Path("/my cgroups/y")


lines = st.lists(
    st.sampled_from([*V1.splitlines(), *V1_MOUNTS.splitlines(), *V2.splitlines(), "x", " - ", "::"])
)


@given(st.text() | lines.map("\n".join), st.text() | lines.map("\n".join))
def test_whatever_it_reads_it_finds_a_controller_once_at_most(memberships, mounts):
    found = [controller for home in homes(memberships, mounts) for controller in home.controllers]
    assert len(found) == len(set(found))


OWN = Home(1, "/", Path("/cg"), ("memory",))
SOMEONES = Home(1, "/system.slice/job", Path("/cg/system.slice/job"), ("memory",))
UNIFIED_HOME = Home(2, "/", Path("/cg"), ("memory", "pids"))
USER = Facts(writable=True, superuser=False, delegated=False)
ROOT = Facts(writable=True, superuser=True, delegated=False)
DELEGATED = Facts(writable=True, superuser=True, delegated=True)
READ_ONLY = Facts(writable=False, superuser=True, delegated=True)
PARTLY = Facts(writable=True, superuser=True, delegated=False, passed_on=frozenset({"cpu", "pids"}))
BOTH = Facts(writable=True, superuser=True, delegated=False, passed_on=frozenset({"memory", "pids"}))


@pytest.mark.parametrize(
    ("home", "facts", "controllers", "reason"),
    [
        (OWN, ROOT, ("memory",), ""),
        (SOMEONES, USER, ("memory",), ""),
        (SOMEONES, DELEGATED, ("memory",), ""),
        (SOMEONES, ROOT, (), "the cgroup /system.slice/job is another program's, and not delegated"),
        (OWN, READ_ONLY, (), "the cgroup / cannot be written"),
        (UNIFIED_HOME, BOTH, ("memory", "pids"), ""),
        (UNIFIED_HOME, PARTLY, ("pids",), "the cgroup / does not pass it on"),
        (UNIFIED_HOME, DELEGATED, (), "the cgroup / does not pass it on"),
    ],
)
def test_whether_cgroups_may_be_made_below_one(home, facts, controllers, reason):
    assert judge(home, facts) == (controllers, reason)


def test_the_files_that_set_bounds_differ_between_versions():
    first = Home(1, "/", Path("/cg"), ("memory", "pids"))
    assert limit_files(first, BOUNDS) == (("memory.limit_in_bytes", "1073741824"), ("pids.max", "99"))
    assert limit_files(UNIFIED_HOME, BOUNDS) == (("memory.max", "1073741824"), ("pids.max", "99"))
    assert limit_files(OWN, BOUNDS) == (("memory.limit_in_bytes", "1073741824"),)


@given(st.integers(1, 2**22), st.integers(0, 2**63), st.from_regex(r"[a-z0-9-]+", fullmatch=True))
def test_a_name_tells_the_owner(pid, started, vm):
    assert owner(name(pid, started, vm)) == (pid, started)


@pytest.mark.parametrize(
    "directory", ["user.slice", "atoll-1-x", "atoll-1-2", "xatoll-1-2-vm", "atoll--1-2-vm", ""]
)
def test_what_others_made_is_nobodys(directory):
    assert owner(directory) is None
