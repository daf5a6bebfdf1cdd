"""The rate of the host's time stamp counter."""

from __future__ import annotations

import os

import pytest

from atoll.hypervisor.qemu.tsc import measure_khz

ON_X86_64 = os.uname().machine == "x86_64"


@pytest.mark.skipif(not ON_X86_64, reason="only x86_64 has this counter")
def test_the_rate_is_plausible_and_two_measurements_agree_within_a_thousandth():
    first, second = measure_khz(), measure_khz()
    assert 500_000 < first < 8_000_000
    assert abs(first - second) <= first / 1000


@pytest.mark.skipif(ON_X86_64, reason="x86_64 has this counter")
def test_other_architectures_have_no_such_rate():
    assert measure_khz() is None
