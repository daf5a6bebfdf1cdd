"""What the user wants of the engine, and the files that its programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from atoll.config import default_of
from atoll.containers.hosting import ADDRESS, NAMES, address_inside, registry_inside
from atoll.errors import ConfigError
from atoll.machine.spec import Share

__all__ = [
    "CONTAINERD_SOCKET",
    "DOCKER_SOCKET",
    "EngineSettings",
    "Proxy",
    "daemon_json",
    "environment",
    "trusted",
]

DOCKER_SOCKET = "/run/docker.sock"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

#: What starts containers by default; ``runc`` is known to dockerd anyway.
_RUNTIME = "crun"

#: Keys of daemon.json by which the engine would be where nobody looks for it.
_OURS = frozenset(
    {
        "containerd",
        "data-root",
        "exec-root",
        "hosts",
        "pidfile",
        "tls",
        "tlscacert",
        "tlscert",
        "tlskey",
        "tlsverify",
    }
)


class Proxy(msgspec.Struct, frozen=True):
    """Through which proxies images are pulled: addresses, and hosts that are reached without one."""

    http: str = ""
    https: str = ""
    no: tuple[str, ...] = ()


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants of the engine.

    Attributes:
        cpus: vCPUs; by default, here and below, what the settings table says (``atoll.config``).
        memory: bytes that the machine has at most, whole MiB, of which the host gives what is used.
        disk: bytes that images, volumes and containers take at most; it can grow, not shrink.
        daemon: keys of daemon.json (dockerd(8)); they win over what the other settings say.
        proxy: for pulls and pushes.
        mirrors: addresses of mirrors of Docker Hub.
        insecure: registries that are reached without TLS, or without knowing their certificate.
        certificates: files of certificates (PEM) of authorities that are believed beside the usual ones.
        shares: directories of the host.
    """

    cpus: int = msgspec.field(default_factory=default_of("docker_cpus"))
    memory: int = msgspec.field(default_factory=default_of("docker_memory"))
    disk: int = msgspec.field(default_factory=default_of("docker_disk"))
    daemon: Mapping[str, Any] = {}
    proxy: Proxy = Proxy()
    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    certificates: tuple[Path, ...] = ()
    shares: tuple[Share, ...] = ()


def daemon_json(settings: EngineSettings) -> str:
    """The content of daemon.json, in one line.

    Raises:
        ConfigError: ``config.engine``: a key is not the user's to set, a value has no form in JSON, or the
            guest cannot reach an address.
    """
    wrong = sorted(_OURS & set(settings.daemon))
    if wrong:
        hint = "take it out of the engine's daemon settings: Atoll sets it"
        raise ConfigError(f"daemon.{wrong[0]} cannot be set", code="engine", hint=hint)
    wanted: dict[str, Any] = {
        "hosts": [f"unix://{DOCKER_SOCKET}"],
        "containerd": CONTAINERD_SOCKET,
        "host-gateway-ip": ADDRESS,  # for containers with `--add-host NAME:host-gateway`
        "default-runtime": _RUNTIME,
        # dockerd does without TLS on loopback (dockerd(8), insecure registries), which this is to the user.
        "insecure-registries": [
            f"{ADDRESS}/32",
            *(name for registry in settings.insecure for name in registry_inside(registry)),
        ],
    }
    if settings.mirrors:
        wanted["registry-mirrors"] = tuple(map(address_inside, settings.mirrors))
    proxies = environment(settings)
    if proxies:
        wanted["proxies"] = {name.lower().replace("_", "-"): value for name, value in proxies.items()}
    wanted |= settings.daemon
    if isinstance(runtimes := settings.daemon.get("runtimes", {}), Mapping):  # else dockerd refuses it
        wanted["runtimes"] = {_RUNTIME: {"path": _RUNTIME}, **runtimes}
    try:
        return msgspec.json.encode(wanted, order="sorted").decode()
    except (TypeError, ValueError, OverflowError) as error:
        hint = "use texts, numbers, true and false, lists and tables"
        raise ConfigError(f"the engine's daemon settings: {error}", code="engine", hint=hint) from error


def environment(settings: EngineSettings) -> dict[str, str]:
    """Variables of the engine's programs: containerd has no proxy settings of its own.

    No proxy is asked for this host, whose names nobody else knows.

    Raises:
        ConfigError: ``config.engine``: the guest cannot reach a proxy.
    """
    proxy = settings.proxy
    named = {"HTTP_PROXY": address_inside(proxy.http), "HTTPS_PROXY": address_inside(proxy.https)}
    found = {name: value for name, value in named.items() if value}
    if found:
        found["NO_PROXY"] = ",".join(dict.fromkeys((*proxy.no, *NAMES)))
    return found


def trusted(settings: EngineSettings) -> str:
    """The certificates of ``settings``, one behind the other.

    Raises:
        ConfigError: ``config.engine``: one cannot be read, or is none.
    """
    return "\n".join(_certificate(path).strip() for path in settings.certificates)


def _certificate(path: Path) -> str:
    hint = "name a file of certificates in PEM form"
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the engine's certificate {path}: {why}", code="engine", hint=hint) from error
    if "-----BEGIN CERTIFICATE-----" not in text or "\0" in text:
        raise ConfigError(f"the engine's certificate {path}: there is none in it", code="engine", hint=hint)
    return text
