"""Guests that take over certificates and proxies of this host, with their own programs as the judges."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from certificates import digest_of, make_authority, server_context
from machines import at_rest, kill_all_at

from atoll import runtime
from atoll.config import load
from atoll.image import catalog
from atoll.machine import registry
from atoll.machine.editing import edited
from atoll.machine.inherited import inherited
from atoll.machine.machine import Machine
from atoll.sandbox.sandbox import Sandbox
from atoll.vm.inheriting.describing import described
from atoll.vm.inheriting.inheritance import CERTIFICATES

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

NAME = "host.atoll.internal"

#: Each line is what one program thinks of the server, or what the proxy says.
ASK = """
curl -sS https://host.atoll.internal:PORT/ || echo "curl $?"
openssl s_client -connect host.atoll.internal:PORT -verify_return_error </dev/null >/dev/null 2>&1
echo "openssl $?"
curl -sS http://nowhere.test/ || echo "proxy $?"
"""


async def answer(text, reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.0 200 OK\r\n\r\n{text}\n".encode())
        await writer.drain()
    writer.close()


@pytest.fixture
async def settings(tmp_path, paths, monkeypatch):
    """A server that only the test's authority vouches for, and a proxy, both at this host's loopback."""
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    authority = make_authority(tmp_path / "root.crt")
    context = server_context(authority, NAME)
    server = await asyncio.start_server(lambda *ends: answer("believed", *ends), "127.0.0.1", 0, ssl=context)
    proxy = await asyncio.start_server(lambda *ends: answer("by proxy", *ends), "127.0.0.1", 0)
    ports = [one.sockets[0].getsockname()[1] for one in (server, proxy)]
    monkeypatch.setenv("http_proxy", f"http://me:secret@localhost:{ports[1]}")
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "network_host_ports": ports[:1], "accel": "tcg"}
    yield load({**flags, "ca_files": [authority]}, environment={}, files=()).config
    server.close()
    proxy.close()
    kill_all_at(tmp_path)


async def asked(box, settings):
    script = ASK.replace("PORT", str(settings.network_host_ports[0]))
    return (await box.run(["sh", "-c", script], timeout=60)).stdout.splitlines()


async def test_a_sandbox_believes_whom_this_host_does_and_goes_by_its_proxy(settings):
    async with Sandbox("debian", network=True, config=settings) as box:
        assert await asked(box, settings) == ["believed", "openssl 0", "by proxy"]
    async with Sandbox("debian", network=True, ca=False, config=settings) as box:
        curl, openssl, proxy = await asked(box, settings)
        assert (curl, openssl, proxy.split()[0]) == ("curl 60", "openssl 1", "proxy")


async def test_a_machine_has_it_in_its_files_until_it_is_to_have_it_no_more(settings, tmp_path):
    dev = await Machine.create("dev", init="minimal", disk="256M", memory="256M", config=settings)
    await dev.start()
    place = dev.find().place
    assert await asked(dev, settings) == ["believed", "openssl 0", "by proxy"]
    assert "http_proxy" in await dev.files.read_text("/etc/environment")
    shown = described(inherited(place))
    assert shown["certificates"][0]["sha256"] == digest_of(tmp_path / "root.crt")
    assert "secret" not in str(shown)
    await dev.stop()
    await dev.close()
    await at_rest(place)
    with registry.change(settings.paths, "dev") as machine:
        registry.save(machine, edited(settings, machine.spec, {"ca": "no"}))
    async with Machine("dev", config=settings) as dev:
        await dev.start()
        assert (await asked(dev, settings))[:2] == ["curl 60", "openssl 1"]
        assert not await dev.files.exists(CERTIFICATES)
        assert "http_proxy" not in await dev.files.read_text("/etc/environment")
        await dev.stop(force=True)
    await at_rest(place)
