"""What is said in registries' headers, in users' files and in errors; how long anything is tried."""

from __future__ import annotations

import base64
import email.utils
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError, RegistryError
from atoll.image.oci import documents
from atoll.image.oci.reference import parse
from atoll.image.registry.answers import refusal, said_in
from atoll.image.registry.blobs import range_start
from atoll.image.registry.challenges import Challenge, parse_challenges
from atoll.image.registry.credentials import Credentials, Keyring, files_of, keys_of
from atoll.image.registry.packed import Packed, found_form, is_compressed
from atoll.image.registry.patience import AttemptError, Patience, Retrying, pause_of, retry_after
from atoll.image.registry.places import api_host, is_lenient, places_of, said_of
from atoll.image.registry.tokens import TokenReply, Tokens, scopes_of
from atoll.registries import RegistrySettings, is_host, is_loopback, parse_registries

NOW = 1_700_000_000.0


class TestChallenges:
    """The header fields WWW-Authenticate."""

    @pytest.mark.parametrize(
        ("field", "found"),
        [
            ('Basic realm="x"', [("basic", {"realm": "x"}, "")]),
            (
                'Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"',
                [
                    (
                        "bearer",
                        {"realm": "https://a/token", "service": "s", "scope": "repository:a/b:pull,push"},
                        "",
                    )
                ],
            ),
            (
                'Negotiate, Basic realm = "a, \\"b\\"" , Digest a=b',
                [("negotiate", {}, ""), ("basic", {"realm": 'a, "b"'}, ""), ("digest", {"a": "b"}, "")],
            ),
            ("NTLM abc+/==, Basic REALM=x", [("ntlm", {}, "abc+/=="), ("basic", {"realm": "x"}, "")]),
            ('Bearer realm="a",realm="b"', [("bearer", {"realm": "a"}, "")]),
            ('Bearer realm="never ends', [("bearer", {}, "")]),
            ("=, ;, Basic", [("basic", {}, "")]),
            ("", []),
        ],
    )
    def test_are_read_as_they_are_written(self, field, found):
        assert parse_challenges([field]) == tuple(Challenge(*one) for one in found)

    def test_of_several_fields_are_all_there(self):
        schemes = [one.scheme for one in parse_challenges(["Basic a=b", "Bearer c=d, Other"])]
        assert schemes == ["basic", "bearer", "other"]

    @given(st.lists(st.text(max_size=80) | st.text(alphabet='Basic ="\\,a', max_size=60), max_size=3))
    def test_of_any_text_are_none_or_some(self, fields):
        for challenge in parse_challenges(fields):
            assert challenge.scheme == challenge.scheme.lower()
            assert challenge.scheme

    @given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=5))
    def test_with_any_parameters_are_read_back(self, parameters):
        quoted = [f'{name}="{value}"' for name, value in escaped(parameters)]
        assert parse_challenges([f"Any {','.join(quoted)}"]) == (Challenge("any", parameters),)


