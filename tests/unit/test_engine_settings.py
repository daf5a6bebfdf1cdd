"""What the engine is told: daemon.json, variables, certificates, and the scripts that carry them."""

import contextlib
import json
import os
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config import load
from atoll.containers import composing, guest
from atoll.containers.settings import EngineSettings, Proxy, daemon_json, environment, trusted
from atoll.errors import ConfigError

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def rendered(**wishes):
    return json.loads(daemon_json(EngineSettings(**wishes)))


def test_without_wishes_dockerd_is_told_where_to_be():
    assert rendered() == {
        "containerd": "/run/containerd/containerd.sock",
        "default-runtime": "crun",
        "host-gateway-ip": "10.0.2.2",
        "hosts": ["unix:///run/docker.sock"],
        "insecure-registries": ["10.0.2.2/32"],
        "runtimes": {"crun": {"path": "crun"}},
    }


def test_mirrors_registries_and_proxies_have_dockerds_names():
    proxy = Proxy(http="http://p:3128", no=("localhost", ".example"))
    settings = EngineSettings(mirrors=("https://m",), insecure=("r:5000",), proxy=proxy)
    told = json.loads(daemon_json(settings))
    assert told["registry-mirrors"] == ["https://m"]
    assert told["insecure-registries"] == ["10.0.2.2/32", "r:5000"]
    direct = "localhost,.example,host.docker.internal,host.atoll.internal"
    assert told["proxies"] == {"http-proxy": "http://p:3128", "no-proxy": direct}
    assert environment(settings) == {"HTTP_PROXY": "http://p:3128", "NO_PROXY": direct}


def test_localhost_in_the_settings_is_this_host_and_not_the_machine():
    settings = EngineSettings(
        mirrors=("http://localhost:5000",),
        insecure=("localhost:5001",),
        proxy=Proxy(https="http://127.0.0.1:1"),
    )
    told = json.loads(daemon_json(settings))
    assert told["registry-mirrors"] == ["http://host.docker.internal:5000"]
    inside = ["host.docker.internal:5001", "host.atoll.internal:5001"]
    assert told["insecure-registries"] == ["10.0.2.2/32", *inside]
    assert (
        told["proxies"]["https-proxy"]
        == environment(settings)["HTTPS_PROXY"]
        == "http://host.docker.internal:1"
    )
    with pytest.raises(ConfigError) as caught:
        daemon_json(EngineSettings(mirrors=("http://[::1]:5000",)))
    assert caught.value.code == "config.engine"


def test_a_key_of_the_users_wins():
    assert rendered(mirrors=("https://m",), daemon={"registry-mirrors": [], "debug": True})["debug"] is True
    assert rendered(mirrors=("https://m",), daemon={"registry-mirrors": []})["registry-mirrors"] == []


def test_runtimes_of_the_users_come_beside_the_one_that_is_there():
    told = rendered(daemon={"default-runtime": "mine", "runtimes": {"mine": {"path": "/opt/mine"}}})
    assert told["default-runtime"] == "mine"
    assert told["runtimes"] == {"crun": {"path": "crun"}, "mine": {"path": "/opt/mine"}}
    assert rendered(daemon={"runtimes": 7})["runtimes"] == 7


@pytest.mark.parametrize("key", ["hosts", "data-root", "containerd", "tlscert"])
def test_a_key_that_would_move_the_engine_is_refused_by_name(key):
    with pytest.raises(ConfigError) as caught:
        rendered(daemon={key: "x"})
    assert caught.value.code == "config.engine"
    assert key in caught.value.message


def test_what_has_no_form_in_json_is_refused():
    with pytest.raises(ConfigError) as caught:
        rendered(daemon={"x": object()})
    assert caught.value.code == "config.engine"


def test_certificates_are_joined_and_others_refused(tmp_path):
    (tmp_path / "a").write_text(PEM)
    (tmp_path / "b").write_text("no certificate")
    (tmp_path / "c").write_bytes(b"\xff")
    one = tmp_path / "a"
    assert trusted(EngineSettings(certificates=(one, one))) == f"{PEM}{PEM}".strip()
    for wrong in ("b", "c", "none"):
        with pytest.raises(ConfigError) as caught:
            trusted(EngineSettings(certificates=(tmp_path / wrong,)))
        assert wrong in caught.value.message


def test_a_machine_has_no_more_than_the_host(monkeypatch):
    """The settings table and the engine's own settings say the same, of a large host and of a small one."""
    for gib, memory in ((64, 2048), (3, 1536)):
        there = {"SC_PHYS_PAGES": (gib << 30) // 4096, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", there.__getitem__)
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        config = load({"data_dir": "/x"}, environment={}, files=()).config
        for found in (EngineSettings(), composing.engine_settings(config)):
            assert (found.cpus, found.memory, found.disk) == (1, memory << 20, 64 << 30)
    chosen = load({"docker_cpus": 7, "docker_memory": "1G"}, environment={}, files=()).config
    assert (composing.engine_settings(chosen).cpus, composing.engine_settings(chosen).memory) == (7, 1 << 30)


def test_settings_that_do_not_fit_in_a_message_are_refused(tmp_path):
    (tmp_path / "many").write_text(PEM * 1000)
    with pytest.raises(ConfigError) as caught:
        guest.service(EngineSettings(certificates=(tmp_path / "many",)))
    assert caught.value.code == "config.engine"


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers(-9, 9) | st.booleans(), max_size=4))
def test_whatever_a_value_holds_the_shell_hands_it_on_as_it_is(wishes):
    wishes = {f"x-{key}": value for key, value in wishes.items()}
    start = guest.service(EngineSettings(daemon=wishes)).start
    first = start.index("printf %s", start.index("containerd.toml"))
    end = start.index(" > /run/atoll-engine/daemon.json", first)
    said = subprocess.run(["/bin/sh", "-c", start[first:end]], capture_output=True, check=True).stdout
    assert json.loads(said).items() >= wishes.items()


def test_the_shell_understands_the_scripts(tmp_path):
    (tmp_path / "a").write_text(PEM)
    proxy = Proxy(http="http://it's:1")
    service = guest.service(EngineSettings(proxy=proxy, certificates=(tmp_path / "a",)))
    for script in (service.start, service.stop, guest.KEEPER):
        subprocess.run(["/bin/sh", "-n", "-c", script], check=True)


def written(*paths):
    """What is in those files that are there."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.read_text())
    return found


def test_a_keeper_starts_again_what_ends_and_keeps_little_of_what_it_writes(tmp_path):
    script = guest.KEEPER.replace("/run/atoll-engine", str(tmp_path)).replace(guest.LOGS, str(tmp_path))
    script = script.replace("sleep 0.5", "wait").replace(str(1 << 20), "200")  # as if it took no time
    (tmp_path / "failures").mkdir()
    (tmp_path / "keeper").write_text(script)
    ends = f"test $(cat {tmp_path}/failures/x 2>/dev/null || echo 0) -lt 20 || : > {tmp_path}/ending"
    subprocess.run(["/bin/sh", tmp_path / "keeper", "x", "sh", "-c", f"echo ran; {ends}; exit 3"], check=True)
    assert (tmp_path / "failures/x").read_text() == "20\n"
    while len(logs := written(tmp_path / "x.log", tmp_path / "x.log.1")) < 2:  # the last writer goes on
        time.sleep(0.01)
    assert max(map(len, logs)) < 400
    assert "x has ended with status 3; it is started again" in "".join(logs)
