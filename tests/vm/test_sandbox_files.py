"""``files`` in a real guest."""

from __future__ import annotations

import os
import threading

import pytest

import atoll

pytestmark = [pytest.mark.vm]


@pytest.fixture(scope="module")
def box(config):
    """One guest for all: each test has a directory of its own."""
    with atoll.Sandbox("debian", config=config, workdir="/srv") as box:
        yield box


def test_what_one_face_writes_the_other_reads(box):
    content = os.urandom(3_000_000)
    assert box.files.write("rw/f", content, parents=True, mode=0o640) == 3_000_000
    assert box.run(["stat", "-c", "%a %s %U", "/srv/rw/f"]).stdout == "640 3000000 root\n"
    assert b"".join(box.files.read_chunks("/srv/rw/f")) == content
    box.run(["sh", "-c", "printf from-the-guest > rw/g"], check=True)
    assert box.files.read_text("rw/g") == "from-the-guest"


def test_the_image_is_listed_and_its_files_are_replaced(box):
    names = {info.name: info for info in box.files.list("/")}
    assert {"etc", "proc", "usr"} <= set(names)
    assert (names["bin"].kind, names["bin"].target) == ("symlink", "usr/bin")
    issue = box.files.stat("/etc/issue")
    box.files.write("/etc/issue", "mine\n")
    after = box.files.stat("/etc/issue")
    assert (after.size, after.mode, after.uid) == (5, issue.mode, 0)
    assert box.run(["cat", "/etc/issue"]).stdout == "mine\n"
    assert len(box.files.list("/usr/bin")) > 200
    box.files.remove("/etc/skel", recursive=True)
    assert not box.files.exists("/etc/skel")


def test_files_are_those_of_a_user(box):
    box.files.make_directory("theirs", mode=0o1777)
    box.files.write("theirs/f", "x", user="nobody")
    assert box.run(["stat", "-c", "%U %G", "/srv/theirs/f"]).stdout == "nobody nogroup\n"
    with pytest.raises(atoll.FileError) as caught:
        box.files.read_text("/etc/shadow", user="nobody")
    assert caught.value.code == "file.denied"
    with pytest.raises(atoll.FileMissingError):
        box.files.read("missing", user="nobody")


def test_the_kernels_own_files_are_read_and_written(box):
    box.files.write("/proc/sys/kernel/hostname", "renamed", in_place=True)
    assert box.files.read_text("/proc/sys/kernel/hostname") == "renamed\n"


def test_a_tree_goes_with_all_in_it_but_not_with_what_is_mounted_there(box):
    box.run(["sh", "-c", "mkdir -p tree/a/b; seq 2000 | (cd tree/a/b; xargs touch); ln -s /etc tree/etc"])
    box.files.move("tree", "moved")
    box.files.remove("moved", recursive=True)
    assert not box.files.exists("moved")
    assert box.files.exists("/etc/passwd")
    box.run(["sh", "-c", "mkdir -p mounted/m; mount -t tmpfs none mounted/m; touch mounted/m/f"], check=True)
    with pytest.raises(atoll.FileError) as caught:
        box.files.remove("mounted", recursive=True)
    assert caught.value.code == "file.busy"
    assert box.files.exists("mounted/m/f")


def test_changes_by_commands_are_told_while_they_happen(box):
    box.files.make_directory("watched")
    with box.files.watch("watched", recursive=True) as changes:
        box.run(["sh", "-c", "cd watched; mkdir d; echo x > f; mv f g; rm g"], check=True)
        told = [changes.next(10) for _ in range(5)]
        assert [(change.kind, change.path) for change in told] == [
            ("created", "watched/d"),
            ("created", "watched/f"),
            ("modified", "watched/f"),
            ("moved", "watched/g"),
            ("removed", "watched/g"),
        ]
        box.files.write("watched/d/f", "x")
        while (change := changes.next(10)).kind != "moved":
            assert change.path.startswith("watched/d/.atoll-")
        assert change.path == "watched/d/f"


def test_a_watch_is_closed_from_another_thread(box):
    changes = box.files.watch("/srv")
    changes.open()
    found = []
    thread = threading.Thread(target=lambda: found.extend(changes))
    thread.start()
    box.files.make_directory("/srv/closing")
    changes.close()
    thread.join(10)
    assert not thread.is_alive()
