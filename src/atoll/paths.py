"""Every file and directory that Atoll keeps, named in one place.

Directories follow the XDG base directory specification on Linux and the platform's custom elsewhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from atoll.errors import ConfigError

__all__ = [
    "BINARY_DIR",
    "CONFIG_NAME",
    "SYSTEM_CONFIG",
    "DockerPaths",
    "NetworkPaths",
    "Paths",
    "SnapshotPaths",
    "TemplatePaths",
    "VmPaths",
    "agent_path",
    "checksum_path",
    "default_paths",
    "user_config",
]

#: Where the wheel carries what is compiled, one file for each architecture.
BINARY_DIR = Path(__file__).parent / "_bin"

CONFIG_NAME = "config.toml"
SYSTEM_CONFIG = Path("/etc/atoll") / CONFIG_NAME

_ON_LINUX: bool = sys.platform == "linux"


class VmPaths(msgspec.Struct, frozen=True):
    """The directory of one machine, which nobody but its owner may enter."""

    directory: Path

    @property
    def spec(self) -> Path:
        """What the user asked for."""
        return self.directory / "machine.json"

    @property
    def state(self) -> Path:
        """What is."""
        return self.directory / "state.json"

    @property
    def boot(self) -> Path:
        """What is run at each start: the plan that was made of the spec."""
        return self.directory / "boot.json"

    @property
    def data(self) -> Path:
        """The disk that holds what the guest writes, as long as it is one file (``atoll.vm.chain``)."""
        return self.directory / "data.img"

    @property
    def chain(self) -> Path:
        """Which files the disk is made of; missing where it is ``data`` alone."""
        return self.directory / "disk.json"

    @property
    def root(self) -> Path:
        """The read-only root that the disk lies over; it stays when the image is built anew."""
        return self.directory / "root.erofs"

    @property
    def image(self) -> Path:
        """The manifest of the image that the root came from."""
        return self.directory / "image.json"

    @property
    def checked(self) -> Path:
        """Which file the root was when its digest was computed last."""
        return self.directory / "checked.json"

    @property
    def base(self) -> Path:
        """Which snapshot it last made, or went back to."""
        return self.directory / "snapshot.json"

    @property
    def before(self) -> Path:
        """The disk that was, while another one takes its place."""
        return self.directory / "before"

    @property
    def suspended(self) -> Path:
        """What it goes on from at its next start."""
        return self.directory / "suspended"

    @property
    def change_lock(self) -> Path:
        """Held while the machine is changed: started, edited, removed."""
        return self.directory / "change.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.directory / "supervisor.lock"

    @property
    def vm_lock(self) -> Path:
        """Held by the hypervisor for as long as it lives: no two run on the same disk."""
        return self.directory / "vm.lock"

    @property
    def pid_file(self) -> Path:
        """The hypervisor's process id, written by itself."""
        return self.directory / "vm.pid"

    @property
    def shares(self) -> Path:
        """Which directories of the host are plugged into the VM."""
        return self.directory / "shares.json"

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.directory / "control.sock"

    @property
    def vsock(self) -> Path:
        """Where programs of the host connect to the guest's AF_VSOCK."""
        return self.directory / "vsock.sock"

    def vsock_port(self, port: int) -> Path:
        """What serves a port of the host that the guest may connect to, where nothing else is named."""
        return self.directory / f"vsock.sock_{port}"

    @property
    def logs(self) -> Path:
        """What the guest, the hypervisor and the supervisor wrote."""
        return self.directory / "logs"

    def socket(self, name: str) -> Path:
        """A socket on which the hypervisor listens."""
        return self.directory / f"vm-{name}.sock"

    def log(self, name: str) -> Path:
        """A log, such as ``console``, ``hypervisor``, ``supervisor`` or ``vsock``."""
        return self.logs / f"{name}.log"


class TemplatePaths(msgspec.Struct, frozen=True):
    """The directory of one template."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """What it is."""
        return self.directory / "manifest.json"

    @property
    def ram(self) -> Path:
        """The guest's RAM, a sparse file."""
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        """The state of the devices."""
        return self.directory / "state"

    def disk(self, serial: str) -> Path:
        """A disk that is only read, of a template that keeps its own."""
        return self.directory / f"{serial}.img"


