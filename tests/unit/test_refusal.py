"""What a client of the Docker socket is told whom nothing serves."""

from __future__ import annotations

import http.client
import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers.refusal import MOST, answer, is_request
from atoll.vm.state import StateError

ERROR = StateError('no "room"\r\nleft: ü', hint="free some")
PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"


class Reader:
    """As much of a socket as http.client wants."""

    def __init__(self, data):
        self.data = data

    def makefile(self, _):
        return io.BytesIO(self.data)


def parsed(data, method="GET"):
    response = http.client.HTTPResponse(Reader(data), method=method)
    response.begin()
    return response, response.read()


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n"])
def test_a_request_is_whole_with_its_head(end):
    head = b"POST /images/load HTTP/1.1\r\nHost: docker"
    assert all(not is_request((head + end)[:size]) for size in range(len(head + end)))
    assert is_request(head + end)
    assert is_request(head + end + b"body")


def test_empty_lines_before_a_request_are_no_request():
    assert not is_request(b"")
    assert not is_request(b"\r\n\r\n")
    assert is_request(b"\r\n\r\n" + PING)


def test_a_head_without_end_is_answered_all_the_same():
    assert not is_request(b"x" * (MOST - 1))
    assert is_request(b"x" * MOST)


@given(st.binary(max_size=300))
def test_whatever_is_sent_the_answer_is_one_that_clients_can_read(received):
    sent = answer(received, ERROR)
    response, body = parsed(sent, "HEAD" if sent.endswith(b"\r\n\r\n") else "GET")
    assert response.status == 503
    assert response.will_close
    assert body == b"" or msgspec.json.decode(body) == {"message": 'no "room"\r\nleft: ü (free some)'}


def test_an_answer_is_what_dockers_client_prints():
    response, body = parsed(answer(PING, StateError("it did not start")))
    assert response.getheader("Content-Type") == "application/json"
    assert msgspec.json.decode(body) == {"message": "it did not start"}


@pytest.mark.parametrize("received", [b"HEAD /_ping HTTP/1.1\r\n\r\n", b"\r\nHEAD /_ping HTTP/1.1\r\n\r\n"])
def test_an_answer_to_head_has_no_body(received):
    sent = answer(received, ERROR)
    assert sent.endswith(b"\r\n\r\n")
    response, body = parsed(sent, "HEAD")
    assert int(response.getheader("Content-Length")) > 0
    assert body == b""
