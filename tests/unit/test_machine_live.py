"""What is recorded of changes to a machine that may be running."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import hosted_spec

from atoll.config import Config, load
from atoll.errors import ConfigError, UsageError
from atoll.hypervisor.model import Accelerator, Architecture
from atoll.machine import live
from atoll.machine.spec import Share, check_guest_path
from atoll.vm.plan import Shape, limits_of

GIB = 1 << 30
SPEC = hosted_spec(shares=(Share("/home/me", "/mnt/home"),), cpus=2, memory=GIB)


@pytest.fixture
def settings(tmp_path) -> Config:
    return load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config


def shape(**changes):
    sizes = {"vcpus": 1, "memory": GIB, **changes}
    return Shape(
        sizes.pop("architecture", Architecture.X86_64), sizes.pop("accelerator", Accelerator.TCG), **sizes
    )


def test_a_share_is_added_behind_the_others():
    changed = live.with_share(SPEC, Share("/tmp", "/mnt/tmp", read_only=True))
    assert [share.guest for share in changed.shares] == ["/mnt/home", "/mnt/tmp"]
    assert changed.cpus == SPEC.cpus


def test_two_shares_cannot_be_in_one_place():
    with pytest.raises(UsageError, match="already"):
        live.with_share(SPEC, Share("/tmp", "/mnt/home"))


def test_a_share_is_taken_away_by_any_spelling_of_its_place():
    assert live.without_share(SPEC, "/mnt//./home/").shares == ()
    with pytest.raises(UsageError, match="no share") as caught:
        live.without_share(SPEC, "/mnt/other")
    assert "/mnt/home" in caught.value.hint


@pytest.mark.parametrize("path", ["", "/", "//", "/.", "relative", "/a/../b", "/..", "/a\0b"])
def test_not_every_path_is_a_place_for_a_share(path):
    with pytest.raises(UsageError, match="no place"):
        check_guest_path(path)


@given(st.lists(st.sampled_from(["a", "b.c", "..d", "", "."]), max_size=6))
def test_the_plain_form_of_a_place_is_its_own(parts):
    if set(parts) <= {"", "."}:
        return
    plain = check_guest_path("/" + "/".join(parts))
    assert check_guest_path(plain) == plain
    assert "//" not in plain
    assert not plain.endswith("/")


def test_a_share_of_what_is_not_there_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for place in (tmp_path / "missing", file):
        with pytest.raises(UsageError, match="no directory"):
            live.make_share(place, "/mnt", read_only=False)


def test_sizes_that_are_not_named_stay(settings):
    assert live.sized(settings, SPEC, cpus=None, memory=None) == SPEC
    assert live.sized(settings, SPEC, cpus="3", memory=None).cpus == 3
    changed = live.sized(settings, SPEC, cpus=None, memory="2G")
    assert (changed.cpus, changed.memory) == (2, 2 * GIB)


def test_a_size_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError):
        live.sized(settings, SPEC, cpus=0, memory=None)


def test_a_small_machine_can_grow_to_16_gib_and_a_large_one_fourfold():
    assert limits_of(shape(), host_memory=64 * GIB, host_cpus=4).memory == 16 * GIB
    assert limits_of(shape(memory=8 * GIB), host_memory=64 * GIB, host_cpus=4).memory == 32 * GIB


def test_no_machine_grows_beyond_its_host():
    assert limits_of(shape(), host_memory=8 * GIB, host_cpus=4).memory == 8 * GIB
    assert limits_of(shape(memory=8 * GIB), host_memory=8 * GIB, host_cpus=4).memory == 0


def test_a_single_vcpu_that_is_emulated_stays_alone_since_it_is_faster_so():
    assert limits_of(shape(), host_memory=GIB, host_cpus=4).vcpus == 0
    assert limits_of(shape(vcpus=2), host_memory=GIB, host_cpus=4).vcpus == 4
    assert limits_of(shape(vcpus=4), host_memory=GIB, host_cpus=4).vcpus == 0
    assert limits_of(shape(accelerator=Accelerator.KVM), host_memory=GIB, host_cpus=4).vcpus == 4


def test_on_arm_nothing_grows():
    arm = shape(architecture=Architecture.AARCH64, vcpus=2)
    limits = limits_of(arm, host_memory=64 * GIB, host_cpus=4)
    assert (limits.vcpus, limits.memory) == (0, 0)
