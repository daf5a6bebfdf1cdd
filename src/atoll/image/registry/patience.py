"""How often something is tried again, and after how long. Pure, but for the waiting itself."""

from __future__ import annotations

import random
import threading
from email.utils import parsedate_to_datetime
from typing import NoReturn

import msgspec

from atoll.errors import RegistryError
from atoll.events import Emit, Warned

__all__ = ["AttemptError", "Patience", "Retrying", "pause_of", "retry_after"]

#: Seconds of waiting that the user is told of.
_LONG = 5.0


class Patience(msgspec.Struct, frozen=True):
    """How long something is tried.

    Attributes:
        attempts: how often in a row without any progress.
        first_attempts: how often a host that has never answered.
        pause: seconds before the second attempt; each further one waits twice as long.
        longest: seconds between two attempts at most.
        asked: seconds that a server may ask to wait; a longer wish is an error at once.
        connect: seconds for a connection.
        probe: seconds for finding out whether a host speaks TLS.
        stall: seconds without a byte after which a connection is given up.
    """

    attempts: int = 6
    first_attempts: int = 3
    pause: float = 0.5
    longest: float = 20.0
    asked: float = 90.0
    connect: float = 20.0
    probe: float = 5.0
    stall: float = 60.0


class AttemptError(Exception):
    """Something that may go well the next time.

    Attributes:
        error: what it is if it does not.
        after: seconds that the server asks to wait; None if it does not say.
        again: whether another attempt has any sense.
        new: whether the host has never answered.
    """

    def __init__(
        self, error: RegistryError, *, after: float | None = None, again: bool = True, new: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after
        self.again = again
        self.new = new


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a field Retry-After asks for (RFC 9110, 10.2.3); None if it cannot be read.

    Args:
        value: of the field.
        now: seconds since the epoch.
    """
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def pause_of(patience: Patience, failures: int, *, luck: float) -> float:
    """Seconds to wait after so many failures in a row.

    Args:
        patience: how long at all.
        failures: at least one.
        luck: from 0 to 1; many clients that failed together shall not come again together.
    """
    grown: float = min(patience.longest, patience.pause * 2.0 ** min(failures - 1, 30))
    return grown * (0.5 + luck / 2)


class Retrying:
    """Counts the attempts at one thing and waits between them.

    Attributes:
        ended: set when nobody wants it any more: no wait goes on then.
    """

    def __init__(self, patience: Patience, emit: Emit) -> None:
        self.ended = threading.Event()
        self._patience = patience
        self._emit = emit
        self._failures = 0

    def progressed(self) -> None:
        """There was progress: all patience is there again."""
        self._failures = 0

    def failed(self, trouble: AttemptError) -> None:
        """Wait until it is to be tried again. Raises ``RegistryError``: that it is not."""
        self._failures += 1
        most = self._patience.first_attempts if trouble.new else self._patience.attempts
        if not trouble.again or self._failures >= most or (trouble.after or 0.0) > self._patience.asked:
            self._give_up(trouble)
        pause = pause_of(self._patience, self._failures, luck=random.random())
        if trouble.after is not None:
            pause = max(pause, trouble.after)
        if pause >= _LONG:
            self._emit(Warned(message=trouble.error.message, hint=f"trying again in {pause:.0f} s"))
        if self.ended.wait(pause):
            self._give_up(trouble)

    def _give_up(self, trouble: AttemptError) -> NoReturn:
        raise trouble.error from trouble.__cause__
