"""Whom a connection's first bytes want: TLS by OpenSSL's client and by hand, HTTP by hand."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.network.policy.firstbytes import MOST, FirstBytes, Progress
from atoll.network.policy.httphost import read_host
from atoll.network.policy.tls import read_server_name


def hello(name, *, versions=(), alpn=()):
    """The first flight of OpenSSL's client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    for edge, version in zip(("minimum_version", "maximum_version"), versions, strict=False):
        setattr(context, edge, version)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(inside, outside, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outside.read()


HELLO = hello("shop.example.org")


def records(flight, sizes, version=b"\x03\x01"):
    """The same message in several records."""
    message, made = flight[5:], b""
    for size in [*sizes, len(message)]:
        piece, message = message[:size], message[size:]
        if piece:
            made += b"\x16" + version + len(piece).to_bytes(2) + piece
    return made


def feed(data, sizes=()):
    """The outcome, and after how many bytes it was known."""
    reader, at = FirstBytes(), 0
    for size in [*sizes, len(data)]:
        reader.feed(data[at : at + size])
        at += size
        assert bytes(reader.held) == data[:at]
        if reader.progress is not Progress.MORE:
            break
    return reader.progress, reader.name


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_in_a_client_s_first_message_is_read(alpn, version):
    flight = hello("Shop.Example.org", versions=(version, version), alpn=alpn)
    assert feed(flight) == (Progress.NAME, "shop.example.org")


def test_a_client_that_says_no_name_has_none():
    assert feed(hello(None)) == (Progress.NONE, None)
    assert feed(hello("203.0.113.5")) == (Progress.NONE, None)


@given(st.lists(st.integers(1, 200), max_size=10), st.lists(st.integers(1, 200), max_size=10))
def test_a_name_is_read_however_it_is_cut(sizes, segments):
    data = records(HELLO, sizes)
    assert feed(data, segments) == (Progress.NAME, "shop.example.org")


def test_every_byte_is_waited_for_and_none_too_many():
    reader = FirstBytes()
    for at, byte in enumerate(HELLO):
        assert reader.progress is Progress.MORE, at
        reader.feed(bytes((byte,)))
    assert reader.name == "shop.example.org"
    for end in range(len(HELLO)):
        needed = read_server_name(HELLO[:end])
        assert end < needed <= len(HELLO)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x02\x00",
        b"\x16\x03\x01\x00\x00",  # no record is empty
        b"\x16\x03\x01\x40\x01",  # nor that long
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x10",  # a server's message
        b"\x17\x03\x03\x00\x10",
        b"\x00" * 10,
        b"\xff",
        HELLO[:5] + HELLO[5:6] + b"\x00\x00\x05" + HELLO[9:],  # a message that ends in its midst
    ],
)
def test_what_is_no_such_message_has_no_name(data):
    assert feed(data) == (Progress.NONE, None)


def extension(kind, body):
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def server_name(*names, kind=0):
    entries = b"".join(bytes((kind,)) + len(name).to_bytes(2) + name for name in names)
    return extension(0, len(entries).to_bytes(2) + entries)


def made(*extensions, tail=b"", random=bytes(32)):
    joined = b"".join(extensions)
    body = b"\x03\x03" + random + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += len(joined).to_bytes(2) + joined + tail
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def test_the_outer_name_counts_where_another_is_hidden():
    hidden = extension(0xFE0D, b"\x00" + bytes(40))
    assert feed(made(hidden, server_name(b"front.example"))) == (Progress.NAME, "front.example")


