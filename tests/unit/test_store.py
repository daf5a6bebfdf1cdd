"""State on disk: replaced at once or not at all, told apart when it is wrong, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import ClassVar

import msgspec
import pytest

from atoll import store
from atoll.errors import StoreError


class Record(msgspec.Struct, frozen=True):
    """What the tests keep."""

    SCHEMA: ClassVar[int] = 2

    text: str
    number: int = 0
    schema: int = 2


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def refused(function, *arguments):
    with pytest.raises(StoreError) as caught:
        function(*arguments)
    return caught.value


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "below" / "record.json"
    store.write_record(path, Record("größer\n", 7))
    assert store.read_record(path, Record) == Record("größer\n", 7)


def test_a_record_is_text_that_a_person_can_read(tmp_path):
    store.write_record(tmp_path / "record.json", Record("x", 1))
    assert (tmp_path / "record.json").read_text() == '{\n  "text": "x",\n  "number": 1,\n  "schema": 2\n}\n'


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file"
    store.write_file(path, b"old")
    before = path.stat().st_ino
    store.write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    assert names(tmp_path) == ["file"]


def test_a_reader_that_has_the_old_file_open_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    store.write_file(path, b"old")
    with path.open("rb") as reader:
        store.write_file(path, b"new and longer")
        assert reader.read() == b"old"


def test_a_file_has_the_mode_that_was_asked_for(tmp_path):
    store.write_file(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_former_content_and_no_partial_file(tmp_path):
    path = tmp_path / "taken"
    path.mkdir()
    (path / "inside").touch()
    error = refused(store.write_file, path, b"data")  # a file cannot replace a directory
    assert error.code == "store.io"
    assert names(tmp_path) == ["taken"]
    assert names(path) == ["inside"]


def test_what_a_killed_writer_left_is_swept_by_a_later_write_but_not_what_is_being_written(tmp_path):
    stale, fresh = tmp_path / ".partial-file-00000000", tmp_path / ".partial-file-11111111"
    other = tmp_path / ".partial-file-2-00000000"
    for partial in (stale, fresh, other):
        partial.write_bytes(b"half")
    long_ago = time.time() - 86_400
    os.utime(stale, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    store.write_file(tmp_path / "file", b"x")
    assert names(tmp_path) == sorted([fresh.name, other.name, "file"])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "store.corrupt"),
        (b"{", "store.corrupt"),
        (b"\xff\xfe", "store.corrupt"),
        (b"[]", "store.corrupt"),
        (b'{"number": 1, "schema": 2}', "store.corrupt"),
        (b'{"text": 5, "schema": 2}', "store.corrupt"),
        (b'{"text": 5, "schema": 3}', "store.newer"),
        (b'{"words": [], "schema": 99}', "store.newer"),
        (b'{"text": 5, "schema": "3"}', "store.corrupt"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_for_what_it_is_and_kept(tmp_path, content, code):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    error = refused(store.read_record, path, Record)
    assert error.code == code
    assert str(path) in error.message
    assert error.hint
    assert path.read_bytes() == content


def test_a_record_that_is_not_there_is_missing(tmp_path):
    assert refused(store.read_record, tmp_path / "none.json", Record).code == "store.missing"
    (tmp_path / "file").touch()
    assert refused(store.read_record, tmp_path / "file" / "none.json", Record).code == "store.missing"


def test_a_record_whose_place_is_a_directory_cannot_be_read(tmp_path):
    assert refused(store.read_record, tmp_path, Record).code == "store.io"


@pytest.mark.parametrize(
    "act",
    [
        lambda place: store.write_file(place / "x", b"data"),
        lambda place: store.lock(place / "x.lock").__enter__(),
        lambda place: store.staging(place, "x").__enter__(),
    ],
    ids=["write", "lock", "stage"],
)
def test_a_place_that_cannot_be_written_is_unwritable_and_says_what_to_do(tmp_path, act):
    (tmp_path / "file").touch()
    error = refused(act, tmp_path / "file" / "below")  # below a file: so it is for root too
    assert error.code == "store.unwritable"
    assert "ATOLL_DATA_DIR" in error.hint


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_the_former_content_stands_and_the_space_is_given_back(small_disk):
    path = small_disk / "file"
    store.write_file(path, b"old")
    error = refused(store.write_file, path, bytes(1 << 20))
    assert error.code == "store.full"
    assert "free some space" in error.hint
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["file"]


def test_a_build_that_fills_the_disk_is_told_and_swept(small_disk):
    with pytest.raises(StoreError) as caught, store.staging(small_disk, "image") as staged:
        (staged / "root").write_bytes(bytes(1 << 20))
    assert caught.value.code == "store.full"
    assert names(small_disk) == []


def test_staging_is_gone_afterwards_also_when_the_builder_fails(tmp_path):
    with contextlib.suppress(KeyError), store.staging(tmp_path, "image") as staged:
        (staged / "half").touch()
        raise KeyError
    assert names(tmp_path) == []


def test_staging_sweeps_what_a_killed_builder_of_the_same_name_left_and_no_others(tmp_path):
    for name in (".partial-image-0123abcd", ".partial-image-2-0123abcd", ".partial-images-0123abcd", "image"):
        (tmp_path / name / "below").mkdir(parents=True)
    with store.staging(tmp_path, "image"):
        assert ".partial-image-0123abcd" not in names(tmp_path)
    assert names(tmp_path) == [".partial-image-2-0123abcd", ".partial-images-0123abcd", "image"]


def test_publish_puts_a_new_directory_in_its_place(tmp_path):
    with store.staging(tmp_path, "image") as staged:
        (staged / "deep").mkdir()
        (staged / "deep" / "root").write_bytes(b"new")
        (staged / "dangling").symlink_to("nowhere")
        store.publish(staged, tmp_path / "image")
    assert (tmp_path / "image" / "deep" / "root").read_bytes() == b"new"
    assert names(tmp_path) == ["image"]


def test_publish_replaces_a_directory_whole_and_an_open_file_of_the_old_one_stays_readable(tmp_path):
    final = tmp_path / "image"
    final.mkdir()
    (final / "old").write_bytes(b"old")
    with (final / "old").open("rb") as user:
        with store.staging(tmp_path, "image") as staged:
            (staged / "new").touch()
            store.publish(staged, final)
        assert names(final) == ["new"]
        assert user.read() == b"old"
    assert names(tmp_path) == ["image"]


def test_publish_leaves_the_former_directory_when_nothing_was_staged(tmp_path):
    final = tmp_path / "image"
    final.mkdir()
    (final / "old").touch()
    refused(store.publish, tmp_path / "nothing", final)
    assert names(final) == ["old"]
    assert names(tmp_path) == ["image"]


def test_publish_leaves_the_former_directory_when_the_new_one_cannot_be_moved_there(tmp_path, small_disk):
    final = tmp_path / "image"
    final.mkdir()
    (final / "old").touch()
    staged = small_disk / "staged"  # another file system: rename(2) refuses
    staged.mkdir()
    (staged / "new").touch()
    assert refused(store.publish, staged, final).code == "store.io"
    assert names(final) == ["old"]
    assert names(tmp_path) == ["image", "small"]


PUBLISHER = """
import sys, pathlib
from atoll import store
place = pathlib.Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    with store.lock(place / "lock"), store.staging(place, "image") as staged:
        for name in "ab":
            (staged / name).write_text(str(number))
        store.publish(staged, place / "image")
