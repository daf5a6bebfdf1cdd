"""Docker's own client on this host, and what it talks to: an engine of the tests alone, and a registry."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import tarfile
import termios
import time

#: Seconds for what takes a moment on a host that does nothing else.
PATIENCE = 120


class Docker:
    """The client, as a user has it.

    Args:
        environment: of the client.
        place: an empty directory that the engine's containers see, too.
    """

    def __init__(self, environment, place):
        self.environment = environment
        self.place = place

    def run(self, *words, env=None, **options):
        """Its whole run."""
        given = {} if "input" in options else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            ["docker", *words],
            check=False,
            capture_output=True,
            timeout=PATIENCE,
            env={**self.environment, **(env or {})},
            **{**given, **options},
        )

    def __call__(self, *words, **options):
        """Its output; it must succeed."""
        done = self.run(*words, **options)
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.decode().strip()

    @contextlib.contextmanager
    def going_on(self, *words):
        """The client while it runs, with lines of its output to wait for."""
        child = subprocess.Popen(
            ["docker", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Going(child, child.stdout.fileno())
        finally:
            child.kill()
            child.wait()
            child.stdout.close()

    @contextlib.contextmanager
    def at_terminal(self, *words):
        """The client at a terminal of its own."""
        parent, other = pty.openpty()
        child = subprocess.Popen(
            ["docker", *words],
            env={**self.environment, "TERM": "xterm"},
            stdin=other,
            stdout=other,
            stderr=other,
        )
        os.close(other)
        try:
            yield Terminal(child, parent)
        finally:
            child.kill()
            child.wait()
            os.close(parent)


class Going:
    """A client that runs.

    Attributes:
        process: it.
        seen: what it has said.
    """

    def __init__(self, process, fd):
        self.process = process
        self.seen = ""
        self._fd = fd

    def until(self, fragment, *, again=lambda: None):
        """Wait until it says ``fragment``; what it has said up to there is not looked at again.

        ``again`` is done once a second meanwhile.
        """
        deadline, due = time.monotonic() + PATIENCE, 0.0
        while fragment not in self.seen:
            assert time.monotonic() < deadline, f"{fragment!r} is not in {self.seen!r}"
            if time.monotonic() > due:
                again()
                due = time.monotonic() + 1
            if not select.select([self._fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(self._fd, 65_536)
            except OSError:  # a terminal at which nobody is any more
                data = b""
            assert data, f"{fragment!r} is not in {self.seen!r}"
            self.seen += data.decode(errors="replace")
        before, _, self.seen = self.seen.partition(fragment)
        return before

    def signal(self, number):
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self):
        """Its exit status."""
        return self.process.wait(PATIENCE)


class Terminal(Going):
    """A client at a terminal."""

    def __init__(self, process, fd):
        super().__init__(process, fd)
        self._terminal = fd

    def type(self, text):
        """Type it."""
        os.write(self._terminal, text.encode())

    def resize(self, rows, columns):
        """Give the window another size, and tell the client, whose controlling terminal it is not."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.signal(signal.SIGWINCH)


def free_port():
    """A TCP port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def registry(program, place, *, certificate=None, key=None, auth=None):
    """Debian's registry on this host's loopback, which keeps what it gets in ``place``; its port.

    ``auth`` is what its settings say of who is let in; without it everybody is.
    """
    port = free_port()
    place.mkdir()
    settings = place / "settings.json"
    storage = {"filesystem": {"rootdirectory": str(place / "kept")}}
    http = {"addr": f"127.0.0.1:{port}"}
    if certificate is not None:
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
    said = {"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": http}
    settings.write_text(json.dumps(said if auth is None else {**said, "auth": auth}))
    with (place / "log").open("wb") as log:
        child = subprocess.Popen(
            [program, "serve", settings], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            until(lambda: is_open(port) or child.poll() is not None)
            assert child.poll() is None, (place / "log").read_text()
            yield port
        finally:
            child.kill()
            child.wait()


def is_open(port):
    """Whether somebody listens at a TCP port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def until(condition, within=PATIENCE):
    """Wait until ``condition`` holds; what it returned."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def asked(port, data):
    """The answer to a datagram; it is sent again until it comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(1)

        def answered():
            with contextlib.suppress(OSError):
                sock.send(data)
                return sock.recv(65_536)

        return until(answered)


def archive_of(layer, name):
    """An image of one layer as ``docker save`` writes it, but for the layer's bytes.

    Returns:
        The archive's bytes before the layer's and behind them, the image's id, and the layer's.
    """
    diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    image = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    text = json.dumps(image).encode()
    own = hashlib.sha256(text).hexdigest()
    manifest = json.dumps([{"Config": f"{own}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    head = b"".join(
        _member(name, data) for name, data in ((f"{own}.json", text), ("manifest.json", manifest))
    )
    entry = tarfile.TarInfo("layer.tar")
    entry.size = len(layer)
    return head + entry.tobuf(), bytes(-len(layer) % 512 + 1024), f"sha256:{own}", diff


def _member(name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    return entry.tobuf() + data + bytes(-len(data) % 512)


def layer_of(name, data):
    """A layer that has one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
