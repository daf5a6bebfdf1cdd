"""A server between a client and a registry that spoils what it is told to, and a server of tokens."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import json
import subprocess
import threading
import time
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; what it does is its server's ``serve``."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            if self.rfile.peek(1)[:1] == b"\x16":  # who speaks TLS to a server that does not
                self.close_connection = True
                return
            super().handle_one_request()

    def log_message(self, *_):
        pass

    def body(self):
        """What came with the request."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = bytearray()
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(data)

    def answer(self, status, headers=None, body=b"", *, sent=None):
        """Answer with ``sent``, or else with the whole body, whose length the header says."""
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def __getattr__(self, name):
        """The server's own way with each method."""
        if name.startswith("do_"):
            return lambda: self.server.serve(self)
        raise AttributeError(name)


@contextlib.contextmanager
def serving(serve, *, tls=None):
    """A server at a port of this host's loopback that does ``serve(handler)`` with each request: its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.serve = serve
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Meddler:
    """Passes requests on to a registry.

    Attributes:
        seen: method, path and headers of each request.
        planned: what is done with the next ``GET`` of blobs, in order; each is given the handler and what
            passes on and returns status, headers and body.
        refusals: how the next requests, of whatever, are answered instead: status, headers and body.
        refused: by method, with what status the next such requests are answered instead.
    """

    def __init__(self, port):
        self.seen = []
        self.planned = []
        self.refusals = []
        self.refused = {}
        self.ended = threading.Event()
        self._port = port

    def __call__(self, handler):
        self.seen.append((handler.command, handler.path, dict(handler.headers)))
        body = handler.body()
        if self.refusals and handler.path != "/v2/":
            status, headers, words = self.refusals.pop(0)
            handler.answer(status, headers, words)
            return

        if self.refused.get(handler.command):
            handler.answer(self.refused[handler.command].pop(0))
            return

        def passed(*, without=()):
            upstream = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            headers = {name: value for name, value in handler.headers.items() if name not in without}
            headers.pop("Transfer-Encoding", None)
            try:
                upstream.request(handler.command, handler.path, body or None, headers)
                answer = upstream.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                upstream.close()

        if self.planned and handler.command == "GET" and "/blobs/" in handler.path:
            self.planned.pop(0)(handler, passed)
            return
        handler.answer(*passed())

    def asked(self, fragment):
        """The headers of the requests whose path has ``fragment``."""
        return [headers for _, path, headers in self.seen if fragment in path]


def corrupted(handler, passed):
    """One bit of the content is another."""
    status, headers, body = passed()
    handler.answer(status, headers, bytes([body[0] ^ 1]) + body[1:])


def cut(count):
    """The connection ends after so many bytes."""

    def meddle(handler, passed):
        status, headers, body = passed()
        handler.answer(status, headers, body, sent=body[:count])
        handler.close_connection = True

    return meddle


def stalled(count, ended):
    """After so many bytes nothing comes any more, until ``ended``."""

    def meddle(handler, passed):
        status, headers, body = passed()
        handler.answer(status, headers, body, sent=body[:count])
        ended.wait(30)
        handler.close_connection = True

    return meddle


def whole(handler, passed):
    """Whatever part is asked for, all is given."""
    handler.answer(*passed(without=("Range", "If-Range")))


def lengthened(handler, passed):
    """There is more than there should be, and no length that says so."""
    status, headers, body = passed()
    headers.pop("Content-Length")
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(body + bytes(1 << 20))
    handler.close_connection = True


def claimed(length):
    """The length is said to be another; the bytes are those that there are."""

    def meddle(handler, passed):
        status, headers, body = passed()
        headers["Content-Length"] = str(length)
        handler.answer(status, headers, body, sent=body[:length])
        handler.close_connection = True

    return meddle


def slow(pieces, pause):
    """The content comes in so many pieces with pauses of so many seconds between them."""

    def meddle(handler, passed):
        status, headers, body = passed()
        handler.answer(status, headers, body, sent=b"")
        size = -(-len(body) // pieces)
        for at in range(0, len(body), size):
            handler.wfile.write(body[at : at + size])
            time.sleep(pause)

    return meddle


def sent_to(base):
    """The client is sent to another host for it."""
    return lambda handler, _: handler.answer(307, {"Location": f"{base}{handler.path}?signature=x%2Fy"})


class TokenServer:
    """Gives tokens that docker-registry believes, by Docker's specification.

    Attributes:
        holds: seconds for which the next tokens hold, in their order, then 300; docker-registry itself
            allows 60 more.
        seen: method, query or form, and the field Authorization of each question.
        settings: of a registry that believes it; needs ``port``.
    """

    USER, SECRET, REFRESH = "anna", "open sesame", "identity-0123"

    def __init__(self, place):
        self.holds = []
        self.seen = []
        self._key, self._certificate = place / "token.key", place / "token.pem"
        made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
        self._openssl(*made, "-keyout", self._key, "-out", self._certificate)
        self._x5c = base64.b64encode(
            self._openssl("x509", "-in", self._certificate, "-outform", "DER")
        ).decode()

    def settings(self, port):
        """What a registry's settings say of it."""
        realm = f"http://127.0.0.1:{port}/token?kind=test"
        bundle = str(self._certificate)
        return {"token": {"realm": realm, "service": "tests", "issuer": "tests", "rootcertbundle": bundle}}

    def __call__(self, handler):
        body = handler.body().decode()
        query = urllib.parse.urlsplit(handler.path).query
        words = urllib.parse.parse_qs(body if handler.command == "POST" else query)
        authorization = handler.headers.get("Authorization", "")
        self.seen.append((handler.command, words, authorization))
        basic = base64.b64encode(f"{self.USER}:{self.SECRET}".encode()).decode()
        known = authorization == f"Basic {basic}" or words.get("refresh_token") == [self.REFRESH]
        if not known and (authorization or "refresh_token" in words):
            handler.answer(401, {}, b'{"details": "incorrect username or password"}')
            return
        scopes = [one for given in words.get("scope", []) for one in given.split()]
        token = self._token(scopes if known else [], self.holds.pop(0) if self.holds else 300)
        name = "access_token" if handler.command == "POST" else "token"
        handler.answer(200, {}, json.dumps({name: token, "expires_in": 300}).encode())

    def _token(self, scopes, holds):
        now = int(time.time())
        split = [scope.split(":") for scope in scopes]
        access = [{"type": kind, "name": name, "actions": acts.split(",")} for kind, name, acts in split]
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._x5c]}
        claims = {"iss": "tests", "sub": self.USER, "aud": "tests", "jti": str(time.monotonic_ns())}
        claims |= {"iat": now - 3600, "nbf": now - 3600, "exp": now + holds, "access": access}
        signed = ".".join(self._text(json.dumps(part).encode()) for part in (head, claims))
        signature = self._openssl("dgst", "-sha256", "-sign", self._key, given=signed.encode())
        return f"{signed}.{self._text(signature)}"

    @staticmethod
    def _text(data):
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    @staticmethod
    def _openssl(*words, given=b""):
        return subprocess.run(
            ["openssl", *map(str, words)], input=given, check=True, capture_output=True
        ).stdout
