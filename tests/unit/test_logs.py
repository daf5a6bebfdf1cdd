"""Logs that are bounded, however much a guest writes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.vm.logs import RotatedLog, Tap, tail


@pytest.fixture
def log(tmp_path):
    log = RotatedLog(tmp_path / "console.log", limit=100, keep=2)
    yield log
    log.close()


def test_what_is_written_is_in_the_file_at_once(log, tmp_path):
    log.write(b"one\n")
    log.write(b"two\n")
    assert (tmp_path / "console.log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


def test_a_full_log_is_moved_aside_and_the_oldest_is_dropped(log, tmp_path):
    for letter in b"abcd":
        log.write(bytes([letter]) * 100)
    assert sorted(os.listdir(tmp_path)) == ["console.log", "console.log.1", "console.log.2"]
    assert (tmp_path / "console.log").read_bytes() == b""
    assert (tmp_path / "console.log.1").read_bytes() == b"d" * 100
    assert (tmp_path / "console.log.2").read_bytes() == b"c" * 100


def test_a_log_goes_on_where_an_earlier_process_left_it(log, tmp_path):
    log.write(b"x" * 60)
    log.close()
    again = RotatedLog(tmp_path / "console.log", limit=100)
    again.write(b"y" * 60)
    again.close()
    assert (tmp_path / "console.log.1").read_bytes() == b"x" * 60 + b"y" * 60


def test_a_log_that_cannot_be_written_holds_nobody_up_and_comes_back(log, tmp_path):
    log.close()
    log.write(b"it was closed, as when the disk was full while it was moved")
    assert (tmp_path / "console.log").read_bytes().startswith(b"it was closed")


@given(st.lists(st.binary(max_size=150), max_size=40))
def test_no_more_than_three_files_of_little_more_than_the_limit_are_kept(tmp_path_factory, pieces):
    place = tmp_path_factory.mktemp("logs")
    log = RotatedLog(place / "log", limit=100, keep=2)
    for piece in pieces:
        log.write(piece)
    log.close()
    kept = b"".join((place / name).read_bytes() for name in sorted(os.listdir(place), reverse=True))
    assert b"".join(pieces).endswith(kept)
    assert all((place / name).stat().st_size < 250 for name in os.listdir(place))
    assert len(os.listdir(place)) <= 3


def test_a_tap_passes_on_keeps_the_newest_and_forgets_on_request(log):
    tap, heard = Tap(log, limit=8), []
    tap.listeners.add(heard.append)
    tap.feed(b"12345")
    tap.feed(b"6789\r\n")
    assert heard == [b"12345", b"6789\r\n"]
    assert tap.recent() == b"456789\r\n"
    assert tap.text() == "456789\n"
    tap.forget()
    assert tap.text() == ""


def test_a_listener_may_leave_while_it_is_told(log):
    tap, heard = Tap(log), []

    def once(data):
        heard.append(data)
        tap.listeners.discard(once)

    tap.listeners.add(once)
    tap.feed(b"a")
    tap.feed(b"b")
    assert heard == [b"a"]


def test_the_tail_of_a_log_is_its_end_or_nothing(tmp_path):
    (tmp_path / "log").write_bytes(b"0123456789")
    assert tail(tmp_path / "log", 4) == b"6789"
    assert tail(tmp_path / "log") == b"0123456789"
    assert tail(tmp_path / "none") == b""