class SnapshotPaths(msgspec.Struct, frozen=True):
    """The directory of one snapshot."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """What it is; written last."""
        return self.directory / "manifest.json"

    @property
    def begun(self) -> Path:
        """What it is going to be; gone when it is."""
        return self.directory / "begun.json"

    @property
    def spec(self) -> Path:
        """What its machine's user asked for."""
        return self.directory / "machine.json"

    @property
    def plan(self) -> Path:
        """What was run."""
        return self.directory / "boot.json"

    @property
    def root(self) -> Path:
        """The read-only root; others have it, too."""
        return self.directory / "root.erofs"

    @property
    def image(self) -> Path:
        """The manifest of the image that the root came from."""
        return self.directory / "image.json"

    @property
    def vm(self) -> Path:
        """The VM of a sandbox."""
        return self.directory / "vm.json"

    @property
    def imported(self) -> Path:
        """There if it came in a file."""
        return self.directory / "imported.json"

    def disk(self, serial: str) -> Path:
        """A disk of a sandbox, which is only read; others have it, too."""
        return self.directory / f"{serial}.erofs"


class DockerPaths(msgspec.Struct, frozen=True):
    """What the listener of the Docker socket keeps.

    Attributes:
        data: the directory of all that the user would miss.
    """

    data: Path

    @property
    def socket(self) -> Path:
        """Where Docker's clients connect."""
        return self.data / "docker.sock"

    @property
    def directory(self) -> Path:
        """The listener's own, which nobody but its owner may enter."""
        return self.data / "docker"

    @property
    def lock(self) -> Path:
        """Held by the listener for as long as it lives; holds its process id."""
        return self.directory / "listener.lock"

    @property
    def control(self) -> Path:
        """The listener's control socket."""
        return self.directory / "control.sock"

    @property
    def log(self) -> Path:
        """What the listener has to say."""
        return self.directory / "listener.log"

    @property
    def former_context(self) -> Path:
        """Which context the Docker client used before."""
        return self.directory / "former-context.json"


class NetworkPaths(msgspec.Struct, frozen=True):
    """The directory of one network, which nobody but its owner may enter."""

    directory: Path

    @property
    def record(self) -> Path:
        """What it is: its addresses."""
        return self.directory / "network.json"

    @property
    def leases(self) -> Path:
        """Which machine has which address."""
        return self.directory / "leases.json"

    @property
    def ports(self) -> Path:
        """Which ports of this host were chosen for whom, where any would do."""
        return self.directory / "ports.json"

    @property
    def resolver(self) -> Path:
        """Where its process answers this host's own name server, if it does."""
        return self.directory / "resolver.json"

    @property
    def lock(self) -> Path:
        """Held by the network's process for as long as it lives; holds its process id."""
        return self.directory / "lock"

    @property
    def control(self) -> Path:
        """The network's control socket."""
        return self.directory / "control.sock"

    @property
    def log(self) -> Path:
        """What the network's process has to say."""
        return self.directory / "log"

    @property
    def audit(self) -> Path:
        """What its guests asked for and what became of it; what is older has ``.1`` behind its name."""
        return self.directory / "audit.jsonl"

    @property
    def cards(self) -> Path:
        """Where the hypervisors of VMs listen that have no directory of their own."""
        return self.directory / "cards"


