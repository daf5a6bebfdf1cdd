"""SSH into machines without an open port: a ProxyCommand runs sshd in the guest, on the guest channel.

Keys lie at ``ssh/<name>.atoll`` below the data directory: one of the user and one of the machine each, so
that neither side has to trust what it sees first. One block of ssh's configuration serves all machines, since
ssh puts the name in place of ``%n``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from atoll import process, store
from atoll.machine.machine import Machine
from atoll.paths import Paths

__all__ = [
    "DOMAIN",
    "config_block",
    "ensure_keys",
    "forget_keys",
    "install",
    "known_hosts",
    "machine_of",
    "options",
    "server_command",
]

#: What a machine's name ends with for ssh.
DOMAIN = ".atoll"

_HINT = "apt install openssh-client"

#: Starts sshd for one connection on its stdin and stdout (sshd(8), -i), with keys of Atoll's own.
_SERVER = """
set -eu
umask 077
mkdir -p /run/atoll-ssh
chmod 755 /run/atoll-ssh
printf '%s\\n' "$ATOLL_HOST_KEY" > /run/atoll-ssh/host
printf '%s\\n' "$ATOLL_USER_KEY" > /run/atoll-ssh/authorized
chmod 644 /run/atoll-ssh/authorized
mkdir -p -m 755 /run/sshd
unset ATOLL_HOST_KEY ATOLL_USER_KEY
server=$(command -v sshd || echo /usr/sbin/sshd)
[ -x "$server" ] || { echo "the image has no sshd; install openssh-server in the machine" >&2; exit 127; }
exec "$server" -i -f /dev/null \\
    -o HostKey=/run/atoll-ssh/host -o AuthorizedKeysFile=/run/atoll-ssh/authorized -o StrictModes=no \\
    -o UsePAM=yes -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \\
    -o PermitRootLogin=prohibit-password -o PrintMotd=no -o AcceptEnv='LANG LC_*' \\
    -o Subsystem='sftp internal-sftp'
"""


def machine_of(host: str) -> str:
    """The machine that ssh calls ``host``."""
    return host.removesuffix(DOMAIN)


def _user_key(paths: Paths, name: str) -> Path:
    return paths.ssh / f"{name}{DOMAIN}"


def _host_key(paths: Paths, name: str) -> Path:
    return paths.ssh / f"{name}{DOMAIN}.host"


def known_hosts(paths: Paths, name: str) -> Path:
    """The file that tells ssh which key the machine has."""
    return paths.ssh / f"{name}{DOMAIN}.known"


def ensure_keys(paths: Paths, name: str) -> None:
    """Make the ed25519 keys of user and machine if there are none.

    Raises:
        PreflightError: ssh-keygen is missing.
    """
    if known_hosts(paths, name).exists():
        return
    paths.ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    with store.lock(paths.ssh / ".lock"):
        if known_hosts(paths, name).exists():
            return
        forget_keys(paths, name)
        program = process.require("ssh-keygen", hint=_HINT)
        for key in (_user_key(paths, name), _host_key(paths, name)):
            process.run([program, "-q", "-t", "ed25519", "-N", "", "-C", f"atoll {name}", "-f", str(key)])
        public = _host_key(paths, name).with_name(f"{name}{DOMAIN}.host.pub").read_text()
        line = f"{name}{DOMAIN} {' '.join(public.split()[:2])}\n"
        store.write_file(known_hosts(paths, name), line.encode(), mode=0o600)  # last: the keys are whole


def forget_keys(paths: Paths, name: str) -> None:
    """Remove the keys of a machine that is no more."""
    for suffix in (".known", "", ".pub", ".host", ".host.pub"):
        (paths.ssh / f"{name}{DOMAIN}{suffix}").unlink(missing_ok=True)


def server_command(machine: Machine, paths: Paths) -> tuple[tuple[str, ...], dict[str, str]]:
    """What to run in the guest to serve one connection, and the variables that it needs."""
    name = machine.name
    user = _user_key(paths, name).with_name(f"{name}{DOMAIN}.pub").read_text().strip()
    variables = {"ATOLL_HOST_KEY": _host_key(paths, name).read_text().rstrip("\n"), "ATOLL_USER_KEY": user}
    return ("/bin/sh", "-c", _SERVER), variables


def options(paths: Paths, user: str | None = None) -> dict[str, str]:
    """The settings of ssh_config(5) with which ssh reaches a machine; ``%n`` stands for what ssh calls it."""
    program = " ".join(shlex.quote(word) for word in (sys.executable, "-P", "-m", "atoll"))
    key = paths.ssh / "%n"
    return {
        "ProxyCommand": f"{program} ssh-proxy %n",
        "IdentityFile": f'"{key}"',
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{key}.known"',
        "StrictHostKeyChecking": "yes",
        **({"User": user} if user else {}),
    }


def config_block(paths: Paths) -> str:
    """The block of ssh_config(5) for all machines."""
    lines = [f"Host *{DOMAIN}", *(f"    {name} {value}" for name, value in options(paths).items())]
    return "\n".join(lines) + "\n"


def install(paths: Paths, block: str) -> Path:
    """Write the block and have ``~/.ssh/config`` include it; that file. What is in it stays.

    Raises:
        StoreError: it cannot be written.
    """
    own = paths.ssh / "config"
    paths.ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.write_file(own, block.encode(), mode=0o600)
    config = Path.home() / ".ssh" / "config"
    line = f'Include "{own}"\n'
    before = config.read_text() if config.exists() else ""
    if line not in before:
        config.parent.mkdir(mode=0o700, exist_ok=True)
        store.write_file(config, (line + before).encode(), mode=0o600)  # before any Host: it would narrow it
    return config
