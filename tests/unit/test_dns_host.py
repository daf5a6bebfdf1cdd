"""Having this host's own name server ask a network: what is planned, and what is done."""

from __future__ import annotations

import subprocess

import pytest

from atoll.errors import NetworkError
from atoll.vm.network import hostsetup


def host(root, *, resolv="nameserver 192.0.2.1\n", files=()):
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/resolv.conf").write_text(resolv)
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_systemd_resolved_is_found_by_its_stub_or_by_the_name_service_switch(tmp_path):
    files = ("run/systemd/resolve/resolv.conf",)
    root = host(tmp_path, resolv="nameserver 127.0.0.53\n", files=files)
    assert hostsetup.server_of(root) is hostsetup.RESOLVED
    host(tmp_path, files=files)
    with pytest.raises(NetworkError, match="do not ask it"):
        hostsetup.server_of(root)
    (root / "etc/nsswitch.conf").write_text("passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n")
    assert hostsetup.server_of(root) is hostsetup.RESOLVED


def test_dnsmasq_is_found_where_it_answers_this_host(tmp_path):
    root = host(tmp_path, resolv="nameserver 127.0.0.1\n", files=("run/dnsmasq/dnsmasq.pid",))
    assert hostsetup.server_of(root) is hostsetup.DNSMASQ
    host(root, resolv="nameserver 127.0.1.1\n", files=("run/NetworkManager/dnsmasq.pid",))
    assert hostsetup.server_of(root).restart[0] == "nmcli"


def test_a_host_that_nothing_can_be_done_for_is_refused(tmp_path):
    with pytest.raises(NetworkError) as caught:
        hostsetup.server_of(host(tmp_path, files=("run/dnsmasq/dnsmasq.pid",)))
    assert caught.value.code == "network.resolver"


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (hostsetup.RESOLVED, "[Resolve]\nDNS=127.0.0.1:5553\nDomains=~atoll.internal\n"),
        (hostsetup.DNSMASQ, "server=/atoll.internal/127.0.0.1#5553\n"),
    ],
)
def test_what_is_installed_is_what_a_shell_would_do_and_is_undone(tmp_path, server, said):
    steps = hostsetup.plan(server, "atoll.internal", 5553)
    ran = []
    for _ in range(2):
        hostsetup.carry_out(steps, ran.append, tmp_path)
    file = tmp_path / server.path.relative_to("/")
    assert file.read_text() == said
    assert file.stat().st_mode & 0o777 == 0o644
    assert file.parent.stat().st_mode & 0o777 == 0o755
    assert ran == [server.restart] * 2
    assert hostsetup.installed(tmp_path) == (server,)
    shell = hostsetup.script(steps).replace(str(server.path.parent), str(tmp_path / "shell"))
    subprocess.run(["sh"], input=shell.replace(server.restart[0], "true "), text=True, check=True)
    assert (tmp_path / "shell" / server.path.name).read_text() == said
    hostsetup.carry_out(hostsetup.undo(hostsetup.installed(tmp_path)), ran.append, tmp_path)
    assert not file.exists()
    assert hostsetup.installed(tmp_path) == ()
