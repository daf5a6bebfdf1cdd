"""The one tree of errors.

::

    AtollError                 every error that Atoll raises on purpose
     +-- UsageError            the caller asked for something that cannot be (bad flag, bad value)
     +-- ConfigError           a configuration file or variable is wrong
     +-- PreflightError        the host lacks something: a program, a permission, space
     +-- ImageError            a kernel bundle or root image cannot be found, built or trusted
     +-- RegistryError         a registry of images is not reached, refuses, or breaks its protocol
     +-- StoreError            a record on disk is missing, taken, corrupt or newer than this program
     +-- ProcessError          a program that Atoll ran failed
     +-- StateError            a machine is in a state in which this cannot be done (atoll.vm.state)
     +-- StreamError           a migration stream cannot be taken apart (atoll.hypervisor.qemu.stream)
     +-- BootError             the guest did not come up; ``stage`` says how far it got
     +-- ChannelError          the guest channel broke
     |    +-- ProtocolError    the peer broke the agent protocol
     |    +-- LinkResetError   a stream ended with a resync (atoll.guest.channel)
     +-- GuestError            the agent refused or failed a request
     |    +-- CommandError     a command could not be started in the guest
     |    +-- FileError        a file in the guest could not be read, written, made or removed
     |         +-- FileMissingError   because it does not exist
     +-- NetworkError          a network of VMs cannot be had, or refuses what a VM wants of it
     +-- EngineError           the engine of containers did not come up or does not answer
     +-- BuildError            an image could not be built of a Containerfile
     +-- CommandTimeoutError   a command ran past its time
     +-- CommandFailedError    a command that had to succeed did not (atoll.guest.result)

Each error carries a stable ``code`` (``boot.root``), which programs may rely on, and a ``hint``: the next
step.
"""

from __future__ import annotations

__all__ = [
    "AtollError",
    "BootError",
    "BuildError",
    "ChannelError",
    "CommandError",
    "CommandTimeoutError",
    "ConfigError",
    "EngineError",
    "FileError",
    "FileMissingError",
    "GuestError",
    "ImageError",
    "NetworkError",
    "PreflightError",
    "ProcessError",
    "ProtocolError",
    "RegistryError",
    "StoreError",
    "UsageError",
    "innermost",
    "revive",
]


class AtollError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        code: stable, dotted, lower-case name of the failure.
        hint: what to do next; empty where nothing can be advised.
        detail: further lines (a console's last lines, a program's stderr); empty if none.
        exit_code: the command line's exit status for this error.
    """

    family = "error"
    exit_code = 1

    def __init__(self, message: str, *, code: str = "", hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = f"{self.family}.{code}" if code else self.family
        self.hint = hint
        self.detail = detail


class UsageError(AtollError):
    """The caller asked for something that cannot be."""

    family = "usage"
    exit_code = 2


class ConfigError(AtollError):
    """A configuration file, variable or flag has a wrong name or value."""

    family = "config"
    exit_code = 2


class PreflightError(AtollError):
    """The host lacks something that is needed before a VM can be spawned."""

    family = "boot.preflight"


class ImageError(AtollError):
    """A kernel bundle or root image cannot be found, built or trusted."""

    family = "image"


class RegistryError(AtollError):
    """A registry of images is not reached, refuses, or breaks its protocol."""

    family = "registry"


class StoreError(AtollError):
    """A record on disk is missing, taken, corrupt or of a newer schema."""

    family = "store"


class ProcessError(AtollError):
    """A program that Atoll ran failed.

    Attributes:
        argv: its argument vector.
        status: its exit status; negative is the number of the signal that ended it.
    """

    family = "process"

    def __init__(
        self,
        message: str,
        *,
        argv: tuple[str, ...] = (),
        status: int = 0,
        code: str = "",
        hint: str = "",
        detail: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint, detail=detail)
        self.argv = argv
        self.status = status


class BootError(AtollError):
    """The guest did not come up.

    Attributes:
        stage: how far it got: spawn, firmware, kernel, initramfs, root, agent or command.
    """

    family = "boot"

    def __init__(self, message: str, *, stage: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message, code=stage, hint=hint, detail=detail)
        self.stage = stage


class ChannelError(AtollError):
    """The guest channel broke: the guest or its VM is gone, or the link was closed."""

    family = "channel"


class ProtocolError(ChannelError):
    """The peer broke the agent protocol (docs/reference/agent-protocol.md)."""

    family = "protocol"


class GuestError(AtollError):
    """The agent answered a request with RESET.

    Attributes:
        reason: the RESET code of section 5 of the protocol.
        errno: the guest's errno, or 0.
        stage: the step that failed, where the agent names one.
    """

    family = "guest"

    def __init__(
        self, message: str, *, reason: str, errno: int = 0, stage: str = "", hint: str = "", detail: str = ""
    ) -> None:
        super().__init__(message, code=reason, hint=hint, detail=detail)
        self.reason = reason
        self.errno = errno
        self.stage = stage


class CommandError(GuestError):
    """A command could not be started in the guest; ``exit_code`` follows the shell (126, 127)."""

    family = "command"

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """127 if the program was not found, 126 if it could not be run, as shells have it."""
        return 127 if self.errno == 2 and self.stage in {"exec", "interpreter"} else 126


class FileError(GuestError):
    """A file in the guest could not be read, written, made or removed; ``reason`` and ``errno`` say why.

    Attributes:
        path: as it was asked for.
    """

    family = "file"
    path = ""

    def __init__(self, message: str, *, reason: str, errno: int = 0, path: str = "", hint: str = "") -> None:
        super().__init__(message, reason=reason, errno=errno, hint=hint)
        self.path = path


class FileMissingError(FileError):
    """The file does not exist, or a directory on the way to it."""

    family = "file.missing"

    def __init__(self, message: str, *, errno: int = 0, path: str = "", hint: str = "") -> None:
        super().__init__(message, reason="", errno=errno, path=path, hint=hint)
        self.reason = "missing"


class NetworkError(AtollError):
    """A network of VMs cannot be had, or refuses what a VM wants of it."""

    family = "network"


class EngineError(AtollError):
    """The engine of containers did not come up or does not answer; the last part of the code is the stage."""

    family = "engine"


class BuildError(AtollError):
    """An image could not be built of a Containerfile; the last part of the code says what failed."""

    family = "build"


class CommandTimeoutError(AtollError):
    """A command ran past its time and was ended; the status is that of timeout(1)."""

    family = "command.timeout"
    exit_code = 124


def innermost(error: BaseException) -> BaseException:
    """The error itself out of the groups that task groups wrap it in (PEP 654)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def revive(code: str, message: str, *, hint: str = "", detail: str = "") -> AtollError:
    """The error of ``code`` again, as another process raised it."""
    kind = max(_family(AtollError, code), key=lambda found: len(found.family), default=AtollError)
    error = kind.__new__(kind)
    AtollError.__init__(error, message, hint=hint, detail=detail)
    error.code = code
    last = code.rpartition(".")[2]
    if isinstance(error, BootError):
        error.stage = last
    if isinstance(error, GuestError):
        error.reason, error.errno, error.stage = last, 0, ""
    if isinstance(error, ProcessError):
        error.argv, error.status = (), 0
    return error


def _family(kind: type[AtollError], code: str) -> list[type[AtollError]]:
    own = [kind] if f"{code}.".startswith(f"{kind.family}.") else []
    return [*own, *(found for child in kind.__subclasses__() for found in _family(child, code))]
