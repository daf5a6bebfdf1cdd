"""Each sandbox in a cgroup of its own: on this host, and in a guest, where all of them can be had."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from traces import cgroups

from atoll import aio, process
from atoll.hypervisor import confinement
from atoll.hypervisor.cgroups import bounds_of

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

ATOLL = str(Path(sys.executable).parent / "atoll")

needs_cgroups = pytest.mark.skipif(not confinement.survey().homes, reason="no cgroup may be made here")


@needs_cgroups
@pytest.mark.usefixtures("no_leftovers")
async def test_a_sandboxs_hypervisor_is_bounded_and_so_are_those_of_its_copies(config):
    files = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}
    async with aio.Sandbox("debian", config=config) as box:
        [copy] = await box.fork()
        async with copy:
            for each in (box, copy):
                bounds = bounds_of(each.vm.machine)
                for home in confinement.survey().homes:
                    [place] = home.directory.glob(f"atoll-{os.getpid()}-*-{each.name}")
                    assert f"{each.vm.pid}" in (place / "cgroup.procs").read_text().split()
                    for controller in home.controllers:
                        limit = (place / files[controller][home.version - 1]).read_text()
                        assert int(limit) == (bounds.memory if controller == "memory" else bounds.tasks)


WITHOUT = (
    'for place in $PLACES; do mount --bind $place $place; mount -o remount,ro,bind $place; done; exec "$@"'
)


@needs_cgroups
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is mounted read-only")
def test_where_no_cgroup_can_be_made_a_sandbox_runs_without(environment):
    places = " ".join(str(home.directory) for home in confinement.survey().homes)
    script = ["sh", "-ec", WITHOUT, "sh", ATOLL]
    child = subprocess.Popen(
        ["unshare", "--mount", *script, "run", "debian", "--", "cat", "/proc/self/cgroup"],
        stdout=subprocess.PIPE,
        env={**environment, "PLACES": places},
    )
    assert child.communicate(timeout=60)[0] == b"0::/\n"
    assert child.returncode == 0
    assert not cgroups([child.pid])


#: Makes a guest's cgroups those of a host, by their version.
HOSTS = {
    1: "umount /sys/fs/cgroup; cd /run; mkdir memory pids; mount -t cgroup -o memory none memory;"
    " mount -t cgroup -o pids none pids",
    2: "echo '+memory +pids' > /sys/fs/cgroup/cgroup.subtree_control",
}

#: Run in the guest, by its own Python.
PROGRAM = """
import json, os
from atoll import process
from atoll.hypervisor import confinement
from atoll.hypervisor.cgroups import Bounds

def status(script):
    made = confinement.confine("vm", Bounds(memory=48 << 20, tasks=10))
    child = process.spawn(["/usr/bin/perl", "-e", script], entering=made.entries)
    ended = child.wait(60)
    made.remove()
    return ended, sum(os.path.exists(directory) for directory in made.directories)

CHILDREN = '''
    for (1..%d) {
        $child = fork;
        $failed = 1 if !defined $child;
        if (defined $child && !$child) { select(undef, undef, undef, 0.2); exit }
    }
    1 while wait > 0;
    exit($failed ? 4 : 3);
'''
print(json.dumps({
    "homes": [[home.version, home.controllers] for home in confinement.survey().homes],
    "little memory": status("$x = 'x' x (10 << 20); exit 3"),
    "much memory": status("$x = 'x' x (100 << 20); exit 3"),
    "few tasks": status(CHILDREN % 8),
    "many tasks": status(CHILDREN % 12),
}))
"""

#: Tells which files a Python has loaded that imports what is tested.
LOADED = """
import codecs, json, os, sys
from atoll import process
from atoll.hypervisor import confinement

process.spawn(["/bin/true"]).close()
codecs.lookup("ascii")
maps = [line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line]
files = {file for file in maps if ".so" in file or "python" in file}
for module in list(sys.modules.values()):
    files |= {getattr(module, "__file__", None), getattr(module, "__cached__", None)}
print(json.dumps(sorted(file for file in files if file and os.path.isfile(file))))
"""


def python_for_guest():
    """A tar of this Python, as far as the program needs it, and the words that run it in a guest."""
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", LOADED]))
    libraries = [
        path for path in loaded if ".so" in path and "site-packages" not in path and "dynload" not in path
    ]
    [loader] = [path for path in libraries if Path(path).name.startswith("ld-")]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in loaded:
            tar.add(os.path.realpath(path), f"libraries/{Path(path).name}" if path in libraries else path)
    search = [
        str(Path(process.__file__).parents[1]),
        *(place for place in sys.path if "site-packages" in place),
    ]
    return packed.getvalue(), [
        *("env", f"PYTHONHOME={sys.base_prefix}", f"PYTHONPATH={os.pathsep.join(search)}"),
        *(f"/libraries/{Path(loader).name}", "--library-path", "/libraries"),
        *(os.path.realpath(sys.executable), "-S", "-c", PROGRAM),
    ]


async def told_by_guest(box, version, argv):
    await box.run(["sh", "-ec", HOSTS[version]], check=True)
    result = await box.run(argv)
    assert result.ok, result.stderr
    return json.loads(result.stdout)


async def test_what_is_in_a_cgroup_gets_no_more_than_its_bounds(config):
    packed, argv = python_for_guest()
    async with aio.Sandbox("debian", config=config) as box:
        await box.run(["tar", "-x", "-C", "/"], input=packed, check=True)
        [copy] = await box.fork()
        async with copy:
            first, second = await asyncio.gather(told_by_guest(box, 1, argv), told_by_guest(copy, 2, argv))
    assert sorted(first.pop("homes")) == [[1, ["memory"]], [1, ["pids"]]]
    assert second.pop("homes") == [[2, ["memory", "pids"]]]
    ends = {"little memory": 3, "much memory": -signal.SIGKILL, "few tasks": 3, "many tasks": 4}
    assert first == second == {what: [status, 0] for what, status in ends.items()}
