"""Every backend, and machines that it can spawn."""

from __future__ import annotations

import pytest

from atoll import runtime
from atoll.hypervisor.fake import FakeHypervisor
from atoll.hypervisor.model import Accelerator, Architecture, Machine


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.vm)])
def backend(request, config):
    """A hypervisor and a machine without a root: the agent alone."""
    if request.param == "fake":
        machine = Machine(
            name="contract",
            architecture=Architecture.X86_64,
            accelerator=Accelerator.TCG,
            vcpus=1,
            memory=256 << 20,
            kernel=config.paths.cache / "unused",
            initramfs=config.paths.cache / "unused",
        )
        return FakeHypervisor(), machine
    from atoll.vm.plan import Bootable, Shape, plan

    candidate = runtime.candidate(config, runtime.host_architecture())
    shape = Shape(candidate.architecture, Accelerator.TCG, vcpus=1, memory=256 << 20)
    files = Bootable(candidate.files.kernel, candidate.files.initramfs)
    return candidate.hypervisor, plan("contract", files, shape)
