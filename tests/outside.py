"""Somewhere that is not this host: a network namespace with servers, at the other end of a link."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

#: Making a link takes rights over this host's network.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a link to a namespace")

#: TCP: one that greets, and some that send back what they get; UDP likewise.
GREETS, ECHOES, DATAGRAMS = 22, (80, 443, 9000), (443, 9000)

_SERVERS = """
import socket, sys, threading
greets, echoes, datagrams = (list(map(int, word.split(","))) for word in sys.argv[1:])
def talk(sock, greeting):
    try:
        if greeting: sock.sendall(b"hello")
        while data := sock.recv(1 << 16): sock.sendall(data)
    except OSError: pass
    sock.close()
def serve(listener, greeting):
    while True: threading.Thread(target=talk, args=(listener.accept()[0], greeting), daemon=True).start()
def answer(sock):
    while True:
        data, whom = sock.recvfrom(65535)
        sock.sendto(data, whom)
for port in (*greets, *echoes):
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=serve, args=(listener, port in greets), daemon=True).start()
for port in datagrams:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(41, 26, 0); sock.bind(("", port))
    threading.Thread(target=answer, args=(sock,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


class Outside:
    """Its addresses: two of IPv4, one of IPv6."""

    def __init__(self, number: int) -> None:
        self.net = f"198.18.{number}"
        self.four, self.other, self.host = (f"{self.net}.{last}" for last in (2, 3, 1))
        self.six, self.host_six = f"2001:db8:a:{number:x}::2", f"2001:db8:a:{number:x}::1"


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """The namespace; it and the link go with the process of its servers."""
    found = Outside(os.getpid() % 256)
    link, far = f"at{os.getpid()}", f"af{os.getpid()}"
    words = [",".join(map(str, ports)) for ports in ((GREETS,), ECHOES, DATAGRAMS)]
    wait = f"import sys; sys.stdin.readline(); exec({_SERVERS!r})"
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", wait, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _until_apart(process.pid)
        _run(f"ip link add {link} type veth peer name {far} netns {process.pid}")
        _run(f"ip addr add {found.host}/24 dev {link}")
        _run(f"ip -6 addr add {found.host_six}/64 dev {link} nodad")
        _run(f"ip link set {link} up")
        enter = f"nsenter --net=/proc/{process.pid}/ns/net "
        for command in (
            f"ip addr add {found.four}/24 dev {far}",
            f"ip addr add {found.other}/24 dev {far}",
            f"ip -6 addr add {found.six}/64 dev {far} nodad",
            f"ip link set {far} up",
        ):
            _run(enter + command)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield found
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        subprocess.run(f"ip link del {link}", shell=True, check=False, stderr=subprocess.DEVNULL)


def _run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def _until_apart(pid: int) -> None:
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        os.sched_yield()
