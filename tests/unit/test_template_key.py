"""What templates are called, and which VMs share one."""

from __future__ import annotations

from atoll.hypervisor.model import Accelerator, Architecture
from atoll.template.key import base_memory, most_memory, name_of
from atoll.vm.plan import Shape

MIB = 1 << 20
GIB = 1 << 30


def test_sandboxes_of_usual_sizes_share_a_template():
    assert {base_memory(size * MIB, least=100 * MIB, growing=True) for size in (512, 1024, 4096)} == {
        512 * MIB
    }
    assert {most_memory(size * MIB, host=64 * GIB) for size in (512, 1024, 4096)} == {4 * GIB}


def test_larger_ones_have_templates_that_can_grow_further():
    assert most_memory(4 * GIB + MIB, host=64 * GIB) == 16 * GIB
    assert most_memory(60 * GIB, host=64 * GIB) == 64 * GIB


def test_none_can_have_more_than_the_host():
    assert most_memory(512 * MIB, host=2 * GIB) == 2 * GIB
    assert most_memory(20 * GIB, host=24 * GIB) == 24 * GIB


def test_templates_that_grow_differently_have_different_names():
    shape = Shape(Architecture.X86_64, Accelerator.TCG, 1, 512 * MIB)
    names = [name_of("debian:trixie", shape, "0123456789", most=most) for most in (0, 4 * GIB, 16 * GIB)]
    assert names == [
        "debian-trixie.1.512M.tcg.01234567",
        "debian-trixie.1.512M-4096M.tcg.01234567",
        "debian-trixie.1.512M-16384M.tcg.01234567",
    ]
