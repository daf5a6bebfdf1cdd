"""QEMU's monitor after commands that nobody waited for: their answers are skipped, and not a byte more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket

import pytest

from atoll.errors import BootError
from atoll.hypervisor.qemu.backend import QemuVm
from atoll.hypervisor.qemu.orders import orders
from atoll.hypervisor.qemu.qmp import Monitor

pytestmark = [pytest.mark.anyio]

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}
DONE = {"return": {}}
REFUSED = {"error": {"class": "GenericError", "desc": "it is no state"}}


def event(name):
    return {"event": name, "data": {"status": "active"}, "timestamp": {"seconds": 1, "microseconds": 2}}


def lines(*said):
    return b"".join(json.dumps(one).encode() + b"\r\n" for one in said)


class Qemu:
    """The other end: what it says first is given, then it answers each command by its name."""

    def __init__(self, sock):
        self._sock = sock
        self.asked = []

    async def serve(self):
        reader, writer = await asyncio.open_connection(sock=self._sock)
        with contextlib.closing(writer):
            while data := await reader.read(4096):
                command = json.loads(data)  # no line: the client ends none, and waits for each answer
                self.asked.append(command["execute"])
                known = {"id": command["id"]} if "id" in command else {}
                writer.write(lines({"return": command["execute"], **known}))


@contextlib.asynccontextmanager
async def connected(count):
    """A monitor that was given so many orders, and the end that plays QEMU."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    monitor = Monitor(ours, orders=count)
    try:
        yield monitor, theirs
    finally:
        theirs.close()
        await monitor.close()


async def test_orders_are_lines_behind_the_one_that_opens_the_session():
    written = orders(("migrate-incoming", {"uri": "fd:9"}), ("cont", {}))
    assert [json.loads(line) for line in written.splitlines()] == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "migrate-incoming", "arguments": {"uri": "fd:9"}},
        {"execute": "cont", "arguments": {}},
    ]
    assert written.endswith(b"\n")


SAID = (GREETING, DONE, event("MIGRATION"), DONE, event("RESUME"), event("STOP"), DONE)


async def test_answers_may_come_in_any_two_pieces():
    said = lines(*SAID)
    for cut in range(len(said) + 1):
        async with connected(3) as (monitor, theirs):
            theirs.send(said[:cut])
            asking = asyncio.create_task(monitor.execute("query-status"))
            while unread(monitor):  # noqa: ASYNC110 - only the socket tells
                await asyncio.sleep(0)
            theirs.send(said[cut:])
            serving = asyncio.create_task(Qemu(theirs).serve())
            assert await asking == "query-status"
            await monitor.close()
            await serving


def unread(monitor):
    """Whether there is something that the monitor has not read yet."""
    with contextlib.suppress(BlockingIOError):
        return bool(monitor._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


async def test_what_follows_the_last_answer_is_left_for_the_session():
    heard = []
    async with connected(2) as (monitor, theirs):
        monitor.listen(lambda name, _: heard.append(name))
        theirs.send(
            lines(GREETING, event("BEFORE"), DONE, event("BETWEEN"), DONE, event("AFTER"), event("LAST"))
        )
        qemu = Qemu(theirs)
        serving = asyncio.create_task(qemu.serve())
        assert await monitor.execute("query-status") == "query-status"
        assert await monitor.execute("query-name") == "query-name"
        assert heard == ["AFTER", "LAST"]
        assert qemu.asked == ["query-status", "query-name"]  # the session was opened by the orders
        await monitor.close()
        await serving


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (lines(GREETING, DONE, REFUSED), "it is no state"),
        (lines(GREETING, DONE, event("STOP")), "ended"),
        (lines(GREETING, DONE)[:-3], "ended"),
        (b"", "ended"),
        (lines(GREETING) + b"{\r\n", "truncated"),
        (lines(GREETING) + b"\xff\xfe\r\n", "malformed"),
        (lines(GREETING, []), "object"),
        (lines(GREETING, 5), "object"),
        (lines(GREETING, {"error": "text"}), "object"),
    ],
)
async def test_what_is_no_answer_is_an_error_and_stays_one(said, why):
    async with connected(3) as (monitor, theirs):
        theirs.send(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(BootError, match=why) as caught:
            await monitor.execute("query-status")
        assert caught.value.stage == "spawn"
        assert monitor.failed
        with pytest.raises(BootError, match="did not answer"):
            await monitor.execute("query-status")


async def test_without_orders_the_session_is_opened_as_usual():
    async with connected(0) as (monitor, theirs):
        theirs.send(lines(GREETING))
        qemu = Qemu(theirs)
        serving = asyncio.create_task(qemu.serve())
        assert await monitor.execute("query-status") == "query-status"
        assert qemu.asked == ["qmp_capabilities", "query-status"]
        await monitor.close()
        await serving


async def test_a_qemu_that_ended_before_it_was_told_anything_is_nobodys_error():
    """Whoever waits for the VM learns of its end and its last words."""
    ours, theirs = socket.socketpair()
    theirs.close()
    channel, peer = socket.socketpair()
    peer.close()
    child = type("Ended", (), {"close": lambda _: None})()
    reads, write = os.pipe()
    os.close(write)
    console, write = os.pipe()
    os.close(write)
    from atoll.hypervisor.port import Capture

    vm = QemuVm(child, channel=channel, console=Capture(console), diagnostics=Capture(reads), qmp=ours)
    vm.orders = (("cont", {}),)
    vm.proceed()
    vm.discard()
