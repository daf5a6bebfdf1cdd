"""AF_VSOCK between the host and a real guest: one machine, in the order in which the tests stand."""

from __future__ import annotations

import contextlib
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
from programs import compiled

from atoll import blocking
from atoll.errors import ChannelError, UsageError
from atoll.vm.state import StateError
from atoll.vsock.hello import LONGEST, build_hello, is_accepted

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


def answers(machine):
    try:
        return machine.run(["true"]).code == 0
    except ChannelError:
        return False


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


def served_by(machine):
    """Processes that are the machine's device."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if b"atoll.vsock.serving" in words and os.readlink(f"/proc/{entry}/cwd") == str(place(machine)):
                found.append(int(entry))
    return found


def place(machine):
    return machine.find().place.directory


@contextlib.contextmanager
def listening(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(30)
        yield listener


def test_sixteen_megabytes_go_to_the_guest_and_come_back(dev):
    with dev.connect_vsock(PORT) as sock:
        assert hashlib.sha256(echoed(sock, CONTENT)).digest() == DIGEST


def test_a_program_of_the_guest_reaches_a_server_of_the_host_at_a_port_that_is_open(dev):
    dev.run(["sh", "-c", "head -c 16777216 /dev/urandom > /root/content"], check=True)
    with listening(dev.find().place.vsock_port(OPEN)) as listener:
        client = dev.start_process(["sh", "-c", f"/root/vsock connect {OPEN} < /root/content | sha256sum"])
        sock, _ = listener.accept()
        with sock:
            content = received(sock)
            sock.sendall(content[::-1])
        reversed_digest = hashlib.sha256(content[::-1]).hexdigest()
        assert client.stdout.read_all().decode().split()[0] == reversed_digest
        client.wait()
    wanted = dev.run(["sha256sum", "/root/content"], check=True).stdout.split()[0]
    assert hashlib.sha256(content).hexdigest() == wanted


def test_no_other_port_of_the_host_is_reached(dev):
    assert dev.run(["sh", "-c", f"/root/vsock connect {OPEN + 1} </dev/null"]).returncode == 4
    assert dev.run(["sh", "-c", f"/root/vsock connect {OPEN} </dev/null"]).returncode == 4  # nobody listens


def test_a_port_where_nobody_listens_in_the_guest_is_refused(dev):
    with pytest.raises(ChannelError) as caught:
        dev.connect_vsock(PORT + 1)
    assert caught.value.code == "channel.refused"


def test_the_command_connects_its_input_and_output(dev, environment):
    variables = {**environment, "ATOLL_DATA_DIR": str(place(dev).parent.parent)}
    command = [sys.executable, "-m", "atoll", "vsock", "dev", f"{PORT}"]
    ended = subprocess.run(
        command, check=False, input=b"Eover the wire", capture_output=True, env=variables, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"over the wire", b"")


def test_a_snapshot_is_made_beside_it_and_gone_back_to(dev):
    with dev.connect_vsock(PORT) as before:
        dev.snapshot("one")
        with contextlib.suppress(ConnectionError):
            assert before.recv(1) == b""  # connections end
        with dev.connect_vsock(PORT) as sock:
            assert echoed(sock, b"after the snapshot") == b"after the snapshot"
    dev.restore("one")
    dev.start()
    with dev.connect_vsock(PORT) as sock:
        assert echoed(sock, b"after going back") == b"after going back"


def test_a_device_whose_process_is_killed_is_plugged_in_again(dev):
    (killed,) = served_by(dev)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: served_by(dev) not in ([killed], []))
    eventually(lambda: reachable(dev))


def test_a_machine_whose_supervisor_is_killed_gets_another_device(dev):
    (former,) = served_by(dev)
    os.kill(dev.status().supervisor, signal.SIGKILL)
    eventually(lambda: not served_by(dev))
    eventually(lambda: answers(dev))  # what is asked in the moment of the kill may be lost
    eventually(lambda: served_by(dev) not in ([former], []))
    eventually(lambda: reachable(dev))


def test_nothing_listens_for_a_machine_that_is_at_rest(dev):
    dev.stop()
    assert served_by(dev) == []
    assert not dev.find().place.vsock.exists()
    with pytest.raises(StateError) as caught:
        dev.connect_vsock(PORT)
    assert caught.value.code == "state.vsock"


def test_a_sandbox_talks_both_ways_and_leaves_nothing(config, paths, tmp_path):
    program = compiled(paths, Path(__file__).parents[1] / "vsock.c")
    with (
        listening(tmp_path / "served") as listener,
        blocking.Sandbox(
            config=config, vsock=tmp_path / "clients", vsock_ports={OPEN: tmp_path / "served"}, memory="256M"
        ) as box,
    ):
        box.files.write("/root/vsock", program.read_bytes(), mode=0o755)
        with box.start(["/root/vsock", "connect", f"{OPEN}"], stdin=True) as client:
            sock, _ = listener.accept()
            with sock:
                client.write(b"from the sandbox")
                client.close_stdin()
                assert received(sock) == b"from the sandbox"
            client.wait()
        box.run(["sh", "-c", f"/root/vsock serve {PORT} >/dev/null 2>&1 &"], check=True)
        eventually(lambda: reachable(box))
        with box.connect_vsock(PORT) as sock:
            assert echoed(sock, b"to the sandbox") == b"to the sandbox"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "clients"))
            sock.sendall(build_hello(PORT))
            assert is_accepted(sock.recv(LONGEST))
        with pytest.raises(UsageError) as caught:
            box.fork()
        assert caught.value.code == "usage.vsock"
    assert not (tmp_path / "clients").exists()