"""

WRITER = """
import sys, pathlib, msgspec
from atoll import store
class Record(msgspec.Struct):
    text: str
    number: int = 0
    schema: int = 2
path = pathlib.Path(sys.argv[1]) / "record.json"
print("ready", flush=True)
number = 0
while True:
    number += 1
    store.write_record(path, Record(str(number) * 2000, number))
"""


def start(script, *arguments):
    child = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    return child


def kill_at_a_random_instant(script, directory, *, once=lambda: True):
    child = start(script, directory)
    while not once():
        time.sleep(0.005)
    time.sleep(random.uniform(0.001, 0.06))
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()


def test_a_record_whose_writer_is_killed_at_any_instant_is_one_of_the_whole_versions(tmp_path):
    path = tmp_path / "record.json"
    seen = set()
    for last in (*[False] * 4, True):
        kill_at_a_random_instant(WRITER, tmp_path, once=path.exists if last else lambda: True)
        if path.exists():
            record = store.read_record(path, Record)
            assert record.text == str(record.number) * 2000
            seen.add(record.number)
    assert seen


def test_a_directory_that_is_being_replaced_is_there_at_every_instant(tmp_path):
    child = start(PUBLISHER, tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "image").exists():
            assert time.monotonic() < deadline
        number = 0
        while number < 10:
            for _ in range(500):
                (tmp_path / "image").stat()  # raises if it is not there
            with contextlib.suppress(FileNotFoundError):  # the directory that was opened may be gone by now
                number = int((tmp_path / "image" / "a").read_text())
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_directory_whose_publisher_is_killed_at_any_instant_is_there_and_whole(tmp_path):
    published, final = False, tmp_path / "image"
    for last in (*[False] * 4, True):
        kill_at_a_random_instant(PUBLISHER, tmp_path, once=final.exists if last else lambda: True)
        assert final.exists() or not published, "the former directory is lost"
        if final.exists():
            published = True
            assert names(final) == ["a", "b"]
            assert (final / "a").read_text() == (final / "b").read_text()
    assert published
    with store.lock(tmp_path / "lock", wait=0), store.staging(tmp_path, "image"):
        pass
    assert names(tmp_path) == ["image", "lock"]


HOLDER = """
import sys, pathlib, time
from atoll import store
with store.lock(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def hold(path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert child.stdout.readline() == b"ready\n"
    return child


def let_go(child):
    child.stdin.close()
    child.stdout.close()
    assert child.wait(timeout=60) == 0


def test_a_lock_keeps_another_process_out_until_it_is_free(tmp_path):
    path = tmp_path / "lock"
    child = hold(path)
    began = time.monotonic()
    with pytest.raises(StoreError) as caught, store.lock(path, wait=0.2):
        pass
    assert caught.value.code == "store.busy"
    assert time.monotonic() - began >= 0.2
    let_go(child)
    with store.lock(path, wait=0):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    child = hold(tmp_path / "lock")
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with store.lock(tmp_path / "lock", wait=0):
        pass


def test_a_lock_is_free_again_when_its_holder_fails_and_no_descriptor_is_left(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError), store.lock(tmp_path / "lock"):
        raise KeyError
    with store.lock(tmp_path / "lock", wait=0):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_excludes_other_threads_of_the_same_process(tmp_path):
    with (
        store.lock(tmp_path / "lock"),
        pytest.raises(StoreError) as caught,
        store.lock(tmp_path / "lock", wait=0),
    ):
        pass
    assert caught.value.code == "store.busy"


def test_remove_tree_takes_directories_files_and_links_and_does_not_follow_links(tmp_path):
    kept = tmp_path / "kept"
    (kept / "below").mkdir(parents=True)
    for victim in ("directory", "file", "link", "nothing"):
        path = tmp_path / victim
        if victim == "directory":
            shutil.copytree(kept, path)
        elif victim == "file":
            path.touch()
        elif victim == "link":
            path.symlink_to(kept)
        store.remove_tree(path)
    assert names(tmp_path) == ["kept"]
    assert names(kept) == ["below"]


@pytest.mark.parametrize("pieces", [(), ((0, 5),), ((4096, 3 << 20), (9 << 20, 700_001))])
def test_a_sparse_file_is_copied_without_its_holes(tmp_path, pieces):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("w+b") as old, target.open("w+b") as new:
        old.truncate(20 << 20)
        for at, length in pieces:
            os.pwrite(old.fileno(), random.Random(at).randbytes(length), at)
        store.copy_data(old.fileno(), new.fileno())
        assert os.fstat(new.fileno()).st_blocks <= os.fstat(old.fileno()).st_blocks + 64
    assert target.read_bytes() == source.read_bytes()


def test_a_copy_that_cannot_be_written_fails(tmp_path):
    with (tmp_path / "source").open("w+b") as old, (tmp_path / "target").open("w+b") as new:
        old.write(bytes(1 << 20))
        old.flush()
        fd = os.open(tmp_path / "target", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Invalid argument"):
                store.copy_data(old.fileno(), fd)
        finally:
            os.close(fd)
        assert not new.read()


def without_nameless_files(monkeypatch):
    real = os.open

    def without(path, flags, *arguments, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", without)


def without_links(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    without_nameless_files(monkeypatch)
    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("limit", [None, without_nameless_files, without_links])
def test_a_new_file_takes_nobodys_name_and_is_there_whole_or_not_at_all(tmp_path, monkeypatch, limit):
    if limit is not None:
        limit(monkeypatch)
    path = tmp_path / "file"
    with store.new_file(path) as file:
        file.write(b"mine")
        assert not path.exists()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"mine", 0o600)
    with pytest.raises(StoreError) as caught, store.new_file(path):
        raise AssertionError("it is there already")
    assert caught.value.code == "store.already_exists"
    path.unlink()
    with pytest.raises(StoreError) as caught, store.new_file(path):
        path.write_bytes(b"another's")
    assert (caught.value.code, path.read_bytes()) == ("store.already_exists", b"another's")
    with pytest.raises(KeyError), store.new_file(tmp_path / "other"):
        raise KeyError
    assert os.listdir(tmp_path) == ["file"]
