"""Settings: one row each in ``SETTINGS``, merged from defaults, files, environment and flags.

Later sources win: defaults, ``/etc/atoll/config.toml``, the user's file, ``ATOLL_*`` variables, flags. A name
that no row has is an error, wherever it stands, and the error says which name was probably meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import ConfigError
from atoll.paths import SYSTEM_CONFIG, Paths, default_paths, user_config
from atoll.registries import RegistrySettings, is_host, parse_registries

__all__ = [
    "SETTINGS",
    "Config",
    "NetworkKind",
    "Renewed",
    "Resolved",
    "Setting",
    "default_of",
    "load",
    "override",
    "parse_memory",
]

_MIB = 1 << 20
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PREFIX = "ATOLL_"

#: The platforms that images may be of, by what people call their architectures.
_PLATFORMS = {
    "amd64": "linux/amd64",
    "x86_64": "linux/amd64",
    "arm64": "linux/arm64",
    "aarch64": "linux/arm64",
}

#: The section of a file whose settings have its name before their own.
_SECTION = "docker"


class NetworkKind(StrEnum):
    """What a VM has of a network: Atoll's own, QEMU's user network, or nothing."""

    OWN = "own"
    SLIRP = "slirp"
    NONE = "none"

    def chosen(self, wish: str | bool | None) -> NetworkKind:
        """What ``wish`` stands for where this is the default: True is any network, False none.

        Raises ``ValueError``.
        """
        if wish is True:
            return NetworkKind.OWN if self is NetworkKind.NONE else self
        if wish is False:
            return NetworkKind.NONE
        return self if wish is None else NetworkKind(wish)


class Config(msgspec.Struct, frozen=True):
    """All settings, resolved. The rows of ``SETTINGS`` say what each one means."""

    data_dir: Path
    cache_dir: Path
    accel: str
    cpus: int
    memory: int
    kernel: Path | None
    boot_timeout: float
    cold: bool
    platform: str
    full: bool
    ubuntu_mirror: str
    network: NetworkKind
    network_host_ports: tuple[int, ...]
    ca: bool
    ca_files: tuple[Path, ...]
    default_registry: str
    registries: dict[str, RegistrySettings]
    build_cpus: int
    build_memory: int
    build_disk: int
    build_idle: float
    docker_cpus: int
    docker_memory: int
    docker_disk: int
    docker_idle: float
    docker_shares: tuple[Path, ...]
    docker_expose_ports_to_lan: bool
    docker_mirrors: tuple[str, ...]
    docker_insecure_registries: tuple[str, ...]
    docker_proxy: str
    docker_no_proxy: tuple[str, ...]
    docker_ca: tuple[Path, ...]
    docker_daemon: dict[str, Any]

    @property
    def paths(self) -> Paths:
        """Where everything is kept."""
        return Paths(data=self.data_dir, cache=self.cache_dir)


class Setting(msgspec.Struct, frozen=True):
    """One row: how a setting is read, what it is by default, and what it means.

    Attributes:
        parse: takes what TOML, the environment or a flag gives; raises ``ValueError`` with the reason.
        default: made when nothing else is said.
        help: one line for people.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Callable[[], Any]
    help: str


class Resolved(msgspec.Struct, frozen=True):
    """The configuration and, for each setting, the source its value comes from."""

    config: Config
    origins: Mapping[str, str]


