"""What a guest's own programs make of the network, on a link as it is and on a bad one."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atoll import runtime
from atoll.config import load
from atoll.image import catalog
from atoll.sandbox.sandbox import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: A repository of Debian's with one package, as `apt-ftparchive` writes it.
PACKAGES = """\
Package: island
Version: 1.2
Architecture: all
Maintainer: Nobody <nobody@localhost>
Filename: ./island_1.2_all.deb
Size: 4
SHA256: {digest}
Description: of a test
"""

CONFIGURE = """
mkdir -p /etc/apt/sources.list.d && : > /etc/apt/sources.list
rm -f /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] http://host.atoll.internal:{port}/ ./' > /etc/apt/sources.list.d/test.list
"""


#: Waits until the guest's kernel has an address of IPv6, and has made sure that nobody else has it.
MAKE_AN_ADDRESS = """
for turn in $(seq 100); do
    ip -6 -o addr show dev eth0 scope global -tentative | grep -q inet6 && exit; sleep 0.1
done; exit 1
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def files(tmp_path):
    """A directory, and the port of this host at which a web server has it."""
    place = tmp_path / "files"
    place.mkdir()
    (place / "large").write_bytes(bytes(range(256)) * 8192)
    packages = PACKAGES.format(digest=hashlib.sha256(b"none").hexdigest()).encode()
    (place / "Packages.gz").write_bytes(gzip.compress(packages))
    (place / "Packages").write_bytes(packages)
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(place))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield place, server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path, paths, files):
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "network_host_ports": [files[1]], "accel": "tcg"}
    return load(flags, environment={}, files=()).config


async def said(box, command):
    result = await box.run(["bash", "-c", command])
    assert not result.code, result.stderr
    return result.stdout


async def test_a_guest_s_own_programs_on_a_good_link_and_on_a_bad_one(settings, files, tmp_path):
    place, port = files
    capture_file = tmp_path / "tools.pcapng"
    url = f"http://host.atoll.internal:{port}/large"
    digest = hashlib.sha256((place / "large").read_bytes()).hexdigest()
    async with Sandbox("debian", network=True, config=settings) as box:
        async with box.capture(capture_file) as capture:
            await said(box, CONFIGURE.format(port=port))
            await asyncio.gather(said(box, MAKE_AN_ADDRESS), said(box, "apt-get -q update"))
            assert "1.2" in await said(box, "apt-cache madison island")
            for gateway in ("host.atoll.internal", "-6 host.atoll.internal"):
                assert " 0% packet loss" in await said(box, f"ping -c 2 -i 0.2 -W 5 {gateway}")
            for version in ("-4", "-6"):
                assert digest in await said(box, f"curl {version} -sSf {url} | sha256sum")
            assert "host.atoll.internal" in await said(box, "getent ahosts host.atoll.internal")
            assert (await box.run(["curl", "-sS", "http://host.atoll.internal:1/"])).code == 7
        assert capture.frames
        assert not capture.dropped
        assert capture_file.stat().st_size > 2 * (place / "large").stat().st_size
        lanes = await box.shape(latency="30ms", loss="1%", rate="50Mbit")
        assert lanes.inward.shape == lanes.outward.shape
        assert digest in await said(box, f"curl -sSf {url} | sha256sum")
        slowest = await said(box, "ping -c 3 -i 0.2 -W 5 host.atoll.internal; true")
        assert float(slowest.rpartition(" = ")[2].split("/")[0]) >= 60.0
        assert (await box.shape()).inward is None
        assert digest in await said(box, f"curl -sSf {url} | sha256sum")
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    wrong = '_ws.malformed || tcp.checksum.status == "Bad" || udp.checksum.status == "Bad"'
    checks = ("-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")
    argv = ["tshark", "-n", *checks, "-r", str(capture_file), "-Y", wrong]
    told = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True)
    assert told.stdout == ""
