"""Images out of a real registry, also through a server that spoils what comes from there."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import threading
import time

import pytest
from certificates import make_authority, server_context
from dockers import free_port, layer_of, registry
from images_in_registries import HTPASSWD, LAYERS, PLATFORM, QUICK, SIZE, image, keyring, login, nobody, read
from imagetools import Tools
from meddling import (
    Meddler,
    TokenServer,
    claimed,
    corrupted,
    cut,
    lengthened,
    sent_to,
    serving,
    slow,
    stalled,
    whole,
)
from programs import packaged

from atoll.errors import ImageError, RegistryError
from atoll.image.oci import documents
from atoll.image.oci.documents import Platform
from atoll.image.oci.reference import parse
from atoll.image.registry.credentials import Keyring
from atoll.image.registry.patience import Patience
from atoll.image.registry.pulling import inspect, offer, tags
from atoll.image.registry.pushing import push
from atoll.registries import RegistrySettings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="module")
def plain(paths, place):
    """A registry that lets everybody in, with an image ``team/app:1``: its port."""
    with registry(packaged(paths, "docker-registry"), place / "plain") as port:
        push(image(*LAYERS), parse(f"127.0.0.1:{port}/team/app:1"), registries={}, keyring=nobody(place))
        yield port


@pytest.fixture
def meddler(plain):
    """A server before it."""
    meddling = Meddler(plain)
    with serving(meddling) as port:
        meddling.port = port
        yield meddling
        meddling.ended.set()


def offering(port, name="team/app:1", *, keys=None, place=None, registries=None, **more):
    options = {"registries": registries or {}, "patience": QUICK, **more}
    return offer(
        parse(f"127.0.0.1:{port}/{name}"), PLATFORM, keyring=keys or Keyring({}, home=place), **options
    )


def pulled(port, name="team/app:1", **options):
    """The layers' bytes."""
    with offering(port, name, **options) as offered:
        return [read(layer) for layer in offered.layers]


def test_what_was_pushed_is_pulled_with_its_documents(plain, tmp_path):
    with offering(plain, place=tmp_path) as offered:
        assert read(offered.layers[0]) == LAYERS[0]
        assert gzip.decompress(read(offered.layers[1])) == LAYERS[1]
        assert [layer.size for layer in offered.layers] == [len(read(layer)) for layer in offered.layers]
        assert json.loads(offered.config)["config"] == {"Cmd": ["/bin/sh"]}
        manifest = documents.manifest_of(offered.manifest)
        assert [layer.digest for layer in offered.layers] == [layer.digest for layer in manifest.layers]
        assert offered.names == (f"127.0.0.1:{plain}/team/app:1",)
    assert [documents.digest_of(LAYERS[1])] == [offered.layers[1].diff_id]


def test_a_digest_is_a_name_too(plain, tmp_path):
    found = inspect(parse(f"127.0.0.1:{plain}/team/app:1"), PLATFORM, registries={}, keyring=nobody(tmp_path))
    assert pulled(plain, f"team/app@{found.digest}", place=tmp_path)[0] == LAYERS[0]
    assert found.config.config.cmd == ("/bin/sh",)


