"""References to images: the grammar of the distribution project, and Docker's short forms."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.errors import ImageError
from atoll.image.oci.reference import Reference, check_tag, parse

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("python", "docker.io/library/python", "python"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim", "python:3.12-slim"),
        ("library/python", "docker.io/library/python", "python"),
        ("docker.io/python", "docker.io/library/python", "python"),
        ("index.docker.io/team/app", "docker.io/team/app", "team/app"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        ("[fe80::1]/a", "[fe80::1]/a", "[fe80::1]/a"),
        ("Host/a", "Host/a", "Host/a"),
        ("1.2.3.4/a__b/c---d.e_f", "1.2.3.4/a__b/c---d.e_f", "1.2.3.4/a__b/c---d.e_f"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}", f"a@{DIGEST}"),
        (f"ghcr.io/a:t@{DIGEST}", f"ghcr.io/a:t@{DIGEST}", f"ghcr.io/a:t@{DIGEST}"),
        (f"a:{'x' * 128}", f"docker.io/library/a:{'x' * 128}", f"a:{'x' * 128}"),
        (f"library/{HEX}", f"docker.io/library/{HEX}", f"library/{HEX}"),
        ("docker.io/localhost/a", "docker.io/localhost/a", "docker.io/localhost/a"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
    ],
)
def test_names_mean_what_they_mean_to_docker(text, canonical, familiar):
    reference = parse(text)
    assert (str(reference), reference.familiar) == (canonical, familiar)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("ghcr.io/Team/app", 8),
        ("a:", 2),
        ("a:-t", 2),
        (f"a:{'x' * 129}", 2),
        ("a@sha256:0", 2),
        (f"a@{DIGEST.upper()}", 2),
        ("a@md5:0123", 2),
        ("a//b", 2),
        ("a/b_", 2),
        ("a/b..c", 2),
        ("a___b", 0),
        ("-a.com/b", 0),
        ("a.com:x/b", 0),
        ("https://a.com/b", 0),
        (HEX, 0),
        ("a b", 0),
        ("a\n", 0),
        ("x/" * 200 + "y", 0),
        ("x" * 1000, 520),
    ],
)
def test_a_malformed_name_is_refused_with_the_place_of_the_fault(text, place):
    with pytest.raises(ImageError, match=f"at {place}$") as caught:
        parse(text)
    assert caught.value.code == "image.name"
    assert caught.value.hint


def test_a_name_without_a_registry_is_one_of_the_default_registry():
    reference = parse("team/app:1", default="registry.example:5000")
    assert str(reference) == "registry.example:5000/team/app:1"
    assert parse("app", default="registry.example").path == "app"
    assert reference.familiar == str(reference)
    assert parse("docker.io/app", default="registry.example").short("registry.example") == (
        "docker.io/library/app"
    )


def test_the_tag_latest_is_that_of_a_name_without_any():
    assert str(parse("a").tagged()) == "docker.io/library/a:latest"
    assert parse(f"a@{DIGEST}").tagged().tag == ""
    assert parse("a:b").tagged() == parse("a:b")


def test_a_tag_alone_is_checked():
    assert check_tag("1.0_x-y") == "1.0_x-y"
    with pytest.raises(ImageError):
        check_tag(".a")


words = st.sampled_from(["a", "0", "app", "x86", "localhost", "library", HEX])
component = st.lists(words, min_size=1, max_size=3).flatmap(
    lambda some: st.sampled_from([".", "_", "__", "-", "---"]).map(lambda between: between.join(some))
)
domain = st.sampled_from(
    ["docker.io", "a.example", "a.example:5000", "localhost", "localhost:1", "1.2.3.4", "[::1]", "[a:b::]:80"]
)
references = st.builds(
    Reference,
    domain=domain,
    path=st.sampled_from([1, 2, 3]).flatmap(
        lambda count: st.lists(component, min_size=1, max_size=count).map("/".join).filter(fits)
    ),
    tag=st.sampled_from(["", "latest", "3.12-slim", "_x", "A.b-c_d", "5000"]),
    digest=st.sampled_from(["", DIGEST, f"sha512:{HEX * 2}"]),
)


def fits(path):
    return len(path) < 220


@given(references)
def test_a_reference_is_read_back_from_both_of_its_forms(reference):
    once = parse(str(reference))  # one word at the default registry gets its library
    assert once.path in {reference.path, f"library/{reference.path}"}
    assert parse(str(once)) == once
    assert parse(once.familiar) == once
    assert parse(once.short("localhost:5"), default="localhost:5") == once


@given(st.text(max_size=200) | st.text(alphabet="aA0./:@-_[]s ", max_size=60))
@example("a@b@c")
@example("[::1]")
@example("localhost:/a")
def test_any_text_is_a_reference_or_an_error_of_that_name(text):
    try:
        canonical = str(parse(text))
    except ImageError as error:
        refused = error.code
    else:
        assert str(parse(canonical)) == canonical
        return
    assert refused == "image.name"
