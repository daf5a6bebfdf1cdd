"""What a snapshot of a VM that runs on needs, with real files in memory and a real userfaultfd."""

from __future__ import annotations

import asyncio
import errno
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from test_stream import BLOCKS, PAGE, SIZES, of_one_that_runs_on, page, section, whole

from atoll.errors import BootError
from atoll.hypervisor.qemu import background, memory, migrating, protection
from atoll.hypervisor.qemu.background import places_of
from atoll.hypervisor.qemu.qmp import Monitor
from atoll.hypervisor.qemu.stream import StreamError
from atoll.hypervisor.qemu.unpacking import unpack

#: What the guest's RAM is to QEMU, as ``info mtree -f`` has it.
TREE = """FlatView #1\r
 AS "memory", root: system\r
  0000000000000000-000000000009ffff (prio 0, ram): ram\r
  00000000000a0000-00000000000bffff (prio 1, i/o): ram-like\r
  0000000000100000-000000007fffffff (prio 0, ram): ram @0000000000100000\r
  00000000000e0000-00000000000fffff (prio 0, rom): ram @00000000000e0000\r
  0000000100000000-000000017fffffff (prio 0, ram): ram @0000000080000000\r
  0000000180000000-00000001ffffffff (prio 0, ram): ramdisk\r
"""

PROTECTED = """
import ctypes, fcntl, mmap, struct, sys
size = 8 * mmap.PAGESIZE
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = bytes(size)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(ctypes.c_long({number}), ctypes.c_long(0))
if fd < 0:
    sys.exit("no userfaultfd")
fcntl.ioctl(fd, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))
fcntl.ioctl(fd, 0xC020AA00, struct.pack("=QQQQ", start, size, 2, 0))
fcntl.ioctl(fd, 0xC018AA06, struct.pack("=QQQ", start, size, 1))
print("protected", flush=True)
area[0] = area[size - 1] = 1
print("written", flush=True)
sys.stdin.read()
"""