@pytest.mark.parametrize(
    "flight",
    [
        made(),
        made(server_name(b"a.example"), server_name(b"b.example")),
        made(server_name(b"a.example", b"b.example")),
        made(server_name(b"a.example", kind=1)),
        made(server_name()),
        made(server_name(b"")),
        made(server_name(b"a.example\0.evil")),
        made(server_name("bücher.example".encode())),
        made(extension(0, b"")),
        made(extension(0, b"\0\5\0\0\3a")),
        made(server_name(b"a.example"), tail=b"more"),
        made(server_name(b"a.example"), b"\0\x0a\0\5x"),
    ],
)
def test_a_name_that_servers_could_read_otherwise_is_none(flight):
    assert feed(flight) == (Progress.NONE, None)


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_message_with_a_wrong_byte_raises_nothing(at, value):
    changed = bytearray(HELLO)
    changed[at] = value
    progress, name = feed(bytes(changed))
    assert (name is not None) == (progress is Progress.NAME)


@given(st.binary(max_size=200), st.sampled_from([b"", HELLO[:3], HELLO[:60], b"GET / HTTP/1.1\r\n", b"\x16"]))
def test_any_bytes_raise_nothing(data, start):
    progress, name = feed(start + data, [1, 2, 3, 50])
    assert (name is not None) == (progress is Progress.NAME)


def test_nobody_is_listened_to_for_ever():
    for start in (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff", b"GET / HTTP/1.1\r\nX: "):
        reader = FirstBytes()
        reader.feed(start)
        while reader.progress is Progress.MORE:
            if start[0] == 0x16:
                reader.feed(b"\x00" * 16375 + b"\x16\x03\x01\x40\x00")
            else:
                reader.feed(b"y" * 1000)
            assert len(reader.held) < MOST + 20_000
        assert reader.progress is Progress.NONE


def test_one_who_says_no_more_has_said_no_name():
    reader = FirstBytes()
    reader.feed(HELLO[:50])
    assert reader.end() is Progress.NONE


# HTTP


def request(*fields, target="/", line_end="\r\n"):
    return line_end.join([f"GET {target} HTTP/1.1", *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (request("Host: Shop.Example.org"), "shop.example.org"),
        (request("host:shop.example.org:8080 ", "Accept: */*"), "shop.example.org"),
        (request("Accept: */*", "HOST: shop.example.org."), "shop.example.org"),
        (request("Host: shop.example.org", line_end="\n"), "shop.example.org"),
        (request("Host: a.example", target="http://a.example/x?y"), "a.example"),
        (request("Host: a.example", target="http://a.example:80"), "a.example"),
        (request("Host: a.example", target="*"), "a.example"),
        (request("Host: a.example") + b"body Host: b.example\r\n", "a.example"),
        (b"M-SEARCH / HTTP/1.0\r\nHost: a.example\r\n\r\n", "a.example"),
        (request(), None),
        (request("Host: a.example", "Host: a.example"), None),
        (request("Host : a.example"), None),
        (request(" Host: a.example"), None),
        (request("Host: a.example", " folded"), None),
        (request("Host: a.example", "no colon"), None),
        (request("Host: a.example\rX: y"), None),
        (request("Host: a.example\0"), None),
        (request("Host: 203.0.113.5"), None),
        (request("Host: [2001:db8::1]:80"), None),
        (request("Host: "), None),
        (request("Host: a.example, b.example"), None),
        (request("Host: a@b.example"), None),
        (request("Host: b.example", target="http://a.example/"), None),
        (request("Host: a.example", target="http://x@a.example/"), None),
        (request("Host: a.example", target="a.example:443"), None),
        (request("Host: a.example", target="ftp://a.example/"), None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
        (b"GET /\r\nHost: a.example\r\n\r\n", None),
        (b"GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
        (b"\r\n" + request("Host: a.example"), None),
        (b"SSH-2.0-x\r\n\r\n", None),
    ],
)
def test_the_host_of_a_request(data, name):
    assert feed(data) == (Progress.NAME if name else Progress.NONE, name)
    assert feed(data, [1] * len(data))[1] == name


@given(st.lists(st.integers(1, 20), max_size=20))
@example([1] * 60)
def test_a_request_may_come_in_pieces(sizes):
    data = request("Accept: */*", "Host: a.example", "X: y")
    assert feed(data, sizes) == (Progress.NAME, "a.example")
    for end in range(1, len(data)):
        assert read_host(data[:end]) == end + 1
