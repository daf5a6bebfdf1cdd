"""What the guest's shell does for the engine: a pure function from settings to scripts.

Each of the two programs has a keeper, a shell that starts it again whenever it ends without being asked, and
a reader of what it writes, which keeps two files of a bounded size. A program that somebody kills is back
within a second or two; its containers are dockerd's to restart, as their policies say.
"""

from __future__ import annotations

import shlex

from atoll.containers.settings import (
    CONTAINERD_SOCKET,
    HOST,
    HOST_NAME,
    EngineSettings,
    daemon_json,
    environment,
    trusted,
)
from atoll.errors import ConfigError
from atoll.image.engine import REQUIRED
from atoll.machine.spec import Service

__all__ = ["DIRECT", "FAILURES", "KEEPER", "LOGS", "service"]

_RUN = "/run/atoll-engine"

#: Where the two programs' logs are: ``NAME.log``, and the one before it, ``NAME.log.1``.
LOGS = "/var/log/atoll-engine"

#: How often a program has ended without being asked since the machine has started: a number, in ``NAME``.
FAILURES = f"{_RUN}/failures"

#: On the disk itself: what the engine keeps is not to lie on an overlay, under which it could make none.
DIRECT = ("/var/lib/docker", "/var/lib/containerd")

#: Loaded in one go: each that dockerd or iptables finds missing costs a program.
_MODULES = (
    *("overlay", "bridge", "br_netfilter", "veth"),
    *("ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle"),
    *("xt_addrtype", "xt_conntrack", "xt_MASQUERADE", "xt_nat", "xt_tcpudp", "xt_mark", "xt_comment"),
    *("nf_conntrack_netlink", "xfrm_user"),
)

#: Parts of containerd that dockerd does not use.
_DISABLED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)

#: Kernel settings by their path in /proc/sys: what a container may need, and cannot set itself.
_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "fs/inotify/max_user_watches": "1048576",
    "fs/inotify/max_user_instances": "8192",
    "vm/max_map_count": "262144",
}

#: Of a file of a log, bytes, at most.
_LOG_SIZE = 1 << 20

#: Bytes of the script that starts all: it travels to the guest in one message of 32 KiB.
_MOST = 30_000

#: Starts a program again and again; its arguments are a name, and the program's command.
KEEPER = f"""\
name=$1
shift
log={LOGS}/$name.log
count=0
record() {{
    size=0
    [ ! -s "$log" ] || size=$(wc -c < "$log")
    exec >> "$log"
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\\n' "$line"
        size=$((size + ${{#line}} + 1))
        if [ "$size" -gt {_LOG_SIZE} ]; then
            mv "$log" "$log.1"
            exec > "$log"
            size=0
        fi
    done
}}
while [ ! -e {_RUN}/ending ]; do
    pipe={_RUN}/$name.$count
    mkfifo "$pipe"
    record < "$pipe" &
    "$@" > "$pipe" 2>&1 < /dev/null &
    echo $! > {_RUN}/$name.pid
    wait $!
    status=$?
    [ ! -e {_RUN}/ending ] || break
    echo "atoll: $name has ended with status $status; it is started again" >> "$log"
    rm -f "$pipe"
    count=$((count + 1))
    echo $count > {FAILURES}/$name
    sleep 0.5
done
"""

#: dockerd syncs an image's record, but not its layers, and a machine may be killed at any time. Without
#: delayed allocation a commit of the journal writes what was written before it, too (ext4(5), data=ordered).
_START = f"""\
if [ ! -e {_RUN} ]; then
mkdir -p {_RUN} {FAILURES} {LOGS} /run/containerd
for name in {" ".join(REQUIRED)}; do
    command -v "$name" > /dev/null || {{ echo "$name is not in the machine's root any more" >&2; exit 1; }}
done
mount --make-rshared /
mount -o remount,noatime,discard,nodelalloc /var/lib/docker
grep -q {HOST_NAME} /etc/hosts 2> /dev/null || echo {HOST} {HOST_NAME} >> /etc/hosts
echo -500 > /proc/self/oom_score_adj
ulimit -n 1048576
ulimit -c unlimited
FILES
/bin/sh {_RUN}/keeper containerd containerd --config {_RUN}/containerd.toml > /dev/null 2>&1 < /dev/null &
{{
    modprobe -a -q {" ".join(_MODULES)} || :
    SYSCTLS
    exec /bin/sh {_RUN}/keeper dockerd dockerd --config-file {_RUN}/daemon.json
}} > /dev/null 2>&1 < /dev/null &
fi
"""

#: dockerd stops its containers while containerd still runs.
_STOP = f"""\
: > {_RUN}/ending
for name in dockerd containerd; do
    read -r pid < {_RUN}/$name.pid || continue
    kill -TERM "$pid" 2> /dev/null || continue
    while kill -0 "$pid" 2> /dev/null; do sleep 0.05; done
done
sync
"""


def service(settings: EngineSettings) -> Service:
    """What the machine runs.

    Raises:
        ConfigError: ``config.engine``: as ``daemon_json`` and ``trusted``; or it is too much.
    """
    files = {"keeper": KEEPER, "containerd.toml": _containerd(), "daemon.json": daemon_json(settings) + "\n"}
    variables = environment(settings)
    lines = [f"printf %s {shlex.quote(text)} > {_RUN}/{name}" for name, text in files.items()]
    authorities = trusted(settings)
    if authorities:
        lines.append(
            f"{{ cat /etc/ssl/certs/ca-certificates.crt; printf '\\n%s\\n' {shlex.quote(authorities)}; }}"
            f" > {_RUN}/certificates.pem"
        )
        variables["SSL_CERT_FILE"] = f"{_RUN}/certificates.pem"
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    sysctls = "\n    ".join(f"echo {value} > /proc/sys/{path} || :" for path, value in _SYSCTLS.items())
    start = _START.replace("SYSCTLS", sysctls).replace("FILES", "\n".join(lines))
    if len(start.encode()) > _MOST:
        hint = "name fewer certificates, or shorten the daemon settings"
        raise ConfigError(f"the engine's settings have more than {_MOST} bytes", code="engine", hint=hint)
    return Service(start, _STOP, DIRECT)


def _containerd() -> str:
    disabled = ", ".join(f'"{name}"' for name in _DISABLED)
    return f'version = 2\ndisabled_plugins = [{disabled}]\n[grpc]\naddress = "{CONTAINERD_SOCKET}"\n'
