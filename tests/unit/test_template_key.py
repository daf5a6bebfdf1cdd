"""What a template depends on, and what VM it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from atoll.hypervisor.model import Accelerator, Architecture, MemoryFile
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.template.key import (
    base_memory,
    clone_of,
    identity_of,
    most_memory,
    name_of,
    original,
    plan_original,
)
from atoll.vm.plan import Bootable, Shape

MIB = 1 << 20
HOST = 16 << 30

FILES = Bootable(kernel=Path("/k/vmlinux"), initramfs=Path("/k/initramfs"), root=Path("/i/root.erofs"))
SHAPE = Shape(Architecture.X86_64, Accelerator.TCG, vcpus=2, memory=256 * MIB, tsc_khz=2_500_000)


class TestBaseMemory:
    @pytest.mark.parametrize(
        ("memory", "base"),
        [(128, 128), (200, 128), (256, 256), (260, 256), (511, 511), (512, 512), (600, 512), (3072, 512)],
    )
    def test_a_template_serves_all_sizes_above_its_own(self, memory, base):
        assert base_memory(memory * MIB, least=100 * MIB, most=HOST) == base * MIB

    @pytest.mark.parametrize(("memory", "base"), [(200, 200), (256, 256), (600, 512)])
    def test_a_base_in_which_the_kernel_does_not_come_up_is_none(self, memory, base):
        assert base_memory(memory * MIB, least=150 * MIB, most=HOST) == base * MIB

    @pytest.mark.parametrize("odd", [513, 514, 515])
    def test_what_guests_cannot_take_in_full_is_not_plugged_in(self, odd):
        assert base_memory(odd * MIB, least=100 * MIB, most=HOST) == odd * MIB

    @pytest.mark.parametrize("memory", [200, 512, 3000])
    def test_without_plugging_a_template_is_for_one_size(self, memory):
        assert base_memory(memory * MIB, least=100 * MIB, most=0) == memory * MIB

    @given(memory=st.integers(64, 1 << 16), least=st.integers(64, 1024), most=st.integers(64, 1 << 16))
    def test_the_rest_can_always_be_plugged_in(self, memory, least, most):
        base = base_memory(memory * MIB, least=least * MIB, most=most * MIB)
        if base == memory * MIB:
            return
        assert least * MIB <= base < memory * MIB
        shape = replace(SHAPE, memory=base)
        machine = plan_original(FILES, shape, most=most * MIB)
        vector = render(machine, "qemu", Descriptors(-1, -1, -1), sandbox=False)
        (backend,) = (word for word in vector if word.startswith("memory-backend-ram,id=more"))
        plugged = int(backend.split("size=")[1].split("M")[0]) * MIB
        assert memory * MIB - base <= plugged


class TestMostMemory:
    def test_sandboxes_of_usual_sizes_share_a_template(self):
        sizes = (512 * MIB, 1024 * MIB, 4096 * MIB)
        assert {base_memory(size, least=100 * MIB, most=4608 * MIB) for size in sizes} == {512 * MIB}
        assert {most_memory(size, host=4 * HOST) for size in sizes} == {4608 * MIB}

    def test_larger_ones_have_templates_that_can_grow_further(self):
        assert most_memory(4609 * MIB, host=4 * HOST) == 4 * 4608 * MIB
        assert most_memory(60 << 30, host=4 * HOST) == 4 * HOST

    @given(memory=st.integers(512, 1 << 16))
    def test_every_size_that_the_host_has_room_for_can_be_plugged_in(self, memory):
        size = memory // 4 * 4 * MIB
        most = most_memory(size, host=128 << 30)
        assert base_memory(size, least=100 * MIB, most=most) == 512 * MIB

    def test_none_can_have_more_than_the_host(self):
        assert most_memory(512 * MIB, host=2 << 30) == 2 << 30
        assert most_memory(20 << 30, host=24 << 30) == 24 << 30


class TestName:
    def test_templates_that_grow_differently_have_names_of_their_own(self):
        names = [name_of("debian:trixie", SHAPE, "k", most=most) for most in (0, 4 << 30, 16 << 30)]
        assert names[1] == "debian+trixie.2.256M-4096M.tcg.k"
        assert len(set(names)) == 3

    def test_it_says_what_a_user_chooses(self):
        assert name_of("debian:trixie", SHAPE, "0123456789abcdef") == "debian+trixie.2.256M.tcg.01234567"

    def test_images_that_differ_in_where_their_colon_is_have_names_of_their_own(self):
        assert name_of("a-b:c", SHAPE, "k") != name_of("a:b-c", SHAPE, "k")

    @pytest.mark.parametrize(
        "shape",
        [
            replace(SHAPE, vcpus=1),
            replace(SHAPE, memory=512 * MIB),
            replace(SHAPE, accelerator=Accelerator.KVM),
        ],
    )
    def test_shapes_have_names_of_their_own(self, shape):
        assert name_of("debian:trixie", shape, "k") != name_of("debian:trixie", SHAPE, "k")


class TestIdentity:
    @given(st.lists(st.text("ab", max_size=2)), st.lists(st.text("ab", max_size=2)), st.data())
    def test_each_word_counts(self, argv, parts, data):
        words = [*argv, *parts]
        if not words:
            return
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] += "c"
        changed = identity_of(words[: len(argv)], words[len(argv) :])
        assert changed != identity_of(argv, parts)
        assert identity_of(argv, parts) == identity_of(tuple(argv), iter(parts))

    def test_it_can_be_read_line_by_line(self):
        assert identity_of(("qemu", "-m", "512M"), ("7.2", "cpu")).splitlines()[1:] == [
            *("qemu", "-m", "512M"),
            "",
            *("7.2", "cpu"),
        ]


class TestMachines:
    def test_what_a_clone_is_called_does_not_change_what_is_frozen(self):
        machine = plan_original(FILES, SHAPE, most=HOST)
        assert machine == plan_original(FILES, SHAPE, most=HOST)
        assert "atoll.hostname=template" in machine.cmdline
        assert f"atoll.machine_id={'0' * 32}" in machine.cmdline

    def test_it_has_what_can_be_frozen_and_no_more(self):
        machine = plan_original(FILES, SHAPE, most=HOST)
        assert (machine.balloon, machine.consoles, machine.slots, machine.network) == (False, False, 0, None)
        assert machine.max_memory == HOST
        assert plan_original(FILES, SHAPE, most=0).max_memory == 0

    def test_the_original_writes_to_the_file_and_a_clone_does_not(self):
        machine = plan_original(FILES, SHAPE, most=HOST)
        frozen = original(machine, Path("/t/ram"))
        clone = clone_of(machine, "sandbox-1", Path("/t/ram"))
        assert frozen.ram == MemoryFile(Path("/t/ram"), shared=True)
        assert clone.ram == MemoryFile(Path("/t/ram"), shared=False)
        assert clone.name == "sandbox-1"
        assert replace(clone, name=machine.name, ram=None) == replace(frozen, ram=None) == machine

    def test_a_private_ram_file_and_a_balloon_exclude_each_other(self):
        machine = plan_original(FILES, SHAPE, most=HOST)
        ballooned = replace(machine, balloon=True)
        assert original(ballooned, Path("/t/ram")).balloon
        with pytest.raises(AssertionError):
            clone_of(ballooned, "sandbox-1", Path("/t/ram"))
        with pytest.raises(AssertionError):
            replace(clone_of(machine, "sandbox-1", Path("/t/ram")), balloon=True)
