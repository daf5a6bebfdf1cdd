"""What a command came to, as programs see it."""

from __future__ import annotations

import pickle
import signal

import pytest

from atoll import CommandFailedError, Result


def result(**known):
    nothing = {
        "argv": ("make", "it"),
        "code": 0,
        "signal": None,
        "stdout_bytes": b"",
        "stderr_bytes": b"",
        "elapsed": 0.5,
    }
    return Result(**nothing | known)


def test_output_is_there_as_bytes_and_as_text():
    found = result(stdout_bytes=b"gr\xc3\xbc\xc3\x9f \xff\n", stderr_bytes=b"warn\n")
    assert found.stdout == "grüß \N{REPLACEMENT CHARACTER}\n"
    assert found.stderr == "warn\n"
    assert found.stdout_bytes.endswith(b"\xff\n")


@pytest.mark.parametrize(
    ("code", "number", "returncode", "ok"),
    [(0, None, 0, True), (3, None, 3, False), (None, signal.SIGKILL, 137, False), (255, None, 255, False)],
)
def test_the_status_is_that_of_a_shell(code, number, returncode, ok):
    found = result(code=code, signal=number)
    assert (found.returncode, found.ok) == (returncode, ok)


def test_checking_a_success_gives_it_back():
    found = result()
    assert found.check() is found


def test_checking_a_failure_raises_with_the_status_and_what_was_said():
    found = result(code=3, stderr_bytes=b"no rule\n")
    with pytest.raises(CommandFailedError) as caught:
        found.check()
    error = caught.value
    assert error.result is found
    assert (error.message, error.detail) == ("make exited with status 3", "no rule\n")
    assert (error.code, error.exit_code) == ("command.failed", 3)


def test_checking_a_command_that_was_killed_names_the_signal():
    with pytest.raises(CommandFailedError) as caught:
        result(code=None, signal=9).check()
    assert caught.value.message == "make died of signal 9"
    assert caught.value.exit_code == 137


def test_a_result_can_be_sent_to_another_process():
    found = result(stdout_bytes=b"x")
    assert pickle.loads(pickle.dumps(found)) == found
