"""The layer that changes make, and what becomes of an image's configuration."""

from __future__ import annotations

import pytest

from atoll.errors import UsageError
from atoll.image.local.tarheaders import CHARACTER, DIRECTORY, FILE, HARD_LINK, SYMLINK
from atoll.image.oci import committing
from atoll.image.oci.committing import Change, State


def file(**fields):
    return State(**{"type": "file", "mode": 0o644, "uid": 1, "gid": 2, "size": 3, **fields})


DIRECTORY_ = State(type="directory", mode=0o755, uid=0, gid=0)


def planned(*changes):
    return committing.plan([Change(*change) for change in changes])


def names(*changes):
    return [one.entry.name for one in planned(*changes)]


def test_what_is_gone_is_told_once_and_what_took_its_place_stands_for_it():
    assert names((b"a/b", None), (b"a/b/c", None), (b"top", None)) == [b"a/.wh.b", b".wh.top"]
    assert names((b"a", file()), (b"a/b", None)) == [b"a"]
    assert names((b"a", DIRECTORY_), (b"a/b", None), (b"a.x", file())) == [b"a/", b"a/.wh.b", b"a.x"]


def test_entries_have_all_that_a_file_has():
    found = planned(
        (b"", DIRECTORY_),
        (b"dev1", State(type="character", mode=0o600, uid=0, gid=0, device=5 << 8 | 1)),
        (b"link", State(type="symlink", mode=0o777, uid=0, gid=0, target=b"to")),
        (b"one", file(inode=7, mtime=5, xattrs=((b"security.selinux", b"x"), (b"user.a", b"b")))),
        (b"sock", State(type="socket", mode=0, uid=0, gid=0)),
        (b"two", file(inode=7)),
        (b"void", file(size=0, inode=0)),
    )
    assert [(one.entry.name, one.entry.kind, one.content) for one in found] == [
        (b"dev1", CHARACTER, None),
        (b"link", SYMLINK, None),
        (b"one", FILE, b"one"),
        (b"two", HARD_LINK, None),
        (b"void", FILE, None),
    ]
    assert found[0].entry.device == (5, 1)
    assert found[1].entry.link == b"to"
    assert (found[2].entry.mtime, found[2].entry.xattrs) == (5, ((b"user.a", b"b"),))
    assert found[3].entry.link == b"one"


def test_what_is_the_machines_own_is_left_out():
    kept = [b"etc/hosts.allow", b"etc/passwd", b"home/tmp/x", b"tmp"]
    own = [
        b"proc/x",
        b"tmp/x",
        b"run/y",
        b"usr/lib/modules/6.1",
        b"etc/hosts",
        b"etc/machine-id",
        b"etc/ssh/ssh_host_rsa_key",
    ]
    changes = [(name, file() if name != b"tmp" else DIRECTORY_) for name in (*kept, *own)]
    assert [name.rstrip(b"/") for name in names(*changes)] == kept
    assert planned((b"tmp", DIRECTORY_))[0].entry.kind == DIRECTORY
    assert names((b"etc/resolv.conf", None)) == []


def test_directories_are_told_of_only_for_what_is_in_them_or_has_changed():
    assert names(
        (b"etc", DIRECTORY_, True),
        (b"etc/hosts", file()),
        (b"etc/new", DIRECTORY_),
        (b"lib", DIRECTORY_),
        (b"lib/modules", file()),
        (b"tmp", DIRECTORY_),
        (b"tmp/x", file()),
        (b"usr", DIRECTORY_, True),
        (b"usr/bin", DIRECTORY_, True),
        (b"usr/bin/gone", None),
        (b"var", DIRECTORY_, True),
    ) == [b"etc/", b"etc/new/", b"tmp/", b"usr/", b"usr/bin/", b"usr/bin/.wh.gone"]


def test_certificates_of_the_host_are_no_part_of_an_image():
    bundle = (b"etc/ssl/certs/ca-certificates.crt", file())
    assert names(bundle) == [bundle[0]]
    assert names(bundle, (b"usr/local/share/ca-certificates/atoll-host.crt", file())) == []
    assert names(bundle, (b"usr/local/share/ca-certificates/atoll-host.crt", None)) == [bundle[0]]


def test_a_configuration_gets_a_layer_more_and_keeps_what_nobody_knows():
    former = {
        "os": "linux",
        "odd": 1,
        "config": {"Cmd": ["a"], "Env": ["A=1", "B=2"], "Odd": 2},
        "rootfs": {"type": "layers", "diff_ids": ["x"]},
        "history": [{"comment": "first"}],
    }
    texts = ['entrypoint ["/e"]', "ENV A=3 C='4 5'", "EXPOSE 80 53/udp", "LABEL l=m", "USER u", "CMD ls -l"]
    changes = [committing.parse_change(text) for text in texts]
    made = committing.committed(former, "y", changes=changes, message="", machine="m", created="now")
    assert (made["odd"], made["os"], made["created"]) == (1, "linux", "now")
    assert made["config"] == {
        "Cmd": ["/bin/sh", "-c", "ls -l"],
        "Entrypoint": ["/e"],
        "Env": ["B=2", "A=3", "C=4 5"],
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Labels": {"l": "m"},
        "Odd": 2,
        "User": "u",
    }
    assert made["rootfs"]["diff_ids"] == ["x", "y"]
    assert made["history"][1] == {"created": "now", "created_by": "atoll image commit m"}
    assert former["config"]["Cmd"] == ["a"]


@pytest.mark.parametrize(
    "text", ["RUN x", "CMD", "CMD [1]", "ENV A", "WORKDIR x", "EXPOSE x", "LABEL 'x", ""]
)
def test_what_is_no_change_of_an_image_is_refused(text):
    with pytest.raises(UsageError) as caught:
        committing.parse_change(text)
    assert caught.value.code == "usage.change"
