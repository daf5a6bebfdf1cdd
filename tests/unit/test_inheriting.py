"""What guests take over of this host: certificates and proxies, as they are found and as they are written."""

from __future__ import annotations

import base64
import contextlib

import pytest
from certificates import digest_of, hash_of, make_authority
from hypothesis import given
from hypothesis import strategies as st

from atoll.config import load
from atoll.containers import composing
from atoll.errors import ConfigError
from atoll.vm.inheriting import rendering
from atoll.vm.inheriting.certificates import certificates_of
from atoll.vm.inheriting.describing import described
from atoll.vm.inheriting.found import found
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.inheriting.looking import is_worthwhile
from atoll.vm.inheriting.proxies import inside, redacted

GUEST = {"host": "host.atoll.internal", "network": "10.0.2.0/24", "domain": "atoll.internal"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("ca") / "ca.crt", "/C=DE/O=Tëst  Werke/CN= Root  of Tëst ")


def test_a_certificate_is_called_and_hashed_as_openssl_does(authority):
    (one,) = certificates_of(authority.read_text())
    assert (one.hash, one.sha256) == (hash_of(authority), digest_of(authority))
    assert one.name.strip() == "Root  of Tëst"
    assert certificates_of(f"noise\n{one.pem}more{one.pem}") == (one,)
    assert one.pem == authority.read_text()


