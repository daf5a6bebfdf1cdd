"""What a command in a guest came to."""

from __future__ import annotations

import msgspec

from atoll.errors import AtollError

__all__ = ["CommandFailedError", "Result"]


class CommandFailedError(AtollError):
    """A command that was run with ``check=True`` did not end with status 0.

    Attributes:
        result: what it came to.
    """

    family = "command.failed"

    def __init__(self, result: Result) -> None:
        how = (
            f"exited with status {result.code}"
            if result.signal is None
            else f"died of signal {result.signal}"
        )
        super().__init__(f"{result.argv[0]} {how}", detail=result.stderr)
        self.result = result
        self.exit_code = result.returncode


class Result(msgspec.Struct, frozen=True):
    """A command that has ended.

    Attributes:
        argv: the command.
        code: its exit status, or None if a signal ended it.
        signal: the number of that signal, or None.
        stdout_bytes: what it wrote; ``stderr_bytes`` likewise.
        elapsed: seconds that it ran, by the guest's clock.
    """

    argv: tuple[str, ...]
    code: int | None
    signal: int | None
    stdout_bytes: bytes
    stderr_bytes: bytes
    elapsed: float

    @property
    def stdout(self) -> str:
        """Its output as text; bytes that are no UTF-8 are replaced."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its error output as text."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def returncode(self) -> int:
        """Its status as a shell has it: 128 plus the number of the signal that ended it."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.code == 0

    def check(self) -> Result:
        """This result. Raises ``CommandFailedError`` if the command failed."""
        if not self.ok:
            raise CommandFailedError(self)
        return self