def parse_memory(value: Any) -> int:
    """Bytes from a size such as ``512M`` or ``2GiB``; a bare number has no unit and is refused."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?", str(value).strip().lower())
    if found is None:
        raise ValueError("write a size with its unit, such as 512M or 2G")
    size = float(found[1]) * _UNITS[found[2]]
    if size % _MIB or not 0 < size < float("inf"):
        raise ValueError("the size must be a whole number of MiB")
    return int(size)


def _parse_cpus(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", str(value)) or not 1 <= int(value) <= 255:
        raise ValueError("write a number from 1 to 255")
    return int(value)


def _parse_accel(value: Any) -> str:
    if not isinstance(value, str) or value not in {"auto", "kvm", "tcg"}:
        raise ValueError("write auto, kvm or tcg")
    return value


def _parse_platform(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write linux/amd64 or linux/arm64")  # noqa: TRY004 - as every parser
    name = value.strip().lower().removeprefix("linux/").removesuffix("/v8")
    if value and name not in _PLATFORMS:
        raise ValueError("write linux/amd64 or linux/arm64")
    return _PLATFORMS[name] if value else ""


def _parse_network(value: Any) -> NetworkKind:
    try:
        return NetworkKind(value)
    except ValueError:
        raise ValueError("write own, slirp or none") from None


def _parse_ports(value: Any) -> tuple[int, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError("write a list of ports; in a variable, with commas between")  # noqa: TRY004 - as every parser
    texts = [str(word).strip() for word in words]
    if any(
        not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 0 < int(text) < 65_536 for text in texts if text
    ):
        raise ValueError("ports are 1 to 65535")
    return tuple(int(text) for text in texts if text)


def _parse_directory(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("write a path")
    path = _expanded(value)
    if not path.is_absolute():
        raise ValueError("write an absolute path")
    return path


def _expanded(value: str | Path) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("write the path without ~: that user's home is not known") from None


def _parse_kernel(value: Any) -> Path | None:
    if not isinstance(value, (str, Path)):
        raise ValueError("write a path")  # noqa: TRY004 - every parser says it so
    return _expanded(value).absolute() if str(value) else None


def _parse_address(value: Any) -> str:
    if not isinstance(value, str) or (value and not re.fullmatch(r"[a-z]+:/[!-~]+", value)):
        raise ValueError("write an address, such as https://HOST/PATH")
    return value


def _parse_seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError("write a number of seconds") from None
    if isinstance(value, bool) or not 0 < seconds < 86_400:
        raise ValueError("write a number of seconds above 0 and below a day")
    return seconds


def _parse_pause(value: Any) -> float:
    return 0.0 if not isinstance(value, bool) and str(value) in {"0", "0.0"} else _parse_seconds(value)


def _parse_words(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError("write a list of strings; in a variable, with commas between")
    found = tuple(word.strip() for word in words if word.strip())
    if any(re.search(r"[^!-~]", word) for word in found):
        raise ValueError("none of them has spaces or letters beyond ASCII")
    return found


def _parse_paths(value: Any) -> tuple[Path, ...]:
    paths = [path for path in value.split(":") if path] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple):
        raise ValueError("write a list of paths; in a variable, with colons between")  # noqa: TRY004 - as every parser
    return tuple(map(_parse_directory, paths))


def _parse_table(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value or "{}")
        except msgspec.DecodeError as error:
            raise ValueError(f"write it as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("write a table; in a variable, a JSON object")  # noqa: TRY004 - as every parser
    return value


def _parse_host(value: Any) -> str:
    if not isinstance(value, str) or not is_host(value):
        raise ValueError("write HOST or HOST:PORT")
    return value


def _parse_flag(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueError("write true or false") from None


def _home() -> tuple[Path, ...]:
    try:
        return (Path.home(),)
    except RuntimeError:
        return ()


def _engine_cpus() -> int:
    """More than the host has make an emulated guest slower."""
    return min(2, os.cpu_count() or 1)


def _engine_memory() -> int:
    """Whole MiB, of which the host gives what is used: it keeps half of what it has."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(2048 * _MIB, half // _MIB * _MIB)


SETTINGS: tuple[Setting, ...] = (
    Setting("data_dir", _parse_directory, lambda: default_paths().data, "where images are kept"),
    Setting(
        "cache_dir", _parse_directory, lambda: default_paths().cache, "where kernels and downloads are kept"
    ),
    Setting("accel", _parse_accel, lambda: "auto", "accelerator: auto, kvm or tcg"),
    Setting("cpus", _parse_cpus, lambda: 1, "vCPUs of a new VM"),
    Setting("memory", parse_memory, lambda: 512 * _MIB, "memory of a new VM, such as 512M"),
    Setting("kernel", _parse_kernel, lambda: None, "kernel to boot instead of Debian's cloud kernel"),
    Setting("boot_timeout", _parse_seconds, lambda: 60.0, "seconds in which a guest must be up"),
    Setting("cold", _parse_flag, lambda: False, "boot each VM instead of starting it from a template"),
    Setting(
        "platform", _parse_platform, lambda: "", "platform of images, as linux/arm64; the host's if empty"
    ),
    Setting(
        "full",
        _parse_flag,
        lambda: False,
        "run images of another platform in a whole VM of it instead of emulating their programs alone",
    ),
    Setting("ubuntu_mirror", _parse_address, lambda: "", "mirror from which Ubuntu images are built"),
    Setting("network", _parse_network, lambda: NetworkKind.OWN, "network of new VMs: own, slirp or none"),
    Setting(
        "network_host_ports", _parse_ports, tuple, "ports of this host that VMs reach at host.atoll.internal"
    ),
    Setting(
        "ca",
        _parse_flag,
        lambda: True,
        "VMs with a network get this host's added certificates, and its proxies",
    ),
    Setting("ca_files", _parse_paths, tuple, "more files of certificates that VMs believe, PEM"),
    Setting("default_registry", _parse_host, lambda: "docker.io", "registry of images whose name has none"),
    Setting("registries", parse_registries, dict, "mirrors, transport and certificates of registries"),
    Setting("build_cpus", _parse_cpus, _engine_cpus, "vCPUs of the machine that builds images"),
    Setting("build_memory", parse_memory, _engine_memory, "memory that it may use"),
    Setting("build_disk", parse_memory, lambda: 32768 * _MIB, "disk that it may use"),
    Setting(
        "build_idle", _parse_pause, lambda: 300.0, "seconds without a build until it sleeps; 0 for never"
    ),
    Setting("docker_cpus", _parse_cpus, _engine_cpus, "vCPUs of the Docker engine"),
    Setting("docker_memory", parse_memory, _engine_memory, "memory that the Docker engine may use"),
    Setting("docker_disk", parse_memory, lambda: 65536 * _MIB, "disk that the Docker engine may use"),
    Setting(
        "docker_idle", _parse_pause, lambda: 300.0, "seconds without use until the engine sleeps; 0 for never"
    ),
    Setting("docker_shares", _parse_paths, _home, "directories that containers see at the same path"),
    Setting(
        "docker_expose_ports_to_lan",
        _parse_flag,
        lambda: False,
        "publish ports that are given no address on all addresses of this host, not only 127.0.0.1",
    ),
    Setting("docker_mirrors", _parse_words, tuple, "mirrors from which the engine pulls"),
    Setting("docker_insecure_registries", _parse_words, tuple, "registries without a valid certificate"),
    Setting("docker_proxy", _parse_address, lambda: "", "proxy through which the engine pulls"),
    Setting("docker_no_proxy", _parse_words, tuple, "hosts that the engine reaches without the proxy"),
    Setting("docker_ca", _parse_paths, tuple, "certificates that the engine believes, PEM"),
    Setting("docker_daemon", _parse_table, dict, "any other keys of the engine's daemon.json"),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}