class Paths(msgspec.Struct, frozen=True):
    """The two roots below which everything lies.

    Attributes:
        data: what the user would miss: images, machines.
        cache: what can be made again at any time: kernel bundles, verdicts, downloads.
    """

    data: Path
    cache: Path

    @property
    def images(self) -> Path:
        """Root images: ``images/<name>/`` holds one image's ``manifest.json`` and file system."""
        return self.data / "images"

    @property
    def references(self) -> Path:
        """Which image a reference means: ``references/<registry>/<path>/<tag>+<architecture>.json``."""
        return self.data / "references"

    @property
    def kernels(self) -> Path:
        """Kernel bundles: ``kernels/<key>/``."""
        return self.cache / "kernels"

    @property
    def emulators(self) -> Path:
        """What runs programs of another architecture in guests: ``emulators/<key>/``."""
        return self.cache / "emulators"

    @property
    def downloads(self) -> Path:
        """Packages fetched by apt, kept for the next build."""
        return self.cache / "downloads"

    @property
    def templates(self) -> Path:
        """VMs to start from: ``templates/<name>/``."""
        return self.cache / "templates"

    @property
    def own(self) -> Paths:
        """These paths, but with the templates that a user has made and would miss."""
        return Paths(data=self.data, cache=self.data)

    @property
    def verdicts(self) -> Path:
        """Cached verdicts of the accelerator probe."""
        return self.cache / "accelerator.json"

    @property
    def machines(self) -> Path:
        """Named machines: ``machines/<name>/``."""
        return self.data / "machines"

    @property
    def snapshots(self) -> Path:
        """Snapshots: ``snapshots/<id>/``."""
        return self.data / "snapshots"

    @property
    def snapshot_names(self) -> Path:
        """The lock of who gives a snapshot its name."""
        return self.data / "snapshots.lock"

    @property
    def engine_lock(self) -> Path:
        """Held while the engine of containers is brought up or ended."""
        return self.data / "docker" / "engine.lock"

    @property
    def builder_lock(self) -> Path:
        """Held while the machine that builds images is brought up or ended."""
        return self.data / "builder" / "builder.lock"

    def build_slot(self, name: str) -> Path:
        """Held while a directory is built whose files the builder keeps under that name."""
        return self.data / "builder" / f"{name}.lock"

    @property
    def ssh(self) -> Path:
        """SSH keys, by what users call a machine: ``ssh/<name>.atoll``."""
        return self.data / "ssh"

    @property
    def tools(self) -> Path:
        """Programs that were taken from packages: ``tools/<package>/``."""
        return self.data / "tools"

    @property
    def migrations(self) -> Path:
        """What was brought over from other Docker engines: ``migrations/<key>.json``."""
        return self.data / "migrations"

    @property
    def docker(self) -> DockerPaths:
        """The Docker socket and its listener."""
        return DockerPaths(self.data)

    @property
    def networks(self) -> Path:
        """Networks of VMs: ``networks/<name>/``."""
        return self.data / "networks"

    @property
    def networks_lock(self) -> Path:
        """Held by who makes or removes a network."""
        return self.networks / ".lock"

    def network(self, name: str) -> NetworkPaths:
        """The directory of one network."""
        return NetworkPaths(self.networks / name)

    def machine(self, name: str) -> VmPaths:
        """The directory of one machine."""
        return VmPaths(self.machines / name)

    def image(self, name: str) -> Path:
        """The directory of one root image."""
        return self.images / name

    def template(self, name: str) -> TemplatePaths:
        """The directory of one template."""
        return TemplatePaths(self.templates / name)

    def snapshot(self, name: str) -> SnapshotPaths:
        """The directory of one snapshot, by its id."""
        return SnapshotPaths(self.snapshots / name)

    def kernel(self, key: str) -> Path:
        """The directory of one kernel bundle."""
        return self.kernels / key


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    if os.path.isabs(value):  # the specification: a relative path in these variables is to be ignored
        return Path(value)
    try:
        return Path.home() / fallback
    except RuntimeError:
        hint = f"set HOME, or {variable}"
        raise ConfigError("this user has no home directory", code="home", hint=hint) from None


def agent_path(architecture: str) -> Path:
    """The guest agent that this installation carries."""
    return BINARY_DIR / f"atoll-agent-{architecture}"


def checksum_path(architecture: str) -> Path:
    """The library that sums payloads, of an architecture of this installation; there may be none."""
    return BINARY_DIR / f"atoll-checksum-{architecture}.so"


def default_paths() -> Paths:
    """The directories of this user. Raises ``ConfigError``: ``config.home``: there is no home directory."""
    if _ON_LINUX:  # what platformdirs would answer, without its import on every start
        return Paths(
            data=_xdg("XDG_DATA_HOME", ".local/share") / "atoll",
            cache=_xdg("XDG_CACHE_HOME", ".cache") / "atoll",
        )
    import platformdirs  # noqa: PLC0415

    return Paths(data=platformdirs.user_data_path("atoll"), cache=platformdirs.user_cache_path("atoll"))


def user_config() -> Path:
    """The user's own configuration file. Raises ``ConfigError`` as ``default_paths``."""
    if _ON_LINUX:
        return _xdg("XDG_CONFIG_HOME", ".config") / "atoll" / CONFIG_NAME
    import platformdirs  # noqa: PLC0415

    return platformdirs.user_config_path("atoll") / CONFIG_NAME