def test_what_is_no_certificate_is_refused(authority):
    text = authority.read_text()
    assert certificates_of("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n") == ()
    lines = text.splitlines()
    for broken in (lines[0], *lines[2:]), (lines[0], lines[1], lines[-1]):
        with pytest.raises(ValueError, match="certificate"):
            certificates_of("\n".join(broken))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_none(data):
    body = base64.encodebytes(b"\x30\x82" + len(data).to_bytes(2) + data).decode()
    with contextlib.suppress(ValueError):
        certificates_of(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")


def test_certificates_are_found_where_administrators_put_them(tmp_path, authority):
    assert not is_worthwhile((), {}, tmp_path)
    place = tmp_path / "usr/local/share/ca-certificates/company"
    place.mkdir(parents=True)
    (place / "root.crt").write_text(authority.read_text())
    (place / "notes.txt").write_text("nothing")
    (place / "bad.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    warned = []
    assert is_worthwhile((), {}, tmp_path)
    inherited = found((), **GUEST, environment={}, root=tmp_path, emit=warned.append)
    assert [one.sha256 for one in inherited.certificates] == [digest_of(authority)]
    assert [event.message for event in warned] == [
        f"guests do not get the certificate {place / 'bad.crt'}: a certificate is cut off"
    ]


def test_a_variable_names_certificates_unless_it_names_the_distributions_own(tmp_path, authority):
    bundle = tmp_path / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True)
    bundle.write_text(authority.read_text())
    for variable, count in ((bundle, 0), (authority, 1), (tmp_path / "missing", 0), ("relative", 0)):
        variables = {"SSL_CERT_FILE": str(variable), "REQUESTS_CA_BUNDLE": str(variable)}
        assert len(found((), **GUEST, environment=variables, root=tmp_path).certificates) == count


def test_a_file_that_the_settings_name_must_be_one(tmp_path, authority):
    assert len(found((authority,), **GUEST, environment={}, root=tmp_path).certificates) == 1
    (tmp_path / "empty").touch()
    for wrong in (tmp_path / "empty", tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError) as caught:
            found((wrong,), **GUEST, environment={}, root=tmp_path)
        assert caught.value.code == "config.ca"


def test_a_proxy_at_the_loopback_is_the_hosts_with_its_port_opened():
    given = {
        "http_proxy": "http://me:pw@localhost:3128/",
        "HTTPS_PROXY": "127.0.0.1:3129",
        "no_proxy": "a, b",
    }
    proxies = inside(given, **GUEST)
    assert proxies.ports == (3128, 3129)
    assert proxies.variables["http_proxy"] == "http://me:pw@host.atoll.internal:3128/"
    assert proxies.variables["HTTPS_PROXY"] == proxies.variables["https_proxy"] == "host.atoll.internal:3129"
    direct = "a,b,localhost,127.0.0.1,::1,atoll.internal,.atoll.internal,10.0.2.0/24"
    assert proxies.variables["NO_PROXY"] == direct


def test_other_proxies_stay_as_they_are_and_small_letters_win():
    given = {
        "http_proxy": "http://proxy.corp:80",
        "HTTP_PROXY": "http://other",
        "ALL_PROXY": "socks5h://[::1]:1",
    }
    proxies = inside(given, **GUEST)
    assert proxies.variables["HTTP_PROXY"] == "http://proxy.corp:80"
    assert proxies.variables["all_proxy"] == "socks5h://host.atoll.internal:1"
    assert proxies.ports == (1,)


def test_a_proxy_out_of_reach_is_left_out_and_told_without_its_password():
    for url in (
        "http://me:secret@127.0.0.53:3128",
        "http://a:secret@localhost:99999",
        "http://secret@localhost:",
    ):
        proxies = inside({"http_proxy": url}, **GUEST)
        assert not proxies.variables
        assert proxies.unreachable
        assert "secret" not in str(proxies.unreachable)


def test_without_proxies_nothing_is_said_of_exceptions():
    assert inside({"no_proxy": "a"}, **GUEST).variables == {}


@given(st.text(max_size=60))
def test_any_value_of_a_variable_is_a_proxy_or_none(text):
    proxies = inside({"http_proxy": text}, **GUEST)
    assert all(0 < port < 65_536 for port in proxies.ports)
    assert "http_proxy" not in proxies.variables or "\n" not in proxies.variables["http_proxy"]


def test_nobody_is_shown_a_password(authority):
    variables = inside({"http_proxy": "http://me:p%40ss@w@proxy:1"}, **GUEST).variables
    shown = described(Inheritance(certificates_of(authority.read_text()), variables))
    assert shown["proxies"]["http_proxy"] == "http://***@proxy:1"
    assert shown["certificates"][0]["sha256"] == digest_of(authority)
    assert redacted("proxy:3128") == "proxy:3128"


def test_a_part_of_a_file_is_ours_and_comes_and_goes():
    before = "LANG=C"
    one = rendering.marked(before, {"http_proxy": "http://a"})
    assert 'http_proxy="http://a"' in one
    two = rendering.marked(one, {"http_proxy": "http://b"})
    assert "http://a" not in two
    assert rendering.marked(two, {}) == "LANG=C\n"
    assert rendering.marked("", {}) == ""


def test_each_program_is_told_of_proxies_as_it_wants():
    variables = inside({"http_proxy": "http://p'q:1", "no_proxy": "corp,.corp,10.0.0.0/8"}, **GUEST).variables
    assert "export http_proxy='http://p'\\''q:1'\n" in rendering.profile(variables)
    apt = rendering.apt(variables)
    assert 'Acquire::http::Proxy "http://p\'q:1";' in apt
    assert 'Acquire::http::Proxy::corp "DIRECT";' in apt
    assert "10.0.0.0/8" not in apt
    assert '"http_proxy=http://p\'q:1"' in rendering.systemd(variables)
    assert rendering.profile({}) == rendering.apt({}) == rendering.systemd({}) == ""


def test_a_bundle_has_what_is_wanted_once_and_nothing_of_before():
    assert rendering.with_certificates("a\nb", [], ["c\n", "a\n"]) == "a\nb\nc\n"
    assert rendering.with_certificates("a\nb\nc\n", ["c\n", "a\n"], ["a\n", "d\n"]) == "a\nb\nd\n"
    assert rendering.with_certificates("", [], ["c\n"]) == "c\n"


def test_the_engine_goes_by_this_hosts_proxies_unless_it_has_settings_of_its_own(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://corp:1")
    monkeypatch.setenv("http_proxy", "http://[::1]:1")
    monkeypatch.setenv("no_proxy", "a, b")
    told = {flag: load({"ca": flag}, environment={}, files=()).config for flag in (True, False)}
    proxy = composing.engine_settings(told[True]).proxy
    assert (proxy.http, proxy.https, proxy.no) == ("", "http://corp:1", ("a", "b"))
    assert not composing.engine_settings(told[False]).proxy.https
    own = load({"docker_proxy": "http://own"}, environment={}, files=()).config
    assert composing.engine_settings(own).proxy.https == "http://own"
