"""Which images a Containerfile is built on, and how wishes become words for the builder."""

from __future__ import annotations

import pytest

from atoll.building import wishes
from atoll.building.containerfile import Base, bases
from atoll.building.wishes import Secret, Wishes
from atoll.errors import BuildError, UsageError
from atoll.image.oci.documents import Platform


def names(text, target="", **arguments):
    return [base.name for base in bases(text, arguments, target=target)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM a", ["a"]),
        ("from a as x\nFROM x", ["a"]),
        ("FROM a AS x\nFROM b", ["b"]),
        ("FROM a AS x\nFROM b\nCOPY --from=x / /", ["a", "b"]),
        ("FROM a\nFROM b\nCOPY --chown=1 --from=0 / /", ["a", "b"]),
        ("FROM b\nCOPY --from=reg.example/c:1 / /", ["b", "reg.example/c:1"]),
        ("FROM b\nRUN --mount=type=bind,from=c,target=/x true", ["b", "c"]),
        ("FROM b\nRUN echo --mount=from=c", ["b"]),
        ("FROM scratch\nCOPY x /", []),
        ("ARG V=1\nFROM a:$V", ["a:1"]),
        ("ARG V=1\nARG W=${V}2\nFROM a:${W}", ["a:12"]),
        ("FROM a:${V:-9}", ["a:9"]),
        ("FROM a${V:+x}", ["a"]),
        ('ARG V="q w"\nARG I=a\nFROM $I', ["a"]),
        ("# escape=`\nFROM `\n  a", ["a"]),
        ("# a comment\n\nFROM \\\n# inside\n  a \\\n  AS x", ["a"]),
        ("FROM b\nRUN <<EOF\nFROM c\nEOF\nRUN true", ["b"]),
        ("FROM b\nCOPY <<-'A' <<B /x\nFROM c\n\tA\nFROM d\nB\n", ["b"]),
        ("FROM", []),
        ("", []),
        ("RUN x", []),
    ],
)
def test_the_images_that_the_last_stage_needs_are_found(text, found):
    assert names(text) == found


def test_a_target_an_argument_and_a_platform_choose():
    text = "ARG V=1\nFROM --platform=$P a:$V AS x\nFROM b AS y"
    assert bases(text, {"V": "2", "P": "linux/arm64"}, target="x") == (Base("a:2", "linux/arm64", "a:$V"),)
    assert names(text, target="1") == ["b"]
    assert names(text, target="nothing") == ["b"]


def test_arguments_and_secrets_are_taken_from_words_variables_and_files(tmp_path):
    (tmp_path / "s").write_bytes(b"\xff\n")
    assert wishes.parse_arguments(["A=1", "B", "C", "D="], "-x", {"B": "b"}) == {"A": "1", "B": "b", "D": ""}
    assert wishes.parse_secret(f"id=k,src={tmp_path}/s", {}) == Secret("k", b"\xff\n")
    assert wishes.parse_secret("id=k,env=V", {"V": "v"}) == Secret("k", b"v")
    assert wishes.parse_secret("id=k", {"k": "v"}) == Secret("k", b"v")
    for word in ("src=x", "id=a/b,src=x", "id=k,src=/nowhere", "id=k", "id=k,mode=1"):
        with pytest.raises(UsageError) as caught:
            wishes.parse_secret(word, {})
        assert caught.value.code == "usage.build"
    with pytest.raises(UsageError):
        wishes.parse_arguments(["=x"], "--label", {})


def test_a_context_is_a_directory_with_a_containerfile(tmp_path):
    for where in ("https://example.com/x.git", "-", str(tmp_path / "nothing")):
        with pytest.raises(BuildError) as caught:
            wishes.locate(where, None)
        assert caught.value.code == "build.context"
    with pytest.raises(BuildError) as caught:
        wishes.locate(str(tmp_path), None)
    assert caught.value.code == "build.file"
    (tmp_path / "Dockerfile").write_text("FROM b")
    assert wishes.locate(str(tmp_path), None).text == "FROM b"
    (tmp_path / "Containerfile").write_text("FROM a")
    assert wishes.locate(str(tmp_path), None).text == "FROM a"
    (tmp_path / "bad").write_bytes(b"\xff")
    with pytest.raises(BuildError):
        wishes.locate(str(tmp_path), str(tmp_path / "bad"))


def test_all_wishes_reach_the_builder():
    made = wishes.arguments(
        "b1",
        Wishes(
            arguments={"A": "x y"},
            target="t",
            platform=Platform("arm64", "linux"),
            labels={"l": "1"},
            secrets=(Secret("k", b""),),
            cache=False,
        ),
        {"base:1": "ab"},
    )
    text = " ".join(made)
    for words in (
        "--build-arg A=x y",
        "--target t",
        "--platform linux/arm64",
        "--label l=1",
        "--secret id=k,src=/run/atoll-builder/builds/b1/secret.0",
        "--build-context base:1=container-image://ab",
        "--no-cache",
    ):
        assert words in text
    assert made[-1] == "/var/lib/atoll-builder/work/b1/context"
    assert wishes.variables(Wishes(), Platform("amd64", "linux"))["TARGETARCH"] == "amd64"
