"""The one door for programs on the host.

Every program that Atoll runs goes through here: it is reported as an event whose line can be pasted into a
shell, gets no file descriptor it was not given, and its end is told as exit status or signal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

import msgspec

from atoll.errors import PreflightError, ProcessError
from atoll.events import CommandRan, Emit, ignore

__all__ = [
    "UNKNOWN_STATUS",
    "Adopted",
    "Completed",
    "Identity",
    "Process",
    "become",
    "boot_id",
    "describe_status",
    "find",
    "has_open",
    "identify",
    "require",
    "run",
    "spawn",
]

#: Status of a process whose end nobody was told: it was no child of this one.
UNKNOWN_STATUS = 256

#: How much of a failed program's stderr an error carries, in lines.
_TAIL_LINES = 20


class Completed(msgspec.Struct, frozen=True):
    """A program that ran to its end with status 0."""

    argv: tuple[str, ...]
    stdout: bytes
    stderr: bytes
    elapsed: float


def find(program: str) -> str | None:
    """The path of ``program``; administrators' directories count although users lack them in PATH."""
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    for place in filter(None, places.split(":")):
        path = os.path.join(place, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def require(program: str, *, hint: str) -> str:
    """The path of ``program``.

    Raises:
        PreflightError: it is not installed; ``hint`` says how to install it.
    """
    path = find(program)
    if path is None:
        raise PreflightError(f"{program} is not installed", hint=hint)
    return path


def describe_status(status: int) -> str:
    """Words for an exit status as Python has it: negative is a signal."""
    if status == UNKNOWN_STATUS:
        return "ended"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def become(argv: Sequence[str]) -> NoReturn:
    """Have another program take this process's place.

    Raises:
        ProcessError: it could not be started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(argv[0], list(argv))
    except OSError as error:
        message = f"cannot run {argv[0]}: {error.strerror}"
        raise ProcessError(message, argv=tuple(argv), status=127, code="start") from error


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    emit: Emit = ignore,
) -> Completed:
    """Run a program to its end and return what it wrote.

    Args:
        argv: program and arguments.
        stdin: bytes or an open file for its input; none by default.
        env: its environment; by default this process's own with messages in English.
        cwd: its working directory.
        timeout: seconds after which it is killed.
        on_line: called with each line of its stderr as it comes, for progress.
        emit: told when it has ended.

    Raises:
        ProcessError: it could not be started, failed, or ran past ``timeout``; its last lines are the detail.
    """
    began = time.monotonic()
    child = _popen(argv, stdin=stdin, env=env, cwd=cwd, own_group=timeout is not None)
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # its children too: they may hold its output open

    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer is not None:
        timer.start()
    try:
        stdout, stderr = _communicate(child, stdin if isinstance(stdin, bytes) else None, on_line)
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        if timer is not None:
            timer.cancel()
    elapsed = time.monotonic() - began
    emit(CommandRan(argv=tuple(argv), status=child.returncode, elapsed=elapsed))
    if child.returncode != 0:
        name = os.path.basename(argv[0])
        end = f"took longer than {timeout:g} s" if timed_out.is_set() else describe_status(child.returncode)
        tail = "\n".join(stderr.decode(errors="replace").splitlines()[-_TAIL_LINES:])
        raise ProcessError(f"{name} {end}", argv=tuple(argv), status=child.returncode, detail=tail)
    return Completed(tuple(argv), stdout, stderr, elapsed)


def _popen(
    argv: Sequence[str],
    *,
    stdin: bytes | IO[bytes] | None,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    own_group: bool,
) -> subprocess.Popen[bytes]:
    source = subprocess.DEVNULL if stdin is None else subprocess.PIPE if isinstance(stdin, bytes) else stdin
    try:
        return subprocess.Popen(
            argv,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env) if env is not None else {**os.environ, "LC_ALL": "C.UTF-8"},
            cwd=cwd,
            process_group=0 if own_group else None,
        )
    except OSError as error:
        message = f"cannot run {argv[0]}: {error.strerror}"
        raise ProcessError(message, argv=tuple(argv), status=127, code="start") from error


def _communicate(
    child: subprocess.Popen[bytes], data: bytes | None, on_line: Callable[[str], None] | None
) -> tuple[bytes, bytes]:
    if on_line is None:
        return child.communicate(data)
    assert data is None, "input and progress lines together are not needed"
    assert child.stdout is not None
    assert child.stderr is not None
    out: list[bytes] = []

    def collect(stream: IO[bytes]) -> None:
        with stream:
            out.append(stream.read())

    reader = threading.Thread(target=collect, args=(child.stdout,), daemon=True)
    reader.start()
    lines: list[bytes] = []
    with child.stderr:
        for line in child.stderr:
            lines.append(line)
            on_line(line.decode(errors="replace").rstrip())
    reader.join()
    child.wait()
    return b"".join(out), b"".join(lines)


class Process:
    """A long-running child, addressed by pidfd (pidfd_open(2)) so that a reused pid is never hit.

    Attributes:
        pid: its process id.
        pidfd: readable once it has ended; -1 after ``close``.
    """

    def __init__(self, child: subprocess.Popen[bytes], argv: tuple[str, ...]) -> None:
        self._child = child
        self._reaping = threading.Lock()
        self.argv = argv
        self.pid = child.pid
        try:
            self.pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            child.kill()
            child.wait()
            raise ProcessError(
                f"cannot watch {argv[0]}: {error.strerror}", argv=argv, code="start"
            ) from error

    def poll(self) -> int | None:
        """The exit status if it has ended, else None. Negative is a signal's number."""
        with self._reaping:
            return self._child.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most ``timeout`` seconds; the exit status, or None when the time was over."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        if self.poll() is None:
            self._child.send_signal(number)

    def kill(self) -> None:
        """End it at once (SIGKILL); nothing happens if it has ended."""
        self._child.kill()

    def close(self) -> None:
        """Kill it if it still runs, reap it, and give back the pidfd. Closing twice is fine."""
        self.kill()
        self._child.wait()
        self.forget()

    def forget(self) -> None:
        """Give back the pidfd and leave the process as it is; nobody will be told of its end here."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self._child.returncode is None:
            self._child.returncode = UNKNOWN_STATUS  # else the interpreter warns of a child left running


class Identity(msgspec.Struct, frozen=True):
    """What no two processes share, also when the pid is used again or the host was restarted.

    Attributes:
        pid: process id.
        started: clock ticks between the host's boot and its start (proc(5), ``/proc/PID/stat`` field 22).
        boot: the host's boot id.
    """

    pid: int
    started: int
    boot: str


@functools.cache
def boot_id() -> str:
    """What the kernel calls this boot of the host; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def has_open(pid: int, path: Path) -> bool:
    """Whether a process of this user has ``path`` open, whatever the file is called by now."""
    try:
        wanted = path.stat()
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                return True
    return False


def identify(pid: int) -> Identity | None:
    """The identity of a process; None if there is none or it has ended and waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before may hold anything
    except OSError:
        return None
    if fields[0] in {b"Z", b"X"}:
        return None
    return Identity(pid, int(fields[19]), boot_id())


class Adopted:
    """A long-running process that some other one started, addressed by pidfd like ``Process``."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.argv: tuple[str, ...] = ()
        self._ended = False

    @classmethod
    def of(cls, identity: Identity) -> Adopted | None:
        """The process of that identity; None if it has ended."""
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if identify(identity.pid) != identity:  # asked after it was opened: the pid cannot change hands now
            os.close(pidfd)
            return None
        return cls(identity.pid, pidfd)

    def poll(self) -> int | None:
        """``UNKNOWN_STATUS`` if it has ended, else None."""
        if not self._ended and self.pidfd >= 0:
            watched = select.poll()
            watched.register(self.pidfd, select.POLLIN)
            self._ended = bool(watched.poll(0))
        return UNKNOWN_STATUS if self._ended or self.pidfd < 0 else None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most ``timeout`` seconds; its status, or None when the time was over."""
        if self.pidfd >= 0 and not self._ended:
            watched = select.poll()
            watched.register(self.pidfd, select.POLLIN)
            watched.poll(None if timeout is None else timeout * 1000)
        return self.poll()

    def send(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """End it at once (SIGKILL); nothing happens if it has ended."""
        self.send(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it still runs, and give back the pidfd. Closing twice is fine."""
        self.kill()
        self.wait()
        self.forget()

    def forget(self) -> None:
        """Give back the pidfd and leave the process as it is."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class _SpawnThread:
    """A thread that lives as long as the process and starts those children that must die with it.

    PR_SET_PDEATHSIG fires when the *thread* that forked ends (prctl(2)), so a child started from a
    short-lived worker would be killed too early. This thread never ends by itself.
    """

    def __init__(self) -> None:
        import queue  # noqa: PLC0415 - most programs spawn from their main thread

        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="atoll-spawn", daemon=True).start()

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            job()
            done.set()

    def call(self, function: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        outcome: list[subprocess.Popen[bytes] | BaseException] = []

        def job() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                outcome.append(error)

        done = threading.Event()
        self._jobs.put((job, done))
        done.wait()
        result = outcome[0]
        if isinstance(result, BaseException):
            raise result
        return result


@functools.cache
def _spawn_thread(pid: int) -> _SpawnThread:
    """One per process: a fork does not inherit threads, so the key is the pid."""
    assert pid == os.getpid()
    return _SpawnThread()


#: For sh(1): becomes the program, unless the parent has died before its death was made a signal.
_IF_PARENT_LIVES = '[ "$PPID" = "$0" ] && exec "$@"'

#: Before that, enters the cgroups whose files come first, up to ``--``; ``0`` is whoever writes (cgroups(7)).
_ENTER = 'while [ "$1" != -- ]; do { echo 0 > "$1"; } 2> /dev/null; shift; done; shift; '


def _tied(argv: Sequence[str], parent: int, entering: Sequence[Path] = ()) -> tuple[str, ...]:
    """``argv`` behind helpers that have it die with ``parent``, as far as this host has them.

    They do it between fork and exec, where Python code would not be safe beside other threads.
    """
    setpriv, sh = find("setpriv"), find("sh")
    if sys.platform != "linux" or setpriv is None:
        return tuple(argv)
    check: tuple[str, ...] = ()
    if sh is not None and entering:
        check = (sh, "-c", _ENTER + _IF_PARENT_LIVES, f"{parent}", *map(str, entering), "--")
    elif sh is not None:
        check = (sh, "-c", _IF_PARENT_LIVES, f"{parent}")
    return (setpriv, "--pdeathsig", "KILL", "--", *check, *argv)


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    output: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    die_with_parent: bool = True,
    entering: Sequence[Path] = (),
) -> Process:
    """Start a program that runs on.

    Args:
        argv: program and arguments.
        pass_fds: descriptors it inherits, under the same numbers.
        output: descriptor for its stdout and stderr; discarded by default.
        env: its environment; by default this process's own.
        cwd: its working directory.
        die_with_parent: have the kernel kill it when this process ends, however that happens.
        entering: files by which it enters cgroups before it begins; only of one that dies with its parent.
            It begins all the same where it cannot enter.

    Raises:
        ProcessError: it could not be started.
    """
    full = tuple(argv)
    if die_with_parent and find(argv[0]) is not None:  # without it, let Popen say why
        full = _tied(argv, os.getpid(), entering)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            full,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=subprocess.DEVNULL if output is None else output,
            pass_fds=pass_fds,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,  # the terminal's Ctrl-C is for the command in the guest
        )

    try:
        on_main_thread = threading.current_thread() is threading.main_thread()
        child = start() if on_main_thread or not die_with_parent else _spawn_thread(os.getpid()).call(start)
    except OSError as error:
        message = f"cannot run {argv[0]}: {error.strerror}"
        raise ProcessError(message, argv=tuple(argv), status=127, code="start") from error
    return Process(child, tuple(argv))