assert set(_BY_NAME) == set(Config.__struct_fields__)


def default_of(name: str) -> Callable[[], Any]:
    """What makes the default of the setting ``name``."""
    return _BY_NAME[name].default


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    files: tuple[Path, ...] | None = None,
) -> Resolved:
    """Merge all sources.

    Args:
        flags: settings given on the command line or to the SDK; None values count as not given.
        environment: variables; this process's own by default.
        files: configuration files, later ones win; the system's and the user's by default.

    Raises:
        ConfigError: ``config.unknown``, ``config.value`` or ``config.file``.
    """
    values: dict[str, Any] = {}
    origins = {setting.name: "default" for setting in SETTINGS}
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    if files is None:
        files = (SYSTEM_CONFIG, *_user_files())
    sources = [(str(file), _read(file)) for file in files]
    sources.append(("", _variables(os.environ if environment is None else environment)))
    sources.append(("flag", given))
    for origin, settings in sources:
        for name, value in settings.items():
            where = origin or f"{_PREFIX}{name.upper()}"
            values[name] = _parse(name, value, where)
            origins[name] = where
    for setting in SETTINGS:
        if setting.name not in values:
            values[setting.name] = setting.default()
    return Resolved(Config(**values), origins)


class Renewed:
    """The configuration, read again whenever one of its files has changed. Arguments as for ``load``."""

    def __init__(
        self,
        flags: Mapping[str, Any] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        files: tuple[Path, ...] | None = None,
    ) -> None:
        self._flags = flags
        self._environment = environment
        self._files = (SYSTEM_CONFIG, *_user_files()) if files is None else files
        self._seen: tuple[tuple[int, ...], ...] | None = None
        self._config: Config | None = None

    def __call__(self) -> Config:
        """As it is now. Raises as ``load``, each time until it is mended."""
        seen = tuple(map(_stamp, self._files))
        if self._config is None or seen != self._seen:
            self._config = load(self._flags, environment=self._environment, files=self._files).config
            self._seen = seen
        return self._config


def _stamp(file: Path) -> tuple[int, ...]:
    """What a file's content cannot change without; nothing where there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _user_files() -> tuple[Path, ...]:
    try:
        return (user_config(),)
    except ConfigError:
        return ()  # without a home directory there is no file in it


def override(config: Config, flags: Mapping[str, Any]) -> Config:
    """``config`` with the settings given in ``flags``; None values count as not given. Raises as ``load``."""
    given = {name: value for name, value in flags.items() if value is not None}
    return msgspec.structs.replace(
        config, **{name: _parse(name, value, "flag") for name, value in given.items()}
    )


def _parse(name: str, value: Any, origin: str) -> Any:
    setting = _BY_NAME.get(name)
    if setting is None:
        import difflib  # noqa: PLC0415 - for this error only

        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "`atoll config show` lists the settings"
        raise ConfigError(f"{origin}: there is no setting {name!r}", code="unknown", hint=hint)
    try:
        return setting.parse(value)
    except ValueError as error:
        raise ConfigError(f"{origin}: {name} = {value!r}", code="value", hint=str(error)) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: {error}", code="file", hint="the file must be UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", code="file", hint="make the file readable") from error
    import tomllib  # noqa: PLC0415 - most users have no file

    try:
        return _flat(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}", code="file", hint="the file is TOML: name = value") from error


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """What a file says; ``cpus`` in the section ``docker`` is ``docker_cpus``."""
    section = settings.pop(_SECTION, None)
    if not isinstance(section, dict):
        return settings if section is None else {**settings, _SECTION: section}
    return {**settings, **{f"{_SECTION}_{name}": value for name, value in section.items()}}


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX)
    }
