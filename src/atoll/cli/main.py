"""Entry of the command line: a table of commands, each loaded when it is used."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, cast

from atoll.errors import AtollError, UsageError

__all__ = ["COMMANDS", "Command", "build_parser", "main"]

_DESCRIPTION = "Real Linux virtual machines from one small tool."


class Command(Protocol):
    """What the module of a command has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit status."""


class _Row(NamedTuple):
    name: str
    module: str
    help: str

    def load(self) -> Command:
        """The module, or what in it the part behind the colon names."""
        name, _, part = self.module.partition(":")
        module = importlib.import_module(f"atoll.cli.{name}")
        return cast("Command", getattr(module, part) if part else module)


COMMANDS: tuple[_Row, ...] = (
    _Row("run", "run", "run a command in a fresh VM and remove the VM"),
    _Row("create", "create", "make a machine"),
    _Row("start", "lifecycle:start", "start machines and wait until they are up"),
    _Row("stop", "lifecycle:stop", "stop machines, in order or by force"),
    _Row("restart", "lifecycle:restart", "stop and start machines"),
    _Row("pause", "lifecycle:pause", "stop the vCPUs of machines"),
    _Row("resume", "lifecycle:resume", "let the vCPUs of paused machines go on"),
    _Row("suspend", "lifecycle:suspend", "keep the RAM of machines on disk and end them; `start` goes on"),
    _Row("wait", "lifecycle:wait", "wait until a machine is in a state, and print it"),
    _Row("rm", "lifecycle:remove", "remove machines with their disks"),
    _Row("ls", "listing:ls", "list machines"),
    _Row("inspect", "listing:inspect", "show all about a machine"),
    _Row("exec", "access:execute", "run a command in a machine"),
    _Row("shell", "access:shell", "open a shell in a machine"),
    _Row("cp", "copy", "copy files and trees between the host and a machine"),
    _Row("mount", "shares:mount", "share a directory of the host with a machine, or list what is shared"),
    _Row("umount", "shares:umount", "take a share away from a machine"),
    _Row("port", "port", "forward ports of the host to machines, and back, also while they run"),
    _Row("logs", "watch:logs", "print what a machine wrote"),
    _Row("console", "watch:console", "be connected to a machine's console"),
    _Row("events", "watch:events", "print what happened to machines"),
    _Row("stats", "watch:stats", "show what a machine uses"),
    _Row("top", "watch:top", "show what machines use, again and again"),
    _Row("edit", "changing:edit", "change what was asked for, for the next start"),
    _Row("resize", "changing:resize", "give a machine more vCPUs, memory or disk"),
    _Row("memory", "changing:memory", "show a machine's memory, or set its balloon"),
    _Row("rename", "changing:rename", "give a machine another name"),
    _Row("clone", "changing:clone", "make a machine like another"),
    _Row("fork", "changing:fork", "copy a running machine, with what runs in it, to others"),
    _Row("snapshot", "snapshot", "keep what machines are, and go back to it"),
    _Row("export", "changing:export", "write a machine to a file"),
    _Row("import", "changing:import_", "make a machine of such a file"),
    _Row("ssh", "ssh:connect", "connect to a machine by ssh"),
    _Row("vsock", "vsock", "connect stdin and stdout to a port of a machine's virtio socket"),
    _Row("ssh-config", "ssh:config", "print what makes `ssh NAME.atoll` work"),
    _Row("ssh-proxy", "ssh:proxy", "carry one ssh connection; for ssh itself"),
    _Row("supervise", "service:supervise", "look after a machine in the foreground"),
    _Row("autostart", "service:autostart", "start machines with your session"),
    _Row(
        "network", "network", "make and remove networks, move machines between them, see what they do there"
    ),
    _Row("capture", "capture", "capture what passes at the network cards of machines"),
    _Row("dns", "dns", "show and test names of machines, and have this host know them"),
    _Row("docker", "docker", "run Docker's engine in a machine, for any Docker client"),
    _Row("migrate", "migrate", "bring images, volumes, networks and containers over from another engine"),
    _Row("image", "image", "build, list, inspect and remove root images"),
    _Row("build", "build", "build an image of a Containerfile"),
    _Row("builder", "builder", "show, tidy, end and remove the machine in which images are built"),
    _Row("template", "template", "list, make and remove what sandboxes start from"),
    _Row("doctor", "doctor", "check this host and say how to mend what is wrong"),
    _Row("config", "config", "show the settings and where each value comes from"),
    _Row("completion", "completion", "print the completion script for a shell"),
)


def build_parser(words: Sequence[str], *, whole: bool = False) -> argparse.ArgumentParser:
    """The parser for ``words``; only the command that they name is loaded, or all of them if ``whole``.

    Words that begin with a command get a parser that knows no other: the rest of the table takes 3 ms.
    """
    parser = _Parser(prog="atoll", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    named = next((word for word in words if not word.startswith("-")), None)
    first = [row for row in COMMANDS if not whole and row.name in words[:1]]
    for row in first or COMMANDS:
        sub = commands.add_parser(
            row.name, help=row.help, description=_sentence(row.help), allow_abbrev=False
        )
        if whole or row.name == named:
            command = row.load()
            command.configure(sub)
            sub.set_defaults(run=command.run)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Errors are one line with a code, and a hint."""
    _open_standard_streams()
    words = sys.argv[1:] if words is None else words
    parser = build_parser(words)
    if words and words[0] == "__complete":
        from atoll.cli.completion import complete

        return complete(words[1:])
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        hint = f"see `atoll {arguments.command} --help`" if arguments.command else "see `atoll --help`"
        report(UsageError(f"unknown: {' '.join(unknown)}", code="arguments", hint=hint))
        return UsageError.exit_code
    if arguments.command is None:
        parser.print_help()
        return 2
    return _carry_out(arguments)