def escaped(parameters):
    return [(name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in parameters.items()]


def user(place, content, name=".docker/config.json"):
    file = place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return Keyring({}, home=place)


def word(text):
    return base64.b64encode(text.encode()).decode()


class TestCredentials:
    """Docker's and Podman's files, and helpers."""

    @pytest.mark.parametrize(
        ("host", "key"),
        [
            ("docker.io", "https://index.docker.io/v1/"),
            ("docker.io", "docker.io"),
            ("a.example:5000", "a.example:5000"),
            ("a.example", "https://a.example/v1/"),
            ("a.example", "https://a.example"),
            ("a.example", "http://a.example/v2/"),
        ],
    )
    def test_are_found_under_each_spelling(self, tmp_path, host, key):
        found = user(tmp_path, {"auths": {key: {"auth": word("anna:a:b")}}}).find(host, "team/app")
        assert found == Credentials("anna", "a:b")

    def test_of_another_host_are_not_taken(self, tmp_path):
        keyring = user(tmp_path, {"auths": {"a.example.org": {"auth": word("a:b")}, "a.example/other": {}}})
        assert keyring.find("a.example", "app") is None
        assert keyring.find("docker.io") is None

    def test_of_the_longest_path_come_first(self, tmp_path):
        auths = {key: {"auth": word(f"{key}:x")} for key in ("a.example", "a.example/team", "a.example/te")}
        keyring = user(tmp_path, {"auths": auths}, ".config/containers/auth.json")
        assert keyring.find("a.example", "team/app").username == "a.example/team"
        assert keyring.find("a.example", "other").username == "a.example"

    def test_with_tokens_are_told_apart(self, tmp_path):
        auths = {"a.b": {"auth": word("u:"), "identitytoken": "i"}, "c.d": {"registrytoken": "r"}}
        keyring = user(tmp_path, {"auths": auths})
        assert keyring.find("a.b").identity_token == "i"
        assert keyring.find("c.d").registry_token == "r"

    def test_show_no_secret(self):
        assert "hunter2" not in repr(Credentials("anna", "hunter2", "hunter2", "hunter2"))
        assert Credentials("a", "b").basic() == f"Basic {word('a:b')}"

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"auths": 1}', '{"auths": {"a.b": {"auth": "%"}}}'])
    def test_in_a_damaged_file_are_none(self, tmp_path, content):
        assert user(tmp_path, content).find("a.b") is None

    def test_a_damaged_file_is_noted_without_its_content(self, tmp_path):
        keyring = user(tmp_path, "secret")
        assert keyring.find("a.b") is None
        assert "is not the JSON" in keyring.notes[0]
        assert "secret" not in keyring.notes[0]

    def test_a_helper_speaks_for_its_hosts_and_the_store_for_all(self, tmp_path, monkeypatch):
        for name, answer in (
            ("one", '{"Username":"u1","Secret":"s"}'),
            ("all", '{"Username":"<token>","Secret":"t"}'),
        ):
            helper = tmp_path / f"docker-credential-{name}"
            helper.write_text(f"#!/bin/sh\nread server; [ $server = none ] && exit 1; echo '{answer}'\n")
            helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        content = {"credsStore": "all", "credHelpers": {"a.b": "one", "c.d": "no/such", "e.f": "lacking"}}
        keyring = user(tmp_path, {**content, "auths": {"e.f": {"auth": word("own:x")}}})
        assert keyring.find("a.b") == Credentials("u1", "s")
        assert keyring.find("x.y") == Credentials(identity_token="t")
        assert keyring.find("e.f").username == "own"
        assert keyring.find("none") is None
        assert "docker-credential-lacking is not installed" in keyring.notes

    def test_files_are_those_of_docker_and_podman(self):
        assert files_of({}, None) == ()
        environment = {"REGISTRY_AUTH_FILE": "/a", "DOCKER_CONFIG": "/d", "XDG_RUNTIME_DIR": "/r"}
        assert [str(file) for file in files_of(environment, Path("/h"))] == [
            "/a",
            "/d/config.json",
            "/r/containers/auth.json",
            "/h/.config/containers/auth.json",
        ]
        assert keys_of("a.b", "c/d") == ("a.b/c/d", "a.b/c", "a.b")


class TestSettings:
    """The table ``registries`` of the configuration."""

    def test_is_read(self):
        value = {
            "docker.io": {"mirrors": ["m.example:5000/hub"]},
            "a.b:1": {"insecure": True, "ca": "/c.pem"},
        }
        assert parse_registries(value) == {
            "docker.io": RegistrySettings(mirrors=("m.example:5000/hub",)),
            "a.b:1": RegistrySettings(insecure=True, ca=Path("/c.pem")),
        }
        assert parse_registries(json.dumps(value)) == parse_registries(value)
        assert parse_registries("") == {}

    @pytest.mark.parametrize(
        "value",
        [
            [],
            "{",
            {"a/b": {}},
            {"a.b": []},
            {"a.b": {"mirror": []}},
            {"a.b": {"mirrors": "x"}},
            {"a.b": {"mirrors": ["https://x.y"]}},
            {"a.b": {"insecure": "yes"}},
            {"a.b": {"ca": "c.pem"}},
            {"a.b": {"ca": 1}},
        ],
    )
    def test_with_a_mistake_is_refused(self, value):
        with pytest.raises(ValueError, match=r"write|:"):
            parse_registries(value)

    def test_mirrors_come_before_the_registry_with_their_path(self):
        registries = parse_registries({"docker.io": {"mirrors": ["m.example", "n.example:1/a/b"]}})
        found = [str(place) for place in places_of(parse("python"), registries)]
        assert found == [
            "m.example/library/python",
            "n.example:1/a/b/library/python",
            "docker.io/library/python",
        ]
        assert places_of(parse("a.b/c"), registries)[0].registry == "a.b"

    def test_a_host_with_a_port_has_its_own_or_that_of_the_host(self):
        registries = parse_registries({"a.b": {"insecure": True}, "a.b:1": {}, "[::2]": {"insecure": True}})
        assert said_of(registries, "a.b:2").insecure
        assert said_of(registries, "a.b:1") == RegistrySettings()
        assert said_of(registries, "[::2]:5").insecure

    def test_the_loopback_alone_need_not_prove_who_it_is(self):
        assert all(map(is_loopback, ("localhost", "localhost:5000", "127.0.0.1", "127.9.8.7:1", "[::1]:1")))
        assert not any(
            map(is_loopback, ("localhost.example", "128.0.0.1", "127.example", "[::2]", "a.b:127"))
        )
        assert is_lenient({}, "localhost:5000")
        assert not is_lenient({}, "a.b")
        assert not is_lenient({"localhost": RegistrySettings(insecure=False)}, "localhost:1")
        assert not is_lenient({"localhost": RegistrySettings(ca=Path("/c"))}, "localhost:1")
        assert is_lenient({"a.b": RegistrySettings(insecure=True, ca=Path("/c"))}, "a.b")
        assert is_lenient({"docker.io": RegistrySettings(insecure=True)}, "registry-1.docker.io")
        assert api_host("docker.io") == "registry-1.docker.io"
        assert is_host("a.b:1")
        assert not is_host("a.b/c")


