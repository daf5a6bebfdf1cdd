"""``atoll capture`` and ``atoll network shape``, of a machine whose card is a namespace's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import msgspec
import pytest
from machines import enter, until
from plugged import plugged_guest, run

from atoll import store
from atoll.machine import registry
from atoll.network import pcapng
from atoll.paths import Paths

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


class Cli:
    """Commands of a user whose machine ``dev`` is a guest that is plugged in."""

    def __init__(self, data):
        self.environment = {**os.environ, "ATOLL_DATA_DIR": str(data), "ATOLL_CACHE_DIR": str(data)}

    async def start(self, *words, **rest):
        argv = (sys.executable, "-m", "atoll", *map(str, words))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **rest}
        return await asyncio.create_subprocess_exec(*argv, env=self.environment, **pipes)

    async def __call__(self, *words):
        process = await self.start(*words)
        out, error = await process.communicate()
        return process.returncode, out.decode(), error.decode()


@contextlib.asynccontextmanager
async def machine(tmp_path):
    enter(tmp_path)
    paths = Paths(tmp_path, tmp_path)
    owner = registry.find(paths, "dev").spec.id
    async with asyncio.timeout(60), plugged_guest(paths.network("default"), owner=owner) as there:
        yield Cli(tmp_path), there.guest
    await until(lambda: not store.is_held(paths.network("default").lock))


PING = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'hello', ('10.0.2.2', 9))
"""


async def pinging(guest, process):
    """Have the guest send something again and again until a command has ended; what that has said."""
    ending = asyncio.create_task(process.communicate())
    while not ending.done():
        await run(guest, PING)
    out, error = await ending
    return process.returncode, (out or b"").decode(), error.decode()


async def test_packets_are_shown_and_saved_from_the_command_line(tmp_path):
    file = tmp_path / "x.pcapng"
    async with machine(tmp_path) as (atoll, guest):
        status, out, error = await pinging(guest, await atoll.start("capture", "dev", "--count", 3))
        assert (status, len(out.splitlines())) == (0, 3), error
        assert "UDP: length 5" in out
        assert " frames" in error
        status, out, _ = await pinging(guest, await atoll.start("capture", "dev", "--json", "--count", 1))
        assert (status, msgspec.json.decode(out)["machine"]) == (0, "dev")
        status, out, error = await pinging(
            guest, await atoll.start("capture", "dev", "-w", file, "--duration", "0.2s")
        )
        assert (status, out) == (0, ""), error
        blocks = pcapng.Blocks().feed(file.read_bytes())
        counted = pcapng.parse_statistics(blocks[-1]).received
        assert f"{counted} frames\n" == error
        assert sum(pcapng.parse_packet(block) is not None for block in blocks) == counted
        assert (await atoll("capture", "dev", "-w", tmp_path / "no" / "such"))[0] == 1


async def test_a_capture_that_is_interrupted_is_complete_and_one_whose_reader_goes_ends(tmp_path):
    async with machine(tmp_path) as (atoll, guest):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = await atoll.start("capture", "dev", "-w", "-")
            data = await process.stdout.read(12)
            await run(guest, PING)
            process.send_signal(number)
            rest, error = await process.communicate()
            assert process.returncode == 0
            found = pcapng.parse_statistics(pcapng.Blocks().feed(data + rest)[-1])
            assert error.decode() == f"{found.received} frames\n"
        read, write = os.pipe()
        process = await atoll.start("capture", "dev", stdout=write)
        os.close(write)
        os.close(read)
        status, _, error = await pinging(guest, process)
        assert (status, error) == (141, "")


async def test_a_capture_tells_when_the_card_is_pulled(tmp_path):
    async with machine(tmp_path) as (atoll, guest):
        process = await atoll.start("capture", "dev")
        ending = asyncio.create_task(process.stdout.readline())
        while not ending.done():
            await run(guest, PING)
    _, error = await process.communicate()
    assert process.returncode == 0
    assert "dev: its network card was pulled" in error.decode()
    status, _, error = await Cli(tmp_path)("capture", "dev")
    assert (status, "error[network.unplugged]: dev: " in error) == (1, True)


async def test_a_link_is_shaped_from_the_command_line(tmp_path):
    async with machine(tmp_path) as (atoll, guest):
        shape = ("network", "shape", "dev")
        assert await atoll(*shape, "--latency", "20ms", "--rate", "1Mbit", "--direction", "out") == (
            0,
            "",
            "",
        )
        await run(guest, PING)
        status, out, _ = await atoll(*shape)
        assert status == 0
        _, inward, outward = out.splitlines()
        assert inward.split() == ["in", "as", "it", "is"]
        assert "latency 20ms, rate 1Mbit" in outward
        lanes = msgspec.json.decode((await atoll(*shape, "--json"))[1])
        assert (lanes["inward"], lanes["outward"]["shape"]["latency"]) == (None, 0.02)
        assert lanes["outward"]["passed"]
        assert await atoll(*shape, "--off") == (0, "", "")
        assert (await atoll(*shape))[1].count("as it is") == 2
        for words in (("--loss", "x"), ("--off", "--loss", "1%")):
            status, _, error = await atoll(*shape, *words)
            assert (status, error.startswith("error[usage.shape]")) == (2, True)
