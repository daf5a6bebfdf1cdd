"""What dockerd answers is taken as hostile: the guest is not trusted."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers import api
from atoll.errors import EngineError


class Answering:
    """A stream to a server that takes all and answers ``pieces``."""

    def __init__(self, *pieces):
        self.pieces = [*pieces, b""]
        self.asked = b""
        self.cancelled = False

    async def write(self, data):
        self.asked += data

    async def read(self):
        return self.pieces.pop(0)

    def cancel(self):
        self.cancelled = True


@pytest.mark.anyio
async def test_a_question_is_asked_and_its_answer_comes_in_pieces():
    stream = Answering(b"HTTP/1.0 200 OK\r\nX: y\r", b"\n\r\nO", b"K")
    assert await api.get(stream, "/_ping") == b"OK"
    assert stream.asked == b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"
    assert stream.cancelled


@pytest.mark.anyio
async def test_a_body_is_sent_with_its_kind_and_length():
    stream = Answering(b"HTTP/1.1 201 Created\r\n\r\n{}")
    assert await api.call(stream, "POST", "/x", b"abc", kind="application/x-tar") == b"{}"
    assert b"Content-Type: application/x-tar\r\nContent-Length: 3\r\n\r\nabc" in stream.asked


@pytest.mark.anyio
async def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(api, "_MOST", 100)
    stream = Answering(*[b"x" * 60] * 9)
    with pytest.raises(EngineError) as caught:
        await api.get(stream, "/")
    assert caught.value.code == "engine.answer"
    assert stream.cancelled


def test_what_dockerd_says_of_a_failure_is_passed_on():
    with pytest.raises(EngineError) as caught:
        api.body_of(b'HTTP/1.0 404 Not Found\r\n\r\n{"message":"no such"}', "GET /x")
    assert "404" in caught.value.message
    assert "no such" in caught.value.detail


@given(st.binary(max_size=80))
def test_whatever_comes_is_a_body_or_an_error(answer):
    with contextlib.suppress(EngineError):
        assert isinstance(api.body_of(answer, "GET /"), bytes)
