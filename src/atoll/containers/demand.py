"""When the engine is started and suspended, and what becomes of who waits for it. Pure.

One step at a time: what is and what has happened go in, what is then and what is to be done come out. At most
one of start and suspend is under way. A client waits only while one of them is: whichever way that ends, the
client is connected, refused, or waits for the start that follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from atoll.errors import AtollError
from atoll.vm.idleness import pause_between
from atoll.vm.state import StateError

__all__ = [
    "Action",
    "Came",
    "Closing",
    "Demand",
    "Dial",
    "DialFailed",
    "Due",
    "Event",
    "Left",
    "Look",
    "Looked",
    "Refuse",
    "Stage",
    "Start",
    "StartFailed",
    "Started",
    "Suspend",
    "SuspendFailed",
    "Suspended",
    "begin",
    "step",
]


class Stage(StrEnum):
    """What the engine does, as far as this process knows.

    Somebody else may have started or stopped it: only ``ensure_ready`` and a connection tell.
    """

    UNKNOWN = "unknown"
    STARTING = "starting"
    READY = "ready"
    SUSPENDING = "suspending"
    RESTING = "resting"


#: In which the engine may run, and nobody is about to change that.
_SETTLED = (Stage.UNKNOWN, Stage.READY)


class Came(msgspec.Struct, frozen=True):
    """A client has connected; ``client`` is its number, which no other has."""

    client: int


class Left(msgspec.Struct, frozen=True):
    """A client is gone, wherever it was."""

    client: int


class Started(msgspec.Struct, frozen=True):
    """The engine answers."""


class StartFailed(msgspec.Struct, frozen=True):
    """The engine could not be started."""

    error: AtollError


class DialFailed(msgspec.Struct, frozen=True):
    """The engine, which was ready, did not take a client's connection."""

    client: int
    error: AtollError


class Due(msgspec.Struct, frozen=True):
    """The time that ``Demand.look_at`` names has come."""


class Looked(msgspec.Struct, frozen=True):
    """Whether the engine has something to do without clients."""

    busy: bool


class Suspended(msgspec.Struct, frozen=True):
    """The engine rests."""


class SuspendFailed(msgspec.Struct, frozen=True):
    """The engine could not be suspended; it may be that it goes on."""


class Closing(msgspec.Struct, frozen=True):
    """This process is to end: the engine is left as it is, unless somebody ends it meanwhile.

    Attributes:
        engine: somebody does: it is not started again.
    """

    engine: bool = False


Event = Came | Left | Started | StartFailed | DialFailed | Due | Looked | Suspended | SuspendFailed | Closing


class Start(msgspec.Struct, frozen=True):
    """Have the engine answer: ``Started`` or ``StartFailed`` follows."""


class Dial(msgspec.Struct, frozen=True):
    """Connect a client to the engine: ``Left`` follows in the end, or ``DialFailed``."""

    client: int


class Refuse(msgspec.Struct, frozen=True):
    """Tell a client why it is not served; it is nobody's any more."""

    client: int
    error: AtollError


class Look(msgspec.Struct, frozen=True):
    """Ask whether the engine is busy: ``Looked`` follows."""


class Suspend(msgspec.Struct, frozen=True):
    """Have the engine rest: ``Suspended`` or ``SuspendFailed`` follows."""


Action = Start | Dial | Refuse | Look | Suspend


class Demand(msgspec.Struct, frozen=True):
    """What is known of the engine, and who wants it.

    Attributes:
        idle: seconds without client and work after which the engine is suspended; 0 for never.
        stage: what the engine does.
        waiting: clients that wait for it.
        served: clients that are connected to it, or are about to be.
        again: those of both for whom a connection to a ready engine has failed already.
        quiet_since: when it was last used, seconds by a clock that does not go back.
        look_at: when to look whether it is busy; None if that is not due.
        looking: that is being asked.
        closing: this process is to end.
        ending: the engine is to end, too: nobody has it started.
    """

    idle: float
    stage: Stage = Stage.UNKNOWN
    waiting: frozenset[int] = frozenset()
    served: frozenset[int] = frozenset()
    again: frozenset[int] = frozenset()
    quiet_since: float = 0.0
    look_at: float | None = None
    looking: bool = False
    closing: bool = False
    ending: bool = False

    @property
    def quiet(self) -> bool:
        """Whether nobody is there, and nothing is under way with the engine, which may run."""
        return not self.waiting and not self.served and self.stage in _SETTLED


Outcome = tuple[Demand, tuple[Action, ...]]

_but = msgspec.structs.replace


def begin(idle: float, now: float) -> Demand:
    """What is known at first: nothing. An engine that was left running is suspended in its time."""
    return _quieted(Demand(idle), now)