class TestPatience:
    """How often and when something is tried again."""

    def test_pauses_grow_to_a_limit_and_differ(self):
        patience = Patience(pause=1, longest=10)
        assert [pause_of(patience, failures, luck=1) for failures in (1, 2, 3, 4, 5, 500)] == [
            1,
            2,
            4,
            8,
            10,
            10,
        ]
        assert pause_of(patience, 1, luck=0) == 0.5

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("7", 7.0),
            ("soon", None),
            ("-1", None),
            (email.utils.formatdate(NOW + 30, usegmt=True), 30.0),
            (email.utils.formatdate(NOW - 30, usegmt=True), 0.0),
        ],
    )
    def test_what_a_server_asks_for_is_read(self, value, seconds):
        assert retry_after(value, NOW) == seconds

    @given(st.text(max_size=40))
    def test_of_any_text_it_is_a_time_or_none(self, text):
        found = retry_after(text, NOW)
        assert found is None or found >= 0

    def test_it_ends_after_its_attempts_and_begins_anew_with_progress(self):
        said = []
        retrying = Retrying(Patience(attempts=3, pause=0.0001, asked=2), said.append)
        trouble = AttemptError(RegistryError("no", code="unavailable"))
        for _ in range(3):
            retrying.failed(trouble)
            retrying.failed(trouble)
            retrying.progressed()
        retrying.failed(trouble)
        retrying.failed(trouble)
        with pytest.raises(RegistryError, match="no"):
            retrying.failed(trouble)
        assert not said

    @pytest.mark.parametrize(
        "trouble",
        [
            AttemptError(RegistryError("x"), again=False),
            AttemptError(RegistryError("x"), after=3.0),
        ],
    )
    def test_what_makes_no_sense_or_takes_too_long_ends_at_once(self, trouble):
        with pytest.raises(RegistryError):
            Retrying(Patience(asked=2), lambda _: None).failed(trouble)


class TestAnswers:
    """Refusals, as errors."""

    @pytest.mark.parametrize(
        ("status", "code", "again"),
        [
            (400, "protocol", False),
            (401, "denied", False),
            (403, "denied", False),
            (404, "missing", False),
            (429, "rate", True),
            (500, "unavailable", True),
            (503, "unavailable", True),
        ],
    )
    def test_have_a_code_each(self, status, code, again):
        body = b'{"errors": [{"code": "X", "message": "line\\nline"}]}'
        trouble = refusal("a.b", "team/app:1", status, {}, body, now=NOW)
        assert (trouble.error.code, trouble.again) == (f"registry.{code}", again)
        assert "a.b" in trouble.error.message
        assert trouble.error.message.endswith(": line line")

    @given(st.binary(max_size=200))
    def test_of_any_body_are_errors(self, body):
        assert len(said_in(body).message) <= 300

    def test_of_too_many_requests_say_until_when(self):
        trouble = refusal("docker.io", "x", 429, {"retry-after": "1800"}, b"", now=NOW)
        assert (trouble.error.code, trouble.after) == ("registry.rate", 1800.0)
        assert "(30 min)" in trouble.error.hint
        assert "`docker login`" in trouble.error.hint

    def test_that_will_last_are_not_tried_again(self):
        headers = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
        trouble = refusal("docker.io", "x", 429, headers, b"", now=NOW)
        assert "(100 pulls in 6 h)" in trouble.error.message
        assert not trouble.again

    @pytest.mark.parametrize(
        ("field", "start"), [("bytes 5-9/10", 5), ("bytes 5-9/*", 5), ("bytes */10", None), ("", None)]
    )
    def test_with_a_part_say_where_it_begins(self, field, start):
        assert range_start(field) == start


