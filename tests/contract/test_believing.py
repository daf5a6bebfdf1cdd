"""Certificates of this host in a guest's files: the real agent, whose root is a directory."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket

import pytest
from certificates import hash_of, make_authority

from atoll import process
from atoll.events import Warned
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture
from atoll.vm.inheriting.certificates import certificates_of
from atoll.vm.inheriting.giving import give
from atoll.vm.inheriting.inheritance import CERTIFICATES, Inheritance

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("no_leftovers"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

OTHERS = "-----BEGIN CERTIFICATE-----\nothers\n-----END CERTIFICATE-----\n"
PROXIES = {"http_proxy": "http://host.atoll.internal:1", "no_proxy": "a"}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "etc/ssl/certs").mkdir(parents=True)
    (root / "etc/apt/apt.conf.d").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/environment").write_text("LANG=C\n")
    (root / "etc/ssl/certs/ca-certificates.crt").write_text(OTHERS)
    shutil.copy(agent_path(host_architecture()), root / "agent")
    return root


@pytest.fixture
async def agent(root):
    ours, theirs = socket.socketpair()
    with theirs:
        enter = 'mount --bind /proc "$1/proc" && exec chroot "$1" /agent --fd "$2"'
        argv = ["unshare", "--mount", "sh", "-c", enter, "sh", str(root), str(theirs.fileno())]
        child = process.spawn(argv, pass_fds=[theirs.fileno()])
    channel = Channel(ours)
    try:
        async with asyncio.timeout(60):
            await channel.ready()
            yield Agent(channel)
    finally:
        channel.close()
        await end(child)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """Three, two of which have one subject."""
    place = tmp_path_factory.mktemp("ca")
    return [make_authority(place / f"{name}.crt", f"/CN={name[0]}") for name in ("a1", "a2", "b")]


def certificates(authorities):
    return tuple(one for path in authorities for one in certificates_of(path.read_text()))


def files(root):
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted((root / "etc").rglob("*"))
        if path.is_file()
    } | ({"anchor": (root / CERTIFICATES[1:]).read_text()} if (root / CERTIFICATES[1:]).exists() else {})


async def given(agent, inherited, **rest):
    said = []
    await give(agent, inherited, "box", said.append, **rest)
    assert said == []


async def test_what_is_given_is_there_once_and_is_taken_back_without_a_trace(agent, root, authorities):
    before = files(root)
    a1, a2, b = certificates(authorities)
    inherited = Inheritance((a1, a2, b), PROXIES)
    for _ in range(2):
        await given(agent, inherited, systemd=False)
        bundle = (root / "etc/ssl/certs/ca-certificates.crt").read_text()
        assert bundle == OTHERS + a1.pem + a2.pem + b.pem
        assert (root / CERTIFICATES[1:]).read_text() == a1.pem + a2.pem + b.pem
    alike = hash_of(authorities[0])
    assert (root / f"etc/ssl/certs/{alike}.0").read_text() == a1.pem
    assert (root / f"etc/ssl/certs/{alike}.1").read_text() == a2.pem
    assert 'Proxy "http://host.atoll.internal:1"' in (root / "etc/apt/apt.conf.d/90atoll-host").read_text()
    await given(agent, Inheritance((a2,)))
    assert (root / "etc/ssl/certs/ca-certificates.crt").read_text() == OTHERS + a2.pem
    assert (root / f"etc/ssl/certs/{alike}.0").read_text() == a2.pem
    assert not (root / f"etc/ssl/certs/{alike}.1").exists()
    await given(agent, Inheritance())
    assert files(root) == before


async def test_a_bundle_that_was_made_anew_has_them_again(agent, root, authorities):
    inherited = Inheritance(certificates(authorities[:1]))
    await given(agent, inherited)
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.write_text(OTHERS)
    await given(agent, inherited)
    assert bundle.read_text() == OTHERS + inherited.certificates[0].pem
    (root / CERTIFICATES[1:]).write_bytes(
        b"\xff-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    )
    await given(agent, inherited)
    assert bundle.read_text() == OTHERS + inherited.certificates[0].pem


async def test_a_guest_of_another_family_has_them_where_it_looks(agent, root, authorities):
    (root / "etc/ssl/certs/ca-certificates.crt").unlink()
    bundle = root / "etc/pki/tls/certs/ca-bundle.crt"
    bundle.parent.mkdir(parents=True)
    bundle.write_text("# \xe9\n")
    (one,) = certificates(authorities[2:])
    await given(agent, Inheritance((one,)))
    anchor = root / "etc/pki/ca-trust/source/anchors/atoll-host.crt"
    assert (bundle.read_text(), anchor.read_text()) == (f"# \xe9\n{one.pem}", one.pem)
    await given(agent, Inheritance())
    assert bundle.read_text() == "# \xe9\n"
    assert not anchor.exists()


async def test_a_guest_without_a_bundle_gets_one(agent, root, authorities):
    shutil.rmtree(root / "etc/ssl")
    (one,) = certificates(authorities[2:])
    await given(agent, Inheritance((one,)))
    assert (root / "etc/ssl/certs/ca-certificates.crt").read_text() == one.pem


async def test_a_guest_that_cannot_be_given_it_is_told_with_the_stage(agent, root, authorities):
    shutil.rmtree(root / "etc/ssl")
    (root / "etc/ssl").write_text("in the way")
    said = []
    await give(agent, Inheritance(certificates(authorities[:1])), "box", said.append)
    assert [type(event) for event in said] == [Warned]
    assert "(certificates)" in said[0].message