def step(demand: Demand, event: Event, now: float) -> Outcome:
    """What is after ``event``, and what is to be done, in this order. ``now`` is in seconds."""
    then, actions = _after(demand, event, now)
    if not then.ending or Start() not in actions:
        return then, actions
    error = StateError("Docker's engine is being stopped", code="stopped", hint="`atoll docker start`")
    left, refusals = _refused(_but(then, stage=Stage.UNKNOWN), then.waiting, error, now)
    return left, (*(action for action in actions if action != Start()), *refusals)


def _after(demand: Demand, event: Event, now: float) -> Outcome:  # noqa: C901, PLR0911 - one line for each event
    match event:
        case Came(client):
            return _came(demand, client)
        case Left(client):
            return _left(demand, (client,), now), ()
        case Started():
            return _started(demand, now)
        case StartFailed(error):
            known = _but(demand, stage=Stage.UNKNOWN)
            return _refused(known, known.waiting, error, now)
        case DialFailed(client, error):
            return _dial_failed(demand, client, error, now)
        case Due():
            return _due(demand)
        case Looked(busy):
            return _looked(demand, now, busy=busy)
        case Suspended():
            return _wanted(_but(demand, stage=Stage.RESTING), now)
        case SuspendFailed():
            return _wanted(_but(demand, stage=Stage.UNKNOWN), now)
        case Closing(engine):
            return _but(demand, closing=True, ending=demand.ending or engine, look_at=None), ()


def _came(demand: Demand, client: int) -> Outcome:
    one = frozenset((client,))
    if demand.stage is Stage.READY:
        return _but(demand, served=demand.served | one, look_at=None), (Dial(client),)
    waiting = _but(demand, waiting=demand.waiting | one, look_at=None)
    if demand.stage in {Stage.STARTING, Stage.SUSPENDING}:
        return waiting, ()
    return _but(waiting, stage=Stage.STARTING), (Start(),)


def _left(demand: Demand, clients: Iterable[int], now: float) -> Demand:
    there = _but(
        demand,
        waiting=demand.waiting.difference(clients),
        served=demand.served.difference(clients),
        again=demand.again.difference(clients),
    )
    return _quieted(there, now) if there.quiet and not demand.quiet else there


def _started(demand: Demand, now: float) -> Outcome:
    ready = _but(demand, stage=Stage.READY, waiting=frozenset[int](), served=demand.served | demand.waiting)
    return _quieted(ready, now), tuple(Dial(client) for client in sorted(demand.waiting))


def _refused(demand: Demand, clients: frozenset[int], error: AtollError, now: float) -> Outcome:
    refusals = tuple(Refuse(client, error) for client in sorted(clients))
    return _quieted(_left(demand, clients, now), now), refusals


def _dial_failed(demand: Demand, client: int, error: AtollError, now: float) -> Outcome:
    """The engine may have died since: it is asked for once more, for each client that finds out."""
    one = frozenset((client,))
    if client not in demand.served:
        return demand, ()  # it left meanwhile
    if client in demand.again:
        return _refused(demand, one, error, now)
    waiting = _but(demand, served=demand.served - one, waiting=demand.waiting | one, again=demand.again | one)
    if demand.stage in _SETTLED:
        return _but(waiting, stage=Stage.STARTING), (Start(),)
    return waiting, ()


def _due(demand: Demand) -> Outcome:
    if not demand.quiet or demand.looking or demand.closing:
        return _but(demand, look_at=None), ()
    return _but(demand, look_at=None, looking=True), (Look(),)


def _looked(demand: Demand, now: float, *, busy: bool) -> Outcome:
    seen = _but(demand, looking=False)
    if not seen.quiet or seen.closing:
        return seen, ()
    if busy:
        return _quieted(seen, now), ()
    if now - seen.quiet_since < seen.idle:
        return _but(seen, look_at=_next_look(seen, now)), ()
    return _but(seen, stage=Stage.SUSPENDING, look_at=None), (Suspend(),)


def _wanted(demand: Demand, now: float) -> Outcome:
    """The suspend is over: for who came meanwhile the engine is started."""
    if demand.waiting:
        return _but(demand, stage=Stage.STARTING), (Start(),)
    return _quieted(demand, now), ()


def _quieted(demand: Demand, now: float) -> Demand:
    """Count from ``now``, if it is quiet."""
    quiet = _but(demand, quiet_since=now, look_at=None)
    if not quiet.quiet or not quiet.idle or quiet.closing:
        return quiet
    return _but(quiet, look_at=_next_look(quiet, now))


def _next_look(demand: Demand, now: float) -> float:
    left = demand.quiet_since + demand.idle - now
    return now + min(pause_between(demand.idle), max(left, 0.01))
