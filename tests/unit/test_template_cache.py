"""Templates on disk, whole and otherwise."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from atoll import store
from atoll.errors import StoreError
from atoll.paths import Paths
from atoll.template import cache
from atoll.template.cache import Manifest

PAGE = 4096
NAME = "debian+trixie.1.512M.tcg.01234567"
CONTENT = b"page".ljust(PAGE)


@pytest.fixture
def paths(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


def blank(name=NAME, **fields):
    """A manifest before it is sealed."""
    wanted = {
        "identity": "one",
        "image": "debian:trixie",
        "accelerator": "tcg",
        "vcpus": 1,
        "memory": 4 * PAGE,
        "hypervisor": "QEMU 7.2",
        "created": 1_790_000_000.0,
    }
    return Manifest(name=name, **(wanted | fields))


@pytest.fixture
def enter(paths):
    """Enter a template that is whole."""

    def enter(name=NAME, content=CONTENT, **fields):
        place = paths.template(name)
        place.directory.mkdir(parents=True, exist_ok=True)
        place.ram.write_bytes(content)
        place.state.write_bytes(b"state")
        manifest = replace(
            blank(name, **fields),
            ram=store.stamp(place.ram),
            state=store.stamp(place.state),
            digest=cache.digest_of(place.ram),
        )
        store.write_record(place.manifest, manifest)
        return cache.Template(place, manifest)

    return enter


class TestFind:
    def test_a_whole_one_is_found(self, paths, enter):
        template = enter()
        assert cache.find(paths, NAME) == template
        assert cache.find(paths, NAME, "one") == template

    def test_where_there_is_none_none_is_found(self, paths, enter):
        assert cache.find(paths, NAME) is None
        enter("another")
        assert cache.find(paths, NAME) is None

    def test_one_that_was_made_of_something_else_is_stale(self, paths, enter):
        enter()
        assert cache.find(paths, NAME, "two") is None

    @pytest.mark.parametrize("which", ["ram", "state"])
    def test_a_file_that_was_written_to_is_not_used(self, paths, enter, which):
        path = getattr(enter().place, which)
        was = path.stat()
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
        assert cache.find(paths, NAME) is None

    @pytest.mark.parametrize("which", ["ram", "state"])
    @pytest.mark.parametrize("by", [-1, 1])
    def test_a_file_of_another_size_is_not_used(self, paths, enter, which, by):
        path = getattr(enter().place, which)
        was = path.stat()
        os.truncate(path, was.st_size + by)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert cache.find(paths, NAME) is None

    @pytest.mark.parametrize("which", ["ram", "state", "manifest"])
    def test_one_that_lacks_a_file_is_not_used(self, paths, enter, which):
        getattr(enter().place, which).unlink()
        assert cache.find(paths, NAME) is None

    @pytest.mark.parametrize(
        "record",
        [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b'{"schema": 2, "name": "x"}', b'{"schema": "1"}'],
        ids=["empty", "cut off", "a list", "no text", "without fields", "newer", "no number"],
    )
    def test_a_record_that_cannot_be_read_is_not_used(self, paths, enter, record):
        enter().place.manifest.write_bytes(record)
        assert cache.find(paths, NAME) is None

    @given(record=st.binary(max_size=200))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_record_can_be_there(self, paths, record):
        place = paths.template(NAME)
        place.directory.mkdir(parents=True, exist_ok=True)
        place.manifest.write_bytes(record)
        assert cache.find(paths, NAME) is None

    def test_a_failure_is_found_without_files_until_the_recipe_changes(self, paths):
        failed = blank(failure="it hangs")
        cache.remember_failure(paths, failed)
        found = cache.find(paths, NAME, "one")
        assert found is not None
        assert (found.manifest.failure, found.size) == ("it hangs", 0)
        assert cache.find(paths, NAME, "two") is None

    def test_a_failure_takes_the_place_of_a_stale_template(self, paths, enter):
        stale = enter(identity="zero")
        cache.remember_failure(paths, blank(failure="it hangs"))
        assert not stale.place.ram.exists()
        assert not stale.place.state.exists()
        assert cache.find(paths, NAME).manifest.failure == "it hangs"


class TestOpened:
    def test_names_lead_to_the_files_that_were_found_whatever_takes_their_place(self, enter, tmp_path):
        template = enter(content=b"first".ljust(PAGE))
        with cache.opened(template) as place:
            template.place.directory.rename(tmp_path / "aside")
            enter(content=b"second".ljust(PAGE))
            assert place.ram.read_bytes() == b"first".ljust(PAGE)
            assert store.stamp(place.state) == template.manifest.state
            store.remove_tree(tmp_path / "aside")
            assert not place.ram.exists()

    def test_one_that_was_replaced_since_it_was_found_is_refused(self, enter):
        template = enter(content=b"first".ljust(PAGE))
        enter(content=b"second".ljust(2 * PAGE))
        with pytest.raises(StoreError) as caught, cache.opened(template):
            pass
        assert caught.value.code == "store.missing"

    @pytest.mark.parametrize("which", ["directory", "ram", "state"])
    def test_one_that_was_removed_since_it_was_found_is_refused(self, enter, which):
        template = enter()
        store.remove_tree(getattr(template.place, which))
        with pytest.raises(StoreError) as caught, cache.opened(template):
            pass
        assert caught.value.code == "store.missing"

    def test_nothing_stays_open(self, enter):
        template = enter()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(KeyError), cache.opened(template):
            raise KeyError
        template.place.ram.unlink()
        with pytest.raises(StoreError), cache.opened(template):
            pass
        assert len(os.listdir("/proc/self/fd")) == before


class TestRemoval:
    def test_nothing_of_a_discarded_one_is_left(self, paths, enter):
        enter()
        other = enter("other")
        cache.discard(paths, NAME)
        assert os.listdir(paths.templates) == ["other"]
        assert cache.find(paths, "other") == other

    def test_what_is_no_template_can_be_discarded_too(self, paths):
        paths.templates.mkdir(parents=True)
        (paths.templates / "file").write_text("x")
        (paths.templates / "empty").mkdir()
        for name in ("file", "empty", "absent"):
            cache.discard(paths, name)
        assert os.listdir(paths.templates) == []

    def test_one_that_cannot_be_removed_is_an_error(self, paths, enter, monkeypatch):
        enter()

        def refuse(path):
            raise PermissionError(1, "Operation not permitted", str(path))

        monkeypatch.setattr(store, "remove_tree", refuse)
        with pytest.raises(StoreError, match="Operation not permitted"):
            cache.discard(paths, NAME)

    def test_one_of_no_use_is_withdrawn(self, paths, enter):
        template = enter()
        cache.withdraw(paths, NAME, template.manifest.created)
        assert os.listdir(paths.templates) == []

    def test_one_that_has_taken_its_place_is_not_withdrawn(self, paths, enter):
        newer = enter(created=2_000_000_000.0)
        cache.withdraw(paths, NAME, 1_790_000_000.0)
        assert cache.find(paths, NAME) == newer

    def test_nobody_waits_to_withdraw(self, paths, enter):
        template = enter()
        with store.lock(cache.lock_of(paths, NAME)):
            cache.withdraw(paths, NAME, template.manifest.created)
            assert cache.find(paths, NAME) == template

    def test_withdrawing_what_is_not_there_is_fine(self, paths):
        cache.withdraw(paths, NAME, 0.0)
        assert cache.installed(paths) == []

    def test_what_killed_makers_left_is_swept_but_not_what_is_being_made(self, paths):
        with store.staging(paths.templates, "busy") as busy, store.staging(paths.templates, NAME) as left:
            (left / "ram").write_bytes(b"x")
            with store.lock(cache.lock_of(paths, "busy")):
                cache.sweep(paths)
            assert busy.exists()
            assert not left.exists()

    def test_what_nobody_used_for_a_week_is_pruned_but_not_what_is_used_or_being_made(self, paths, enter):
        used, unused, busy = (enter(name) for name in ("used", "unused", "busy"))
        long_ago = time.time() - 8 * 86_400
        for template in (used, unused, busy):
            os.utime(template.place.manifest, (long_ago, long_ago))
        (paths.templates / "damaged").mkdir()
        cache.note_use(used)
        with store.lock(cache.lock_of(paths, "busy")):
            cache.prune(paths)
        assert [one.name for one in cache.installed(paths)] == ["busy", "used"]

    def test_sweeping_takes_no_template(self, paths, enter):
        template = enter()
        cache.sweep(paths)
        assert cache.find(paths, NAME) == template

    def test_where_nothing_was_ever_made_there_is_nothing_to_sweep(self, paths):
        cache.sweep(paths)
        assert not paths.templates.exists()

    def test_a_discard_waits_for_a_maker(self, paths, enter):
        enter()
        with store.lock(cache.lock_of(paths, NAME)):
            thread = threading.Thread(target=cache.discard, args=(paths, NAME))
            thread.start()
            thread.join(0.1)
            assert thread.is_alive()
            made = enter()
            assert cache.find(paths, NAME) == made
        thread.join()
        assert cache.find(paths, NAME) is None


class TestInstalled:
    def test_all_are_listed_by_name_with_what_is_wrong(self, paths, enter):
        first = enter("b")
        second = enter("a")
        enter("damaged").place.ram.unlink()
        cache.remember_failure(paths, blank("failed", failure="it hangs"))
        (paths.templates / ".partial-x-01234567").mkdir()
        cache.lock_of(paths, "a").touch()
        listed = {one.name: (one.template, one.error) for one in cache.installed(paths)}
        assert list(listed) == ["a", "b", "damaged", "failed"]
        assert listed["a"] == (second, "")
        assert listed["b"] == (first, "")
        assert listed["damaged"] == (None, "broken")
        assert listed["failed"][1] == "it hangs"

    def test_without_a_directory_there_is_none(self, paths):
        assert cache.installed(paths) == []
        paths.cache.mkdir(parents=True)
        paths.templates.write_text("no directory")
        assert cache.installed(paths) == []

    def test_one_that_goes_away_meanwhile_has_no_size(self, enter):
        template = enter()
        assert template.size > 0
        store.remove_tree(template.place.directory)
        assert template.size == 0


class TestDigest:
    @given(
        pages=st.dictionaries(
            st.integers(0, 40), st.sampled_from([b"", b"a", b"b" * PAGE, b"\0" * 9 + b"c"])
        ),
        size=st.integers(1, 41),
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_holes_and_empty_pages_are_the_same(self, tmp_path, pages, size):
        """``pages`` are written, empty ones too; all others stay holes."""
        path = tmp_path / "ram"
        with path.open("wb") as file:
            for number, content in pages.items():
                file.seek(number * PAGE)
                file.write(content.ljust(PAGE, b"\0"))
            file.truncate(size * PAGE)
        whole = hashlib.sha256()
        for number in range(size):
            page = pages.get(number, b"").ljust(PAGE, b"\0")
            if page != bytes(PAGE):
                whole.update((number * PAGE).to_bytes(8, "little") + page)
        assert cache.digest_of(path) == whole.hexdigest()

    def test_a_page_that_moved_is_another_digest(self, tmp_path):
        first, second = tmp_path / "1", tmp_path / "2"
        first.write_bytes(b"x".ljust(PAGE, b"\0") + bytes(PAGE))
        second.write_bytes(bytes(PAGE) + b"x".ljust(PAGE, b"\0"))
        assert cache.digest_of(first) != cache.digest_of(second)

    def test_more_than_is_read_at_once(self, tmp_path, monkeypatch):
        path = tmp_path / "ram"
        path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(1, 20)))
        whole = cache.digest_of(path)
        monkeypatch.setattr(cache, "_READ", 3 * PAGE)
        assert cache.digest_of(path) == whole

    def test_an_error_is_no_hole(self, tmp_path):
        with pytest.raises(OSError, match="Is a directory"):
            cache.digest_of(tmp_path)

    def test_it_tells_what_was_changed_behind_the_date(self, enter):
        template = enter()
        assert cache.verify(template)
        was = template.place.ram.stat()
        with template.place.ram.open("r+b") as file:
            file.seek(PAGE - 1)
            file.write(b"!")
        os.utime(template.place.ram, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert not cache.verify(template)

    def test_what_is_gone_is_not_what_was_sealed(self, enter):
        template = enter()
        template.place.ram.unlink()
        assert not cache.verify(template)


def test_a_manifest_is_what_it_was_when_it_is_read_again(paths, enter):
    template = enter(created=1.5)
    again = msgspec.json.decode(template.place.manifest.read_bytes(), type=Manifest)
    assert again == template.manifest
