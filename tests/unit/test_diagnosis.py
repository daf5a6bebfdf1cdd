"""Why a guest did not come up: evidence in, stage, words and hint out."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.cli.main import build_parser
from atoll.hypervisor.port import Position
from atoll.vm.diagnosis import Evidence, diagnose

STAGES = {"spawn", "firmware", "kernel", "initramfs", "root", "agent", "command"}

PANIC = "[    0.5] Kernel panic - not syncing: "
INITRAMFS = "atoll: initramfs\n"
CHANNEL = INITRAMFS + "atoll: channel\n"


def evidence(**known):
    nothing = {
        "vm": "box",
        "status": None,
        "position": Position.UNKNOWN,
        "console": "",
        "diagnostics": "",
        "answered": False,
        "booted": False,
        "waited": 60.0,
    }
    return Evidence(**nothing | known)


UP = {"answered": True, "booted": True}

TABLE = [
    # The agent said what is wrong.
    ({"console": INITRAMFS + "atoll: failed: initramfs: no port\r\n"}, "initramfs", "no port", "--kernel"),
    (
        {"console": CHANNEL + "atoll: failed: root: mount /dev/vda: EUCLEAN\n", "status": 0},
        "root",
        "the guest stopped: mount /dev/vda: EUCLEAN",
        "atoll image build --force",
    ),
    # The kernel panicked.
    (
        {"console": PANIC + "VFS: Unable to mount root fs on unknown-block(0,0)"},
        "initramfs",
        "VFS",
        "--kernel",
    ),
    ({"console": PANIC + "No working init found."}, "initramfs", "No working init", "--kernel"),
    ({"console": INITRAMFS + PANIC + "Attempted to kill init!"}, "initramfs", "kill init", "--kernel"),
    ({"console": PANIC + "Fatal exception", "status": 0}, "kernel", "panicked: Fatal", "--kernel"),
    ({"console": PANIC + "System is deadlocked on memory"}, "kernel", "deadlocked", "more with --memory"),
    ({"console": "Out of memory\n" + PANIC + "x in init"}, "initramfs", "x in init", "more with --memory"),
    ({"console": CHANNEL + PANIC + "Attempted to kill init!"}, "agent", "kill init", ""),
    ({"console": CHANNEL + PANIC + "sysrq triggered crash", **UP}, "command", "sysrq", "ended the VM"),
    # QEMU failed.
    (
        {"status": 1, "diagnostics": "qemu: warning: x\nqemu: could not load kernel\n"},
        "spawn",
        "QEMU exited with status 1: qemu: could not load kernel",
        "atoll doctor",
    ),
    ({"status": -9}, "spawn", "QEMU was killed by SIGKILL", "atoll doctor"),
    (
        {"status": 1, "diagnostics": "cannot set up guest memory 'pc.ram': Cannot allocate memory"},
        "spawn",
        "cannot set up guest memory",
        "ask for less with --memory",
    ),
    ({"status": -6, "console": "Linux version 6.1"}, "kernel", "SIGABRT", "atoll doctor"),
    ({"status": -9, "console": INITRAMFS}, "initramfs", "SIGKILL", "atoll doctor"),
    ({"status": -9, "answered": True}, "root", "SIGKILL", "atoll doctor"),
    ({"status": -9, **UP}, "command", "SIGKILL", "atoll doctor"),
    # The guest ended by itself.
    ({"status": 0, **UP}, "command", "the guest powered off or reset", "ended the VM"),
    ({"status": 0}, "kernel", "the guest reset itself in stage kernel", "--kernel"),
    ({"status": 0, "console": CHANNEL}, "agent", "reset itself in stage agent", "--kernel"),
    # It runs and does not answer.
    ({"position": Position.FIRMWARE}, "firmware", "within 60 s; it is in stage firmware", "--kernel"),
    ({"position": Position.FIRMWARE, "console": "x"}, "kernel", "it is in stage kernel", "boot_timeout"),
    ({"position": Position.KERNEL}, "kernel", "it is in stage kernel", "boot_timeout"),
    ({"console": INITRAMFS}, "initramfs", "it is in stage initramfs", "boot_timeout"),
    ({"console": CHANNEL, "waited": 2.4}, "agent", "within 2 s; it is in stage agent", "boot_timeout"),
    ({"answered": True}, "root", "no longer answers", "console"),
    (UP, "command", "no longer answers", "console"),
]


@pytest.mark.parametrize(("known", "stage", "fragment", "hint"), TABLE)
def test_what_a_guest_left_behind_tells_the_stage_the_reason_and_what_to_do(known, stage, fragment, hint):
    error = diagnose(evidence(**known))
    assert error.stage == stage
    assert error.message.startswith("box: ")
    assert fragment in error.message
    assert hint in error.hint
    assert bool(hint) == bool(error.hint)


def test_the_consoles_last_fifteen_lines_that_say_something_come_along():
    console = "".join(f"line {number}\n\n" for number in range(40))
    assert diagnose(evidence(console=console)).detail.splitlines() == [f"line {n}" for n in range(25, 40)]


fragments = st.lists(
    st.one_of(
        st.sampled_from(
            [
                INITRAMFS,
                CHANNEL,
                PANIC,
                "atoll: failed: ",
                "root: ",
                "init",
                "Out of memory",
                "\n",
                "\r\n",
                "\0",
            ]
        ),
        st.text(max_size=30),
    )
).map("".join)


@given(
    st.builds(
        evidence,
        status=st.none() | st.integers(-64, 255),
        position=st.sampled_from(Position),
        console=fragments,
        diagnostics=fragments,
        answered=st.booleans(),
        booted=st.booleans(),
        waited=st.floats(0, 1e6),
    )
)
@example(evidence(console="atoll: failed: nonsense: x"))
@example(evidence(console="atoll: failed: root: \n"))
def test_whatever_a_guest_writes_there_is_an_answer_with_a_known_stage(found):
    error = diagnose(found)
    assert error.stage in STAGES
    assert error.code == f"boot.{error.stage}"


def test_a_port_that_is_taken_is_named():
    said = "qemu: -netdev user,id=net0: Could not set up host forwarding rule 'tcp:127.0.0.1:8080-:80'"
    error = diagnose(evidence(status=1, diagnostics=said))
    assert error.stage == "spawn"
    assert "127.0.0.1:8080/tcp is taken" in error.message
    assert "atoll edit box ports=" in error.hint


def test_each_command_that_a_hint_names_exists():
    hints = {diagnose(evidence(**known)).hint for known, *_ in TABLE}
    named = {command for hint in hints for command in re.findall(r"`(atoll [^`]+)`", hint)}
    assert named
    for command in named:
        words = shlex.split(command)[1:]
        parser = build_parser(words)
        assert parser.parse_args(words).command == words[0]  # argparse exits on words it does not know
