"""Images of another architecture: their programs in a guest of this host's, and whole VMs of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from machines import kill_all_at
from programs import packaged, root

from atoll import aio, blocking, process
from atoll.config import load
from atoll.events import ignore
from atoll.image import emulation
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.kernel import agent_path, host_architecture
from atoll.image.local.importing import bring
from atoll.image.oci.documents import platform_of
from atoll.vm.state import Phase

pytestmark = [pytest.mark.vm]

NATIVE = host_architecture()
OTHER = FOREIGN[NATIVE]
PLATFORM = PLATFORMS[OTHER]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shelf(paths, tmp_path_factory):
    """Settings with an image of the other architecture alone, as ``tool``, and what emulates its programs."""
    if emulation.find(paths, OTHER, NATIVE) is None:
        emulation.fetch(paths, OTHER, native=NATIVE)
    place = tmp_path_factory.mktemp("foreign")
    config = load({"data_dir": place / "data", "cache_dir": paths.cache}, environment={}, files=()).config
    archive = place / "tool.tar"
    busybox = packaged(paths, "busybox-static")
    archive.write_bytes(root(packaged(paths, "busybox-static", OTHER), lister=busybox))
    image = bring(config.paths, str(archive), "tool", platform=platform_of(NATIVE), emit=ignore)
    assert image.manifest.architecture == OTHER
    yield config
    kill_all_at(config.data_dir)


@pytest.fixture(scope="module")
def whole(shelf):
    """The same, on a host that has QEMU for the other architecture and an agent for its guests."""
    program = f"qemu-system-{OTHER}"
    if process.find(program) is None:
        pytest.skip(f"{program} is not installed")
    if not agent_path(OTHER).exists():
        build = [sys.executable, "hatch_build.py", "--arch", OTHER]
        subprocess.run(build, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return shelf


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_programs_of_an_image_of_another_architecture_run_and_start_one_another(shelf):
    async with aio.Sandbox("tool", platform=PLATFORM, config=shelf) as box:
        assert box.vm.clone is not None  # it began with a template, which had all this registered
        assert box.vm.machine.architecture == NATIVE
        await box.files.write("/bin/say", "#!/bin/sh\nuname -m | tr a-z A-Z; exit 3\n", mode=0o755)
        said = await box.run(["say"])
        assert (said.stdout, said.returncode) == (f"{OTHER.upper()}\n", 3)
        registered = await box.files.read_text(f"/proc/sys/fs/binfmt_misc/qemu-{OTHER}")
        assert registered.startswith("enabled")
        assert not await box.files.exists("/emulator")


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_a_whole_vm_of_another_architecture_starts_from_a_template_with_a_network(whole):
    async with aio.Sandbox("tool", platform=PLATFORM, full=True, network=True, config=whole) as box:
        assert box.vm.clone is not None
        assert box.vm.machine.architecture == OTHER
        uname = (await box.run(["uname", "-r", "-m"], check=True)).stdout
        assert uname.endswith(f"{PLATFORM.removeprefix('linux/')} {OTHER}\n")
        found = (await box.run(["nslookup", "host.atoll.internal"], check=True)).stdout
        assert "Address" in found.partition("Name:")[2]


def test_a_whole_machine_of_another_architecture_boots_goes_back_and_powers_off(whole):
    machine = blocking.Machine.create(
        "whole",
        image="tool",
        full=True,
        init="minimal",
        network=False,
        disk="64M",
        memory="256M",
        config=whole,
    )
    with machine:
        machine.start()
        machine.run(["sh", "-c", "echo kept > /root/file"], check=True)
        machine.snapshot("before")
        machine.run(["rm", "/root/file"], check=True)
        assert machine.restore("before").phase is Phase.RUNNING
        assert machine.run(["cat", "/root/file"], check=True).stdout == "kept\n"
        machine.stop()
        assert machine.state.phase is Phase.STOPPED
        machine.remove()
