"""What an image for machines has beside the plain one: systemd, trimmed so that it boots fast when emulated.

What costs time under emulation is programs that are executed: some 0.1 s each. So nothing is started at boot
that a virtual machine does without, and what only some users need starts where there is something to do.
Units are not masked: a link to /dev/null in ``TARGET.wants`` takes back only what the package's own
``TARGET.wants`` says (systemd.unit(5)), and ``systemctl start`` still works. The one exception is tmp.mount.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["CLEAN", "INIT", "PACKAGES", "Link", "entries", "write_archive"]

INIT = "/usr/lib/systemd/systemd"

#: Beside those of the plain image. No udev: its coldplug takes 4 s, drivers are loaded by the kernel's own
#: requests and by the agent. No libpam-systemd: each login would start three programs.
PACKAGES = (
    "dbus",
    "libnss-myhostname",  # the guest's own name resolves, whatever it is called
    "login",  # for the console; no longer essential in trixie
    "nano",
    "openssh-server",
    "sudo",
    "systemd-sysv",
)


class Link(msgspec.Struct, frozen=True):
    """A symbolic link."""

    target: str


_NOTHING = Link("/dev/null")
_UNITS = "etc/systemd/system"

#: What the targets of the boot want and a virtual machine does without.
_UNWANTED: Mapping[str, tuple[str, ...]] = {
    "sysinit.target": (
        # Mounts: each is a program; what needs one can start it.
        *("dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount"),
        *("sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
        # Caches that are whole in the image, and users that its packages made.
        *("ldconfig.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service"),
        *("systemd-sysusers.service", "systemd-update-done.service"),
        # First starts, firmware, disks: the host sees to them.
        *(
            "systemd-boot-system-token.service",
            "systemd-firstboot.service",
            "systemd-hibernate-clear.service",
        ),
        *("systemd-machine-id-commit.service", "systemd-pcrmachine.service", "systemd-pcrphase.service"),
        *("systemd-pcrphase-sysinit.service", "systemd-pstore.service", "systemd-random-seed.service"),
        *("systemd-repart.service", "systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service"),
        # Device nodes come from devtmpfs, and from systemd-tmpfiles-setup.service below.
        *("kmod-static-nodes.service", "systemd-tmpfiles-setup-dev.service"),
        "systemd-tmpfiles-setup-dev-early.service",
        *("systemd-ask-password-console.path", "systemd-binfmt.service"),
        *("cryptsetup.target", "integritysetup.target", "veritysetup.target"),
        "systemd-journal-flush.service",  # the journal is kept in memory
        "systemd-timesyncd.service",  # the agent sets the clock
    ),
    "local-fs.target": ("run-lock.mount", "systemd-remount-fs.service"),
    "sockets.target": (
        *("systemd-creds.socket", "systemd-hostnamed.socket", "systemd-initctl.socket"),
        *("systemd-journald-audit.socket", "systemd-pcrextend.socket", "systemd-pcrlock.socket"),
        "systemd-sysext.socket",
    ),
    "multi-user.target": (
        *("dbus.service", "systemd-logind.service"),  # both start when they are asked for
        *("getty.target", "systemd-ask-password-wall.path", "systemd-user-sessions.service"),
        *("systemd-update-utmp-runlevel.service",),
    ),
}

_GENERATORS = (
    *("systemd-cryptsetup-generator", "systemd-debug-generator", "systemd-getty-generator"),
    *("systemd-gpt-auto-generator", "systemd-hibernate-resume-generator"),
    *("systemd-integritysetup-generator", "systemd-rc-local-generator", "systemd-run-generator"),
    *("systemd-ssh-generator", "systemd-system-update-generator", "systemd-sysv-generator"),
    *("systemd-tpm2-generator", "systemd-veritysetup-generator"),
)

_CONSOLE = """\
[Unit]
Description=Console of the host
ConditionPathExists=/dev/hvc0
# Stopping it in order would take longer than all the rest of a shutdown.
DefaultDependencies=no
After=multi-user.target