class TestTokens:
    """Tokens, for as long as they hold."""

    def made(self, tmp_path, replies, auths=None):
        self.now = 1000.0
        self.asked = []

        def fetch(ask):
            self.asked.append(ask)
            return replies[len(self.asked) - 1]

        return Tokens(user(tmp_path, {"auths": auths or {}}), fetch, lambda: self.now)

    def test_are_kept_until_shortly_before_their_end(self, tmp_path):
        tokens = self.made(
            tmp_path, [TokenReply(token="one", expires_in=100), TokenReply(access_token="two")]
        )
        assert not tokens.header("a.b", "c", ("s",))
        tokens.refused("a.b", ("s",), "", parse_challenges(['Bearer realm="https://t/"']))
        assert tokens.header("a.b", "c", ("s",)) == "Bearer one"
        self.now += 80
        assert tokens.header("a.b", "c", ("s",)) == "Bearer one"
        self.now += 10
        assert tokens.header("a.b", "c", ("s",)) == "Bearer two"
        assert len(self.asked) == 2

    def test_that_are_refused_are_had_anew(self, tmp_path):
        tokens = self.made(tmp_path, [TokenReply(token="one"), TokenReply(token="two")])
        bearer = parse_challenges(['Bearer realm="https://t/"'])
        tokens.refused("a.b", ("s",), "", bearer)
        used = tokens.header("a.b", "c", ("s",))
        tokens.refused("a.b", ("s",), used, bearer)
        assert tokens.header("a.b", "c", ("s",)) == "Bearer two"
        tokens.refused("a.b", ("s",), used, bearer)  # by a thread that is late
        assert tokens.header("a.b", "c", ("s",)) == "Bearer two"

    def test_a_renewed_identity_is_used_from_then_on(self, tmp_path):
        replies = [TokenReply(access_token="x", refresh_token="newer", expires_in=1), TokenReply(token="y")]
        tokens = self.made(tmp_path, replies, {"a.b": {"identitytoken": "old"}})
        tokens.refused("a.b", (), "", parse_challenges(['Bearer realm="https://t/",service=q']))
        tokens.header("a.b", "c", ())
        self.now += 10
        tokens.header("a.b", "c", ())
        assert [dict(ask.parameters)["refresh_token"] for ask in self.asked] == ["old", "newer"]
        assert all(ask.form for ask in self.asked)
        assert "newer" not in repr(self.asked)

    @pytest.mark.parametrize("reply", [TokenReply(), TokenReply(token="a\nb")])
    def test_that_are_none_are_refused(self, tmp_path, reply):
        tokens = self.made(tmp_path, [reply])
        tokens.refused("a.b", (), "", parse_challenges(['Bearer realm="https://t/"']))
        with pytest.raises(RegistryError) as caught:
            tokens.header("a.b", "c", ())
        assert caught.value.code == "registry.protocol"

    def test_bearer_comes_before_basic_and_anything_else_is_an_error(self, tmp_path):
        tokens = self.made(tmp_path, [TokenReply(token="one")], {"a.b": {"auth": word("u:p")}})
        tokens.refused("a.b", (), "", parse_challenges(["Basic realm=x", 'Bearer realm="https://t/"']))
        assert tokens.header("a.b", "c", ()) == "Bearer one"
        tokens.refused("a.b", (), "", parse_challenges(["Basic realm=x"]))
        assert tokens.header("a.b", "c", ()) == Credentials("u", "p").basic()
        with pytest.raises(RegistryError, match="negotiate"):
            tokens.refused("a.b", (), "", parse_challenges(["Negotiate"]))

    def test_scopes_are_those_that_are_wanted_and_those_of_other_things(self):
        challenge = Challenge("bearer", {"scope": "repository:a:pull registry:catalog:*"})
        found = scopes_of(challenge, ("repository:a:pull,push",))
        assert found == ("repository:a:pull,push", "registry:catalog:*")


class TestPacked:
    """Layers on their way to a registry."""

    @given(st.lists(st.binary(max_size=300), max_size=5))
    def test_are_the_tar_again_and_the_same_each_time(self, pieces):
        data = b"".join(pieces)
        one, two = (Packed(iter(pieces), documents.digest_of(data)) for _ in range(2))
        packed = b"".join(one)
        assert gzip.decompress(packed) == data
        assert b"".join(two) == packed
        form = one.descriptor()
        assert (form.digest, form.size) == (documents.digest_of(packed), len(packed))
        assert is_compressed(packed)

    def test_that_are_not_those_of_the_image_are_refused(self):
        with pytest.raises(ImageError):
            b"".join(Packed(iter([b"x"]), documents.digest_of(b"y")))

    def test_that_are_compressed_are_known_by_their_bytes(self):
        assert found_form([b"\x28\xb5\x2f\xfdrest"]).media_type == documents.LAYER_ZSTD
        assert found_form([b"\x1f\x8b", b"rest"]).size == 6
        assert not is_compressed(b"ustar")