def test_another_content_under_a_digest_is_an_error_that_names_it(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [corrupted]
        with pytest.raises(RegistryError, match=offered.layers[0].digest) as caught:
            read(offered.layers[0])
    assert caught.value.code == "registry.digest"
    assert str(meddler.port) in caught.value.message


def test_the_end_of_a_blob_with_another_content_is_never_given(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [corrupted]
        had = bytearray()
        with offered.layers[0].open() as stream, pytest.raises(RegistryError):
            had.extend(itertools.chain.from_iterable(iter(lambda: stream.read(1000), b"")))
        assert len(had) < offered.layers[0].size


def test_what_breaks_off_goes_on_behind_what_is_here(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [cut(100_000), cut(50_000)]
        assert read(offered.layers[0]) == LAYERS[0]
    starts = [headers.get("Range") for headers in meddler.asked(offered.layers[0].digest)]
    assert starts == [None, "bytes=100000-", "bytes=150000-"]
    assert "If-Range" in meddler.asked(offered.layers[0].digest)[1]


def test_a_server_without_parts_gives_all_of_it_anew(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [cut(100_000), whole]
        assert read(offered.layers[0]) == LAYERS[0]


def test_a_stall_is_noticed_and_the_rest_asked_for(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [stalled(200_000, meddler.ended)]
        assert read(offered.layers[0]) == LAYERS[0]


def test_a_server_that_always_breaks_off_without_progress_is_given_up(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [cut(10)] * 20
        with pytest.raises(RegistryError, match="broke off after") as caught:
            read(offered.layers[0])
    assert caught.value.code == "registry.truncated"
    assert len(meddler.planned) == 20 - QUICK.attempts


def test_a_slow_link_is_waited_for(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [slow(4, 0.2)]  # longer in all than a stall
        assert read(offered.layers[0]) == LAYERS[0]
    assert len(meddler.asked(offered.layers[0].digest)) == 1


def test_a_blob_that_is_larger_than_said_is_cut_off(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        for meddle in (lengthened, claimed(SIZE * 3)):
            meddler.planned = [meddle]
            with pytest.raises(RegistryError, match="is larger than") as caught:
                read(offered.layers[0])
            assert caught.value.code == "registry.digest"


def test_a_length_that_is_too_short_is_no_end(meddler, tmp_path):
    with offering(meddler.port, place=tmp_path) as offered:
        meddler.planned = [claimed(120_000)]
        assert read(offered.layers[0]) == LAYERS[0]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_has_no_time_now_is_asked_again(meddler, tmp_path, status):
    meddler.refusals = [(status, {}, b""), (status, {"Retry-After": "0"}, b"")]
    assert pulled(meddler.port, place=tmp_path)[0] == LAYERS[0]
    assert not meddler.refusals


def test_a_limit_of_pulls_is_said_with_its_hours(meddler, tmp_path):
    words = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}]}'
    limit = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0;w=21600"}
    meddler.refusals = [(429, limit, words)]
    with pytest.raises(RegistryError, match=r"100 pulls in 6 h.*reached your pull rate limit") as caught:
        pulled(meddler.port, place=tmp_path)
    assert caught.value.code == "registry.rate"
    meddler.refusals = [(429, {"Retry-After": "7200"}, words)]
    with pytest.raises(RegistryError) as caught:
        pulled(meddler.port, place=tmp_path)
    assert "(2 h)" in caught.value.hint


def test_a_redirection_to_another_host_has_no_authorization(paths, place, tmp_path):
    passwords = place / "passwords-of-redirection"
    passwords.write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
    with registry(packaged(paths, "docker-registry"), tmp_path / "guarded", auth=auth) as port:
        keys = login(tmp_path, port)
        push(image(*LAYERS), parse(f"127.0.0.1:{port}/a:1"), registries={}, keyring=keys)
        meddler, other = Meddler(port), Meddler(port)

        def stored(handler):
            """Storage to which addresses lead that are signed."""
            other.seen.append((handler.command, handler.path, dict(handler.headers)))
            handler.answer(200, {}, LAYERS[0])

        with (
            serving(meddler) as before,
            serving(stored) as storage,
            offering(before, "a:1", keys=login(tmp_path, before)) as offered,
        ):
            meddler.planned = [sent_to(f"http://127.0.0.1:{storage}")]
            assert read(offered.layers[0]) == LAYERS[0]
        assert "Authorization" in meddler.asked(offered.layers[0].digest)[0]
        assert other.asked("signature=x%2Fy")
        assert not any("Authorization" in headers for _, _, headers in other.seen)


def test_a_read_in_another_thread_ends_when_the_stream_is_closed(meddler, tmp_path):
    patient = Patience(stall=30)
    with offering(meddler.port, place=tmp_path, patience=patient) as offered:
        meddler.planned = [stalled(100_000, meddler.ended)]
        raised = []
        with offered.layers[0].open() as stream:

            def drain():
                try:
                    while stream.read(1 << 20):
                        pass
                except RegistryError as error:
                    raised.append(error.code)

            thread = threading.Thread(target=drain)
            thread.start()
            while not any(offered.layers[0].digest in path for _, path, _ in meddler.seen):
                time.sleep(0.01)
            stream.close()
            thread.join(10)
            assert raised == ["registry.truncated"]


def test_what_skopeo_pushed_is_pulled(paths, plain, tmp_path):
    tools = Tools(paths, tmp_path / "tools")
    source = f"docker://127.0.0.1:{plain}/team/app:1"
    for kind in ("oci", "v2s2"):
        target = f"docker://127.0.0.1:{plain}/skopeo/{kind}:x"
        insecure = ("--src-tls-verify=false", "--dest-tls-verify=false")
        tools.skopeo("copy", "--format", kind, *insecure, source, target)
        found = pulled(plain, f"skopeo/{kind}:x", place=tmp_path)
        assert gzip.decompress(found[1]) == LAYERS[1]


def test_of_an_index_the_right_platform_is_taken(plain, tmp_path):
    entries = []
    for architecture in ("arm64", "amd64"):
        layer = layer_of("arch", architecture.encode())
        reference = parse(f"127.0.0.1:{plain}/many/one:{architecture}")
        pushed = push(
            image(layer, architecture=architecture), reference, registries={}, keyring=nobody(tmp_path)
        )
        size = len(inspected(plain, f"many/one@{pushed.digest}", architecture, tmp_path).manifest_data)
        platform = {"architecture": architecture, "os": "linux"}
        entry = {"mediaType": documents.MANIFEST, "digest": pushed.digest, "size": size, "platform": platform}
        entries.append(entry)
    index = json.dumps({"schemaVersion": 2, "mediaType": documents.INDEX, "manifests": entries}).encode()
    put(plain, "/v2/many/one/manifests/all", index, documents.INDEX)
    with offering(plain, "many/one:all", place=tmp_path) as offered:
        assert b"amd64" in gzip.decompress(read(offered.layers[0]))
        assert offered.index_digest == documents.digest_of(index)
    with pytest.raises(ImageError) as caught:
        inspected(plain, "many/one:all", "riscv64", tmp_path)
    assert caught.value.code == "image.platform"
    assert "linux/arm64" in caught.value.hint
    with pytest.raises(ImageError) as caught:
        inspected(plain, "many/one:arm64", "amd64", tmp_path)
    assert caught.value.code == "image.platform"


def inspected(port, name, architecture, place):
    reference = parse(f"127.0.0.1:{port}/{name}")
    return inspect(reference, Platform(architecture, "linux"), registries={}, keyring=nobody(place))


def put(port, path, data, media_type):
    import http.client

    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as link:
        link.request("PUT", path, data, {"Content-Type": media_type})
        assert link.getresponse().status == 201


def test_a_missing_tag_and_a_missing_repository_say_so(plain, tmp_path):
    with pytest.raises(RegistryError) as caught:
        pulled(plain, "team/app:11", place=tmp_path)
    assert caught.value.code == "registry.missing"
    with pytest.raises(RegistryError) as caught:
        pulled(plain, "team/nothing:1", place=tmp_path)
    assert caught.value.code == "registry.missing"


def test_a_name_that_is_like_another_is_told_of_it(plain, tmp_path):
    push(
        image(LAYERS[1]), parse(f"127.0.0.1:{plain}/near:3.12-slim"), registries={}, keyring=nobody(tmp_path)
    )
    with pytest.raises(RegistryError) as caught:
        pulled(plain, "near:3.12-slin", place=tmp_path)
    assert "3.12-slim" in caught.value.hint


def test_all_tags_are_listed_page_by_page(plain, tmp_path):
    reference = parse(f"127.0.0.1:{plain}/tagged:t0")
    push(image(LAYERS[1]), reference, tags=("t1", "t2"), registries={}, keyring=nobody(tmp_path))

    def paged(handler):
        """As a registry that gives two at a time."""
        last = "t1" in handler.path
        found, more = (
            (["t2"], {}) if last else (["t0", "t1"], {"Link": '</v2/x/tags/list?last=t1>; rel="next"'})
        )
        handler.answer(200, more, json.dumps({"tags": found}).encode())

    assert tags(reference, registries={}, keyring=nobody(tmp_path)) == ("t0", "t1", "t2")
    with serving(paged) as port:
        found = tags(parse(f"127.0.0.1:{port}/x"), registries={}, keyring=nobody(tmp_path))
    assert found == ("t0", "t1", "t2")


def test_a_host_that_is_not_there_is_said_to_be_unreachable(tmp_path):
    with pytest.raises(RegistryError, match="cannot be reached") as caught:
        pulled(free_port(), place=tmp_path)
    assert caught.value.code == "registry.unreachable"


def test_the_environment_s_proxy_is_asked_for_other_hosts_than_this(plain, tmp_path, monkeypatch):
    asked = Meddler(plain)
    asked.refused = {"CONNECT": [407] * 9}
    with serving(asked) as port:
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        options = {"registries": {}, "keyring": nobody(tmp_path), "patience": QUICK}
        with pytest.raises(RegistryError, match="407") as caught:
            inspect(parse("registry.invalid/a:1"), PLATFORM, **options)
        assert pulled(plain, place=tmp_path)[0] == LAYERS[0]
    assert caught.value.code == "registry.unreachable"
    assert {path for _, path, _ in asked.seen} == {"registry.invalid:443"}


def test_what_a_registry_says_cannot_steer_a_terminal(tmp_path):
    words = json.dumps({"errors": [{"code": "X", "message": "\x1b[2Jgone"}]}).encode()
    with (
        serving(lambda handler: handler.answer(404, {}, words)) as port,
        pytest.raises(RegistryError, match="gone") as caught,
    ):
        pulled(port, "a:1", place=tmp_path)
    assert "\x1b" not in caught.value.message
    listed = json.dumps({"tags": ["good", "\x1b[2J", "-bad"]}).encode()
    with serving(lambda handler: handler.answer(200, {}, listed)) as port:
        found = tags(parse(f"127.0.0.1:{port}/x"), registries={}, keyring=nobody(tmp_path))
    assert found == ("good",)


def test_passwords_are_asked_for_and_checked(paths, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(passwords)}}
    with registry(packaged(paths, "docker-registry"), tmp_path / "kept", auth=auth) as port:
        good = login(tmp_path, port)
        push(image(LAYERS[1]), parse(f"127.0.0.1:{port}/a:1"), registries={}, keyring=good)
        assert gzip.decompress(pulled(port, "a:1", keys=good)[0]) == LAYERS[1]
        with pytest.raises(RegistryError, match="anna") as caught:
            pulled(port, "a:1", keys=login(tmp_path, port, secret="wrong"))
        assert caught.value.code == "registry.auth"
        assert "wrong" not in str(caught.value) + caught.value.hint + caught.value.detail
        with pytest.raises(RegistryError) as caught:
            pulled(port, "a:1", place=tmp_path)
        assert caught.value.code == "registry.auth"
        assert f"docker login 127.0.0.1:{port}" in caught.value.hint
        with pytest.raises(RegistryError) as caught:
            push(image(LAYERS[1]), parse(f"127.0.0.1:{port}/a:2"), registries={}, keyring=nobody(tmp_path))
        assert caught.value.code == "registry.auth"


@pytest.fixture(scope="module")
def guarded(paths, place):
    """A registry whose tokens come from a server of the test's: its port and that server."""
    tokens = TokenServer(place)
    with serving(tokens) as realm:
        auth = tokens.settings(realm)
        with registry(packaged(paths, "docker-registry"), place / "guarded", auth=auth) as port:
            yield port, tokens


def test_tokens_are_had_for_a_password_and_kept(guarded, tmp_path):
    port, tokens = guarded
    keys = login(tmp_path, port)
    push(image(*LAYERS), parse(f"127.0.0.1:{port}/a/b:1"), registries={}, keyring=keys)
    tokens.seen.clear()
    assert pulled(port, "a/b:1", keys=keys)[0] == LAYERS[0]
    assert len(tokens.seen) == 1
    method, words, _ = tokens.seen[0]
    assert (method, words["scope"], words["service"], words["kind"]) == (
        "GET",
        ["repository:a/b:pull"],
        ["tests"],
        ["test"],
    )
    with pytest.raises(RegistryError) as caught:
        pulled(port, "a/b:1", keys=login(tmp_path, port, secret="wrong"))
    assert caught.value.code == "registry.auth"
    with pytest.raises(RegistryError) as caught:
        pulled(port, "a/b:1", place=tmp_path)
    assert caught.value.code == "registry.auth"


def test_a_token_that_ends_in_the_middle_of_a_pull_is_had_anew(guarded, tmp_path):
    port, tokens = guarded
    keys = login(tmp_path, port)
    push(image(*LAYERS), parse(f"127.0.0.1:{port}/a/b:1"), registries={}, keyring=keys)
    tokens.seen.clear()
    tokens.holds = [-59]  # which with what the registry allows is a second
    with offering(port, "a/b:1", keys=keys) as offered:
        time.sleep(2.1)
        assert read(offered.layers[0]) == LAYERS[0]
    assert len(tokens.seen) == 2


def test_an_identity_token_is_sent_as_a_form(guarded, tmp_path):
    port, tokens = guarded
    push(image(*LAYERS), parse(f"127.0.0.1:{port}/a/b:1"), registries={}, keyring=login(tmp_path, port))
    tokens.seen.clear()
    keys = keyring(tmp_path, {f"127.0.0.1:{port}": {"identitytoken": TokenServer.REFRESH}})
    assert pulled(port, "a/b:1", keys=keys)[0] == LAYERS[0]
    method, words, authorization = tokens.seen[0]
    assert (method, words["grant_type"], authorization) == ("POST", ["refresh_token"], "")


def test_a_helper_is_asked_for_the_password(guarded, tmp_path, monkeypatch):
    port, _ = guarded
    helper = tmp_path / "docker-credential-tests"
    answer = json.dumps({"Username": TokenServer.USER, "Secret": TokenServer.SECRET})
    helper.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\n[ \"$1\" = get ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    push(
        image(LAYERS[1]),
        parse(f"127.0.0.1:{port}/a/b:1"),
        registries={},
        keyring=keyring(tmp_path, {}, credHelpers={f"127.0.0.1:{port}": "tests"}),
    )
    assert (tmp_path / "asked").read_text() == f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def secured(plain, place):
    """The registry behind TLS as ``localhost``, and the certificate of who vouches for it."""
    authority = make_authority(place / "authority.pem")
    with serving(Meddler(plain), tls=server_context(authority, "localhost")) as port:
        yield port, authority


def test_a_certificate_is_believed_if_its_authority_is_known(secured, tmp_path):
    port, authority = secured
    host = f"localhost:{port}"
    reference = parse(f"{host}/team/app:1")
    known = {host: RegistrySettings(ca=authority)}
    with offer(reference, PLATFORM, registries=known, keyring=nobody(tmp_path)) as offered:
        assert read(offered.layers[0]) == LAYERS[0]
    with pytest.raises(RegistryError, match="does not prove who it is") as caught:
        inspect(
            reference,
            PLATFORM,
            registries={host: RegistrySettings(insecure=False)},
            keyring=nobody(tmp_path),
        )
    assert caught.value.code == "registry.tls"
    assert "ca = " in caught.value.hint
    # On this host's own loopback nobody has to.
    assert inspect(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)).digest


def test_a_name_that_the_certificate_does_not_have_is_not_believed(secured, tmp_path):
    port, authority = secured
    host = f"127.0.0.1:{port}"
    with pytest.raises(RegistryError) as caught:
        pulled(port, registries={host: RegistrySettings(ca=authority)}, place=tmp_path)
    assert caught.value.code == "registry.tls"


def test_plain_http_is_not_spoken_where_tls_is_wanted(plain, tmp_path):
    host = f"127.0.0.1:{plain}"
    with pytest.raises(RegistryError) as caught:
        pulled(plain, registries={host: RegistrySettings(insecure=False)}, place=tmp_path)
    assert caught.value.code == "registry.tls"


def test_a_mirror_is_asked_first_and_the_registry_for_what_it_lacks(plain, meddler, tmp_path):
    mirror = f"127.0.0.1:{plain}/mirrored"
    host = f"127.0.0.1:{meddler.port}"
    registries = {host: RegistrySettings(mirrors=(f"127.0.0.1:{free_port()}", mirror))}
    warned = []
    options = {"registries": registries, "place": tmp_path, "emit": warned.append}
    assert pulled(meddler.port, **options)[0] == LAYERS[0]
    assert meddler.asked("/v2/team/app/")
    assert [event for event in warned if "cannot be reached" in event.message]
    push(
        image(*LAYERS),
        parse(f"127.0.0.1:{plain}/mirrored/team/app:1"),
        registries={},
        keyring=nobody(tmp_path),
    )
    meddler.seen.clear()
    assert pulled(meddler.port, **options)[0] == LAYERS[0]
    assert not meddler.seen


def test_a_blob_that_a_mirror_breaks_off_comes_from_the_registry_itself(plain, meddler, tmp_path):
    host = f"127.0.0.1:{plain}"
    registries = {host: RegistrySettings(mirrors=(f"127.0.0.1:{meddler.port}",))}
    with offering(plain, registries=registries, place=tmp_path) as offered:
        meddler.planned = [cut(100_000), *[cut(10)] * 20]
        assert read(offered.layers[0]) == LAYERS[0]


def test_an_old_manifest_is_refused_by_name(tmp_path):
    old = json.dumps({"schemaVersion": 1, "name": "a", "fsLayers": []}).encode()
    kind = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    with (
        serving(lambda handler: handler.answer(200, kind, old)) as port,
        pytest.raises(RegistryError, match="schema 1") as caught,
    ):
        pulled(port, "a:1", place=tmp_path)
    assert caught.value.code == "registry.schema"


@pytest.mark.parametrize("answer", [(200, {}, b"<html>"), (302, {"Location": "/"}, b""), (418, {}, b"tea")])
def test_what_is_no_registry_is_an_error_and_nothing_else(answer, tmp_path):
    with serving(lambda handler: handler.answer(*answer)) as port, pytest.raises(RegistryError) as caught:
        pulled(port, "a:1", place=tmp_path)
    assert caught.value.code == "registry.protocol"


def test_a_manifest_with_another_digest_is_refused(plain, tmp_path):
    reference = parse(f"127.0.0.1:{plain}/team/app:1")
    data = inspect(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)).manifest_data
    with (
        serving(lambda handler: handler.answer(200, {}, data)) as port,
        pytest.raises(RegistryError) as caught,
    ):
        pulled(port, f"a@sha256:{hashlib.sha256(b'x').hexdigest()}", place=tmp_path)
    assert caught.value.code == "registry.digest"
