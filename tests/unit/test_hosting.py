"""This host as the engine sees it."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers.hosting import NAMES, NAMING, address_inside, registry_inside
from atoll.errors import ConfigError

INSIDE = "host.docker.internal"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("http://localhost:5000", f"http://{INSIDE}:5000"),
        ("http://LOCALHOST", f"http://{INSIDE}"),
        ("https://127.0.0.1:5000/path?x=localhost", f"https://{INSIDE}:5000/path?x=localhost"),
        ("http://user:localhost@localhost:3128/", f"http://user:localhost@{INSIDE}:3128/"),
        ("http://localhost.example:5000", "http://localhost.example:5000"),
        ("http://192.0.2.1:5000/localhost", "http://192.0.2.1:5000/localhost"),
        ("http://[2001:db8::1]:80", "http://[2001:db8::1]:80"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_localhost_in_an_address_is_this_host(said, meant):
    assert address_inside(said) == meant


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("localhost:5000", tuple(f"{name}:5000" for name in NAMES)),
        ("127.0.0.1", NAMES),
        ("registry.example:5000", ("registry.example:5000",)),
        ("10.0.0.0/8", ("10.0.0.0/8",)),
        ("[2001:db8::1]:5000", ("[2001:db8::1]:5000",)),
    ],
)
def test_a_registry_on_this_host_goes_by_both_its_names(said, meant):
    assert registry_inside(said) == meant


@pytest.mark.parametrize("said", ["http://[::1]:5000", "http://127.0.0.2:80/x"])
def test_what_the_guest_cannot_reach_of_the_loopback_is_refused(said):
    with pytest.raises(ConfigError) as caught:
        address_inside(said)
    assert (caught.value.code, "127.0.0.1" in caught.value.hint) == ("config.engine", True)
    with pytest.raises(ConfigError):
        registry_inside(said.partition("//")[2].partition("/")[0])


@given(st.text())
def test_any_other_address_stays_as_it_is(text):
    if "localhost" not in text.lower() and "127." not in text and "::" not in text:
        assert address_inside(text) == text
        assert registry_inside(text) == (text,)


def test_the_guest_knows_this_hosts_names_once(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n")
    script = NAMING.replace("/etc/hosts", str(hosts))
    for _ in range(2):
        subprocess.run(["/bin/sh", "-eu", "-c", script], check=True)
    assert hosts.read_text().splitlines()[1:] == [f"10.0.2.2 {name}" for name in NAMES]