[Service]
Type=idle
# It waits for the Enter key: no login, no shell until somebody is there.
ExecStart=-/sbin/agetty --autologin root --noclear --wait-cr --keep-baud 115200,9600 hvc0 vt220
Restart=always
RestartSec=0
TTYPath=/dev/hvc0
TTYReset=yes
StandardInput=tty
StandardOutput=tty
UtmpIdentifier=hvc0
IgnoreSIGPIPE=no
"""

_FSTAB = """\
#!/bin/sh
# Reads /etc/fstab where there is one.
[ ! -e /etc/fstab ] || exec /usr/lib/systemd/system-generators/systemd-fstab-generator "$@"
"""

#: Nodes of drivers that are loaded when the node is opened; kmod-static-nodes.service makes them elsewhere.
_NODES = """\
c! /dev/fuse 0666 root root - 10:229
c! /dev/loop-control 0660 root disk - 10:237
d  /dev/net 0755 root root -
c! /dev/net/tun 0666 root root - 10:200
c! /dev/ppp 0600 root root - 108:0
c! /dev/uinput 0600 root root - 10:223
c! /dev/vhost-net 0600 root root - 10:238
c! /dev/vhost-vsock 0600 root root - 10:241
"""

_FILES: Mapping[str, str | Link] = {
    "etc/locale.conf": "LANG=C.UTF-8\n",
    "etc/systemd/journald.conf.d/atoll.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nAudit=no\n",
    "etc/systemd/system.conf.d/atoll.conf": "[Manager]\nDefaultTimeoutStopSec=15s\n",
    "etc/tmpfiles.d/atoll.conf": _NODES,
    "etc/tmpfiles.d/20-systemd-ssh-generator.conf": "d /run/sshd 0755 root root -\n",  # for sshd -i
    "etc/tmpfiles.d/systemd-nologin.conf": _NOTHING,  # nothing would end it: there is no user-sessions
    f"{_UNITS}/default.target": Link("/usr/lib/systemd/system/multi-user.target"),
    # basic.target itself wants it; /tmp is on the disk.
    f"{_UNITS}/tmp.mount": _NOTHING,  # noqa: S108 - a unit's name
    f"{_UNITS}/atoll-console.service": _CONSOLE,
    f"{_UNITS}/multi-user.target.wants/atoll-console.service": Link("../atoll-console.service"),
    # One run for /dev too.
    f"{_UNITS}/systemd-tmpfiles-setup.service.d/atoll.conf": (
        "[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --remove --boot\n"
    ),
    # Neither runs unless a user or a package wants something.
    f"{_UNITS}/systemd-sysctl.service.d/atoll.conf": (
        "[Unit]\nConditionPathExistsGlob=|/etc/sysctl.d/*.conf\nConditionPathExists=|/etc/sysctl.conf\n"
    ),
    f"{_UNITS}/systemd-modules-load.service.d/atoll.conf": (
        "[Unit]\nConditionDirectoryNotEmpty=\nConditionKernelCommandLine=\n"
        "ConditionPathExistsGlob=|/etc/modules-load.d/*.conf\n"
        "ConditionPathExistsGlob=|/usr/lib/modules-load.d/*.conf\nConditionFileNotEmpty=|/etc/modules\n"
        "ConditionKernelCommandLine=|modules-load\n"
    ),
    "usr/local/lib/modules-load.d/modules.conf": Link("/etc/modules"),
    # The agent mounted them; the last step of a shutdown unmounts all.
    f"{_UNITS}/usr-lib-modules.mount.d/atoll.conf": "[Unit]\nDefaultDependencies=no\n",
}

#: Run in the tree, after ``entries`` were put there: what packages enabled, and what is one machine's only.
CLEAN = """
rm -f etc/ssh/ssh_host_* etc/fstab etc/modules-load.d/modules.conf
: > etc/modules
cd etc/systemd/system
rm -f multi-user.target.wants/ssh.service sockets.target.wants/ssh.socket ssh.service.requires/ssh.socket
rm -f sshd.service timers.target.wants/* getty.target.wants/*
rm -f sysinit.target.wants/systemd-timesyncd.service dbus-org.freedesktop.timesync1.service
"""


def entries() -> dict[str, str | Link]:
    """The files that are put over the packages' own: content or link, by path; generators are executable."""
    made = dict(_FILES)
    for target, units in _UNWANTED.items():
        made |= {f"{_UNITS}/{target}.wants/{unit}": _NOTHING for unit in units}
    made |= {f"etc/systemd/system-generators/{name}": _NOTHING for name in _GENERATORS}
    made["etc/systemd/system-generators/systemd-fstab-generator"] = _FSTAB
    return made


def write_archive(path: Path) -> None:
    """Write ``entries`` as a tar, the same bytes each time."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in sorted({str(parent) for name in entries() for parent in Path(name).parents} - {"."}):
            tar.addfile(_header(directory, tarfile.DIRTYPE, 0o755))
        for name, content in sorted(entries().items()):
            if isinstance(content, Link):
                header = _header(name, tarfile.SYMTYPE, 0o777)
                header.linkname = content.target
                tar.addfile(header)
                continue
            data = content.encode()
            header = _header(name, tarfile.REGTYPE, 0o755 if data.startswith(b"#!") else 0o644)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def _header(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.mode = mode
    return header
