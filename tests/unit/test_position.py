"""Firmware told from kernel by QEMU's answer to ``info registers``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.hypervisor.port import Position
from atoll.hypervisor.qemu.qmp import position_of

X86 = """\
\r
CPU#0\r
RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=ffffffff82203e90
R8 =0000000000000000 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000000
RIP={pc} RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""
ARM = """\
\r
CPU#0\r
 PC={pc} X00=0000000000000000 X01=0000000000000000
X02=0000000000000000 X03=0000000000000000 X04=0000000000000000 X05=0000000000000000
PSTATE=600003c5 -ZC- EL1h
"""
X86_REAL_MODE = """\
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
EIP={pc} EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
"""


@pytest.mark.parametrize(
    ("answer", "pc", "position"),
    [
        (X86, "ffffffff81a0e2bb", Position.KERNEL),
        (X86, "00007f0000000000", Position.FIRMWARE),
        (X86, "00000000fffffff0", Position.FIRMWARE),
        (X86_REAL_MODE, "0000fff0", Position.FIRMWARE),
        (ARM, "ffff800010a7b1c8", Position.KERNEL),
        (ARM, "0000000040080000", Position.FIRMWARE),
    ],
)
def test_an_address_in_the_upper_half_is_the_kernels(answer, pc, position):
    assert position_of(answer.format(pc=pc)) is position


@pytest.mark.parametrize("answer", ["", "unknown command: 'info registers'", "RIP=", "RIP=zz", "XRIP=ffff"])
def test_an_answer_without_the_program_counter_tells_nothing(answer):
    assert position_of(answer) is Position.UNKNOWN


@given(st.text())
def test_any_answer_is_a_position(answer):
    assert position_of(answer) in set(Position)
