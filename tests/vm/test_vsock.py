"""AF_VSOCK between programs of the host and of a real guest: one machine, in the order in which the tests stand."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from guests import eventually, running_machine
from processes import descendants
from programs import compiled

from atoll.errors import ChannelError
from atoll.vm.state import StateError
from atoll.vsock.hello import build_hello

pytestmark = pytest.mark.vm

PORT, OPEN = 5000, 6000
CONTENT = random.Random(1).randbytes(16 << 20)
DIGEST = hashlib.sha256(CONTENT).digest()


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths):
    program = compiled(paths, Path(__file__).parents[1] / "vsock.c")
    data = tmp_path_factory.mktemp("data")
    with running_machine(
        data, paths, disk="256M", memory="256M", vsock=True, vsock_ports=[f"{OPEN}"]
    ) as machine:
        machine.copy_in(program, "/root/vsock")
        machine.run(["sh", "-c", f"/root/vsock serve {PORT} >/dev/null 2>&1 &"], check=True)
        eventually(lambda: reachable(machine))
        yield machine


def reachable(machine):
    try:
        machine.connect_vsock(PORT).close()
    except ChannelError:
        return False
    return True


def received(sock):
    data = bytearray()
    while piece := sock.recv(1 << 18):
        data += piece
    return bytes(data)


def echoed(sock, content):
    """What comes back for ``content``."""

    def send():
        sock.sendall(b"E" + content)
        sock.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    data = received(sock)
    sending.join()
    return data


def servers(machine):
    """Processes that serve the machine's device."""
    return [pid for pid, words in descendants().items() if "atoll.vsock.serving" in words]


def test_sixteen_megabytes_go_to_the_guest_and_come_back(dev):
    with dev.connect_vsock(PORT) as sock:
        assert hashlib.sha256(echoed(sock, CONTENT)).digest() == DIGEST