def memory_file(stack, name="test"):
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def test_places_of_ram_are_found_as_qemu_tells_them():
    assert places_of(TREE, "ram") == {
        (0, 0x9FFFF, 0),
        (0x100000, 0x7FFFFFFF, 0x100000),
        (0x100000000, 0x17FFFFFFF, 0x80000000),
    }


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of userfaultfd(2) is another one")
def test_protection_is_taken_off_another_process_and_it_goes_on():
    words = [sys.executable, "-c", PROTECTED.format(number=323)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            if child.stdout.readline() != b"protected\n":
                pytest.skip(child.stderr.read().decode())
            protection.require_reach(child.pid)
            assert list(protection._protected(child.pid))
            protection.take_off(child.pid)
            assert child.stdout.readline() == b"written\n"
            assert not list(protection._protected(child.pid))
            protection.take_off(child.pid)
        finally:
            child.kill()


def test_one_that_was_killed_and_that_nobody_has_waited_for_is_gone():
    with subprocess.Popen(["sleep", "60"]) as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            protection.take_off(child.pid)


class Peer:
    """Answers to a real monitor as QEMU does, and says what it is told to before or after an answer."""

    def __init__(self, sock, before, after):
        self.heard = []
        self._sock = sock
        self._say = {"before": before, "after": after}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def join(self):
        self._thread.join()

    def _serve(self):
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self._send({"QMP": {"version": version, "capabilities": []}})
        for order in self._orders():
            name = order["execute"]
            self.heard.append(name)
            self._tell("before", name)
            answers = {
                "query-status": {"running": False, "status": "paused"},
                "query-migrate": {"status": "failed", "error-desc": "no protection"},
            }
            named = {"id": order["id"]} if "id" in order else {}
            self._send({"return": answers.get(name, {}), **named})
            self._tell("after", name)

    def _orders(self):
        """No newline stands between them."""
        heard = ""
        while data := self._sock.recv(65_536):
            heard += data.decode()
            while heard.strip():
                try:
                    order, end = json.JSONDecoder().raw_decode(heard.lstrip())
                except json.JSONDecodeError:
                    break
                heard = heard.lstrip()[end:]
                yield order

    def _tell(self, when, name):
        for event, data in self._say[when].pop(name, ()):
            stamp = {"seconds": 1, "microseconds": 0}
            self._send({"event": event, "data": data, "timestamp": stamp})

    def _send(self, message):
        self._sock.sendall(json.dumps(message).encode() + b"\r\n")


SETUP, FAILED, COMPLETED = (("MIGRATION", {"status": name}) for name in ("setup", "failed", "completed"))
RESUME = ("RESUME", {})


async def streamed(before, after):
    """What became of a stream, whether it was written while it stood still, and what QEMU heard."""
    ours, theirs = socket.socketpair()
    with theirs:
        peer = Peer(theirs, before, after)
        monitor = Monitor(ours)
        instead = []

        async def stand_still():
            instead.append(True)

        try:
            found = await background._stream(monitor, os.getpid(), theirs.fileno(), "copy", None, stand_still)
        except BootError as error:
            found = error
        finally:
            await monitor.close()
            theirs.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(peer.join)
    return found, bool(instead), peer.heard


@pytest.mark.anyio
async def test_one_that_fails_before_it_has_the_guest_go_on_is_not_taken_for_one_that_cannot_protect():
    found, instead, heard = await streamed({"query-status": [RESUME]}, {"migrate": [SETUP, FAILED]})
    assert (found.code, instead, "cont" in heard) == ("boot.copy", False, False)


@pytest.mark.anyio
async def test_one_that_cannot_protect_is_written_down_standing_still():
    found, instead, heard = await streamed({}, {"migrate": [SETUP, FAILED]})
    assert (found.reason, instead, heard[-1]) == ("no protection", True, "cont")


@pytest.mark.anyio
async def test_one_that_is_complete_before_the_guest_goes_on_is_good(monkeypatch):
    monkeypatch.setattr(migrating, "_LOOK", 0.02)
    found, instead, heard = await streamed({"query-status": [RESUME]}, {"migrate": [SETUP, COMPLETED]})
    assert (found.reason, instead, "cont" in heard) == ("", False, False)


def test_a_process_that_is_gone_is_out_of_reach():
    with subprocess.Popen(["true"]) as child:
        child.wait()
    with pytest.raises(ProcessLookupError):
        protection.require_reach(child.pid)
    with pytest.raises(ProcessLookupError):
        protection.take_off(child.pid)


def test_holes_are_provided_as_far_as_was_asked_for():
    with ExitStack() as stack:
        whole_file, part = memory_file(stack, "test-whole"), memory_file(stack, "test-part")
        os.truncate(whole_file, 1 << 20)
        os.truncate(part, 1 << 20)
        os.pwrite(whole_file, b"content", 5000)
        memory.provide(os.getpid(), {"test-whole": None, "test-part": 1 << 16, "test-none": None})
        assert os.fstat(whole_file).st_blocks == (1 << 20) // 512
        assert os.fstat(part).st_blocks == (1 << 16) // 512
        assert os.pread(whole_file, 7, 5000) == b"content"


def test_more_than_the_host_has_is_refused_and_nothing_is_provided():
    with ExitStack() as stack:
        fd = memory_file(stack, "test-vast")
        os.truncate(fd, 1 << 50)
        with pytest.raises(OSError, match="memory") as caught:
            memory.provide(os.getpid(), {"test-vast": None})
        assert caught.value.errno == errno.ENOMEM
        assert os.fstat(fd).st_blocks == 0


def test_pieces_that_are_not_mapped_are_told_by_their_offsets():
    with ExitStack() as stack:
        fd = memory_file(stack, "test-mapped")
        size = 3 * memory.PIECE
        os.truncate(fd, size)
        area = stack.enter_context(mmap.mmap(fd, size))
        assert list(memory.unmapped(os.getpid(), "test-mapped")) == [0, memory.PIECE, 2 * memory.PIECE]
        for at in range(memory.PIECE, 2 * memory.PIECE, mmap.PAGESIZE):
            area[at] = 1
        assert list(memory.unmapped(os.getpid(), "test-mapped")) == [0, 2 * memory.PIECE]
        assert list(memory.unmapped(os.getpid(), "test-other")) == []


def unpacked(stream, wanted, **options):
    """Images by their short names, and what is left of the stream's file and in the devices."""
    with ExitStack() as stack:
        fd = memory_file(stack)
        os.write(fd, stream)
        images = {name: memory_file(stack) for name in wanted}
        devices = unpack(fd, images, **options)
        return {name: os.pread(image, 1 << 20, 0) for name, image in images.items()}, os.fstat(fd), devices


def test_a_stream_becomes_images_and_its_file_is_empty():
    pages = [("ram", 1, page(1)), ("pc.bios", 0, page(3)), (BLOCKS[2][0], 2, page(2)), ("ram", 3, b"")]
    addresses = {"ram": 0, "more": 1 << 32}
    live = of_one_that_runs_on(section(pages, last=False))
    images, left, devices = unpacked(live, ["ram", "more"], addresses=addresses)
    assert images == {"ram": bytes(PAGE) + page(1), "more": bytes(2 * PAGE) + page(2)}
    assert left.st_size == 0
    still, _, others = unpacked(whole(section(pages, last=True)), ["ram", "more"])
    assert images == still
    assert page(3) in devices
    assert len(devices) == len(others)
    assert set(SIZES) == {name for name, *_ in BLOCKS}


def test_a_stream_without_a_block_that_is_asked_for_is_refused():
    with pytest.raises(StreamError, match="no block other"):
        unpacked(whole(section([], last=True)), ["ram", "other"])