def _carry_out(arguments: argparse.Namespace) -> int:
    """Run the chosen command; its exit status, or that of the error that it ended with."""
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except AtollError as error:
        report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say no more
        return 141
    except OSError as error:
        report(AtollError(str(error), code="os", hint="see `atoll doctor`"))
        return 1
    return status


def _open_standard_streams() -> None:
    """Put /dev/null where the caller closed a standard stream, lest a socket of ours gets its number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for as long as the process


def entry() -> NoReturn:
    """``main`` as the installed command: leaves without taking the interpreter apart, which lasts 10 ms.

    Nothing is lost by it: what must be cleaned up was cleaned up before ``main`` returned.
    """
    _clean_up_on_signals()
    status = main()
    with contextlib.suppress(OSError):  # a closed or full stream was reported, or cannot be
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _clean_up_on_signals() -> None:
    """Have what asks this process to end end it as Ctrl-C does, with whatever it has begun."""
    import signal

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, leave)


def report(error: AtollError) -> None:
    """Say what went wrong: the console's or program's last lines, the error, the hint."""
    for line in error.detail.splitlines():
        print(f"  | {_printable(line)}", file=sys.stderr)
    print(f"error[{error.code}]: {_printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"hint: {_printable(error.hint)}", file=sys.stderr)


def _printable(text: str) -> str:
    """``text`` without control characters: a guest must not steer the user's terminal through an error."""
    return "".join(
        char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


class _Parser(argparse.ArgumentParser):
    """Whose errors read as all others do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse them. ``OPTION=VALUE`` is an option of its own where its action says so.

        An optional value would else be the next word, which may be an argument.
        """
        known = self._option_string_actions
        for word in args or ():
            action = known.get(word.partition("=")[0])
            if word not in known and getattr(action, "whole_words", False):
                known[word] = cast("argparse.Action", action)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words, and leave."""
        found = re.match(r"argument (?:COMMAND|ACTION): invalid choice: '(.*)' \(choose from", message)
        if found is None:
            report(UsageError(message, code="arguments", hint=f"see `{self.prog} --help`"))
        else:
            hint = _nearest(found[1], self._actions) or f"see `{self.prog} --help`"
            report(UsageError(f"there is no `{self.prog} {found[1]}`", code="command", hint=hint))
        self.exit(UsageError.exit_code)


class _Help(argparse.HelpFormatter):
    """Leaves room for the names of commands, whose indent argparse does not count."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if action.nargs == argparse.PARSER:
            longest = max(len(str(name)) for name in action.choices or ())
            self._action_max_length = max(self._action_max_length, longest + 4)


def _nearest(word: str, actions: Sequence[argparse.Action]) -> str:
    import difflib

    known = [name for action in actions if action.nargs == argparse.PARSER for name in action.choices or ()]
    near = difflib.get_close_matches(word, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""


class _PrintVersion(argparse.Action):
    """Reads the version only when it is asked for: argparse's own action wants it beforehand."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"atoll {version()}")
        parser.exit()


def version() -> str:
    """The installed version; of a source tree that is not installed none is known."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("atoll")
    except PackageNotFoundError:
        return "(not installed)"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
