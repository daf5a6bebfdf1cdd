"""What the guest's shell does for builds. Pure.

A build is a session: a shell in the guest that a client holds by its input. While it is held there are a
directory on the disk, another in memory for what is not to be kept, and a cgroup in which all that the build
runs is. When the client lets go of it, whatever way, the cgroup is killed and both directories go.
"""

from __future__ import annotations

from atoll.image import foreign
from atoll.image.kernel import host_architecture
from atoll.machine.spec import Service

__all__ = [
    "BUSY",
    "CONTEXTS",
    "DIRECT",
    "ENTER",
    "KEPT",
    "PRUNE",
    "SESSION",
    "STORAGE",
    "memory_of",
    "service",
    "work_of",
]

_RUN = "/run/atoll-builder"

#: Where the builder keeps things of Atoll's, and buildah its own.
KEPT, STORAGE = "/var/lib/atoll-builder", "/var/lib/containers/storage"

#: Contexts of earlier builds: ``NAME/tree`` and ``NAME/items``, which says what is there.
CONTEXTS = f"{KEPT}/contexts"

#: On the disk itself: overlays are made of what lies there.
DIRECT = ("/var/lib/containers", KEPT)

_GROUPS = "/sys/fs/cgroup/atoll-build-"

#: Kernel settings by their path in /proc/sys, as the engine of containers has them.
_SYSCTLS = {"fs/inotify/max_user_instances": "8192", "vm/max_map_count": "262144"}

_STORAGE_CONF = f"""\
[storage]
driver = "overlay"
graphroot = "{STORAGE}"
runroot = "/run/containers/storage"
"""

#: buildah wants to find a program for networks of containers. It has none to make: all have the machine's.
_CONTAINERS_CONF = f"""\
[engine]
helper_binaries_dir = ["{_RUN}/bin"]
"""

#: Its argument is the build's name, its input ends with the session.
_KEEPER = f"""\
cat > /dev/null
group={_GROUPS}$1
echo 1 > "$group/cgroup.kill"
until rmdir "$group"/*/ "$group"/*/*/ "$group" 2> /dev/null || [ ! -e "$group" ]; do sleep 0.05; done
umount -l "{KEPT}/work/$1/context" 2> /dev/null
rm -rf "{KEPT}/work/$1" "{_RUN}/builds/$1"
rmdir {_RUN}/builds/* 2> /dev/null
if [ -z "$(ls {_RUN}/builds)" ] && grep -q '"id"' {STORAGE}/overlay-containers/containers.json; then
    buildah rm --all
fi
"""

#: Begins a session; its argument is the build's name. It says "ready", and waits for the end of its input.
SESSION = f"""\
set -eu
work={KEPT}/work/$1
memory={_RUN}/builds/$1
group={_GROUPS}$1
mkdir -p "$work" "$memory"
mkdir "$group" "$group/main"
mkfifo "$memory/life"
setsid /bin/sh {_RUN}/keeper "$1" < "$memory/life" > /dev/null 2>&1 &
exec 9> "$memory/life"
echo ready
cat > /dev/null
"""

#: Runs a command as a part of a session; its arguments are the build's name, and the command. buildah runs
#: but briefly: without collecting garbage before it has so much it takes two thirds of the time.
ENTER = f"""\
echo 0 > "{_GROUPS}$1/main/cgroup.procs" || exit 125
shift
export GOGC=off GOMEMLIMIT=512MiB
exec "$@"
"""

#: Removes all that earlier builds have left, unless one goes on: then its status is ``BUSY``.
BUSY = 3
PRUNE = f"""\
[ -z "$(ls {_RUN}/builds)" ] || exit {BUSY}
buildah rmi --all --force && rm -rf {CONTEXTS}/* && sync
"""

#: buildah writes layers without a sync, and a machine may be killed at any time. Without delayed allocation a
#: commit of the journal writes what was written before it, too (ext4(5), data=ordered).
_START = f"""\
if [ ! -e {_RUN} ]; then
mkdir -p {_RUN}/builds {CONTEXTS} /etc/containers
rm -rf {KEPT}/work
mkdir -p {KEPT}/work
mount -o remount,noatime,discard,nodelalloc /var/lib/containers
cat > {_RUN}/keeper << 'END_OF_KEEPER'
{_KEEPER}END_OF_KEEPER
mkdir {_RUN}/bin
ln -s /bin/false {_RUN}/bin/netavark
cat > /etc/containers/containers.conf << 'END_OF_CONTAINERS'
{_CONTAINERS_CONF}END_OF_CONTAINERS
cat > /etc/containers/storage.conf << 'END_OF_STORAGE'
{_STORAGE_CONF}END_OF_STORAGE
echo -500 > /proc/self/oom_score_adj
ulimit -n 1048576
{{
    modprobe -a -q overlay || :
    FOREIGN
    SYSCTLS
    if grep -q '"id"' {STORAGE}/overlay-containers/containers.json; then buildah rm --all; fi
}} > /dev/null 2>&1 < /dev/null
fi
"""


def work_of(build: str) -> str:
    """The directory of a build on the disk."""
    return f"{KEPT}/work/{build}"


def memory_of(build: str) -> str:
    """The directory of a build in memory."""
    return f"{_RUN}/builds/{build}"


def service() -> Service:
    """What the machine runs: nothing goes on in it but builds."""
    native = host_architecture()
    platform = foreign.PLATFORMS[foreign.FOREIGN[native]]
    message = (
        f"atoll: {platform} does not run here: the engine's image lacks Debian's package {foreign.PACKAGE};"
        f" `atoll image build --force engine` and `atoll builder stop` bring it"
    )
    sysctls = "\n    ".join(f"echo {value} > /proc/sys/{path} || :" for path, value in _SYSCTLS.items())
    start = _START.replace("SYSCTLS", sysctls).replace("FOREIGN\n", foreign.register(native, _RUN, message))
    return Service(start, "sync", DIRECT, trusted=False)
