"""The files in which a guest has what it takes over. Pure.

Each file is Atoll's own, or has a part that is Atoll's between two marks, so that all can be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = [
    "APT",
    "ENVIRONMENT",
    "PROFILE",
    "SYSTEMD",
    "apt",
    "marked",
    "profile",
    "systemd",
    "with_certificates",
]

#: Read at a login (pam_env(8), and shells), by apt (apt.conf(5)), and by systemd (systemd-system.conf(5)).
ENVIRONMENT: Final = "/etc/environment"
PROFILE: Final = "/etc/profile.d/atoll-host.sh"
APT: Final = "/etc/apt/apt.conf.d/90atoll-host"
SYSTEMD: Final = "/etc/systemd/system.conf.d/atoll-host.conf"

_BEGIN: Final = "# Atoll: from the host\n"
_END: Final = "# Atoll: end\n"


def marked(text: str, variables: Mapping[str, str]) -> str:
    """A file of ``NAME=VALUE`` lines with these in the place of those that were put there before."""
    kept = re.sub(re.escape(_BEGIN) + r".*?" + re.escape(_END), "", text, flags=re.DOTALL)
    if not variables:
        return kept
    if kept and not kept.endswith("\n"):
        kept += "\n"
    lines = (f'{name}="{value}"\n' for name, value in sorted(variables.items()) if '"' not in value)
    return f"{kept}{_BEGIN}{''.join(lines)}{_END}"


def profile(variables: Mapping[str, str]) -> str:
    """For login shells; empty for no file."""
    return "".join(
        "export {}='{}'\n".format(name, value.replace("'", "'\\''"))
        for name, value in sorted(variables.items())
    )


def apt(variables: Mapping[str, str]) -> str:
    """For apt, which need not be run by who has the variables; empty for no file."""
    lines = []
    for scheme in ("http", "https", "ftp"):
        proxy = variables.get(f"{scheme}_proxy", "") or variables.get("all_proxy", "")
        if proxy and '"' not in proxy:
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";\n')
            lines += [
                f'Acquire::{scheme}::Proxy::{host} "DIRECT";\n'
                for host in variables.get("no_proxy", "").split(",")
                if re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", host)
            ]
    return "".join(lines)


def systemd(variables: Mapping[str, str]) -> str:
    """For services; empty for no file."""
    if not variables:
        return ""
    words = (
        '"' + f"{name}={value}".replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
        for name, value in sorted(variables.items())
    )
    return f"[Manager]\nDefaultEnvironment={' '.join(words)}\n"


def with_certificates(bundle: str, former: Sequence[str], wanted: Sequence[str]) -> str:
    """A bundle with the certificates that are wanted, and without others that were put there before.

    All are in the form PEM: ``bundle`` has them one behind the other.
    """
    for pem in former:
        if pem not in wanted:
            bundle = bundle.replace(pem, "")
    missing = [pem for pem in wanted if pem not in bundle]
    if missing and bundle and not bundle.endswith("\n"):
        bundle += "\n"
    return bundle + "".join(missing)
