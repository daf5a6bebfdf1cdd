"""What is loaded before a guest boots is what each start waits for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from atoll.cli.main import main

#: Each of these costs 10 to 100 ms, or is for builds, boots and terminals only.
NEVER_BEFORE_THE_SPAWN = {
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "difflib",
    "hashlib",
    "httpx",
    "importlib.metadata",
    "logging",
    "lz4",
    "platformdirs",
    "qemu",
    "qemu.qmp",
    "rich",
    "ssl",
    "tomllib",
    "zstandard",
    "atoll.aio",
    "atoll.blocking",
    "atoll.cli.doctor",
    "atoll.cli.image",
    "atoll.cli.session",
    "atoll.guest.channel",
    "atoll.guest.messages",
    "atoll.hypervisor.fake",
    "atoll.hypervisor.qemu.probe",
    "atoll.hypervisor.qemu.qmp",
    "atoll.image.apt",
    "atoll.image.bundle",
    "atoll.image.debian",
    "atoll.sandbox.reviving",
    "atoll.sandbox.sandbox",
    "atoll.sandbox.snapshots",
    "atoll.snapshot",
    "atoll.vm.life",
}
NEVER_FOR_HELP = NEVER_BEFORE_THE_SPAWN | {
    "msgspec",
    "subprocess",
    "socket",
    "atoll.config",
    "atoll.events",
    "atoll.hypervisor",
    "atoll.image",
    "atoll.runtime",
    "atoll.store",
}


REPORT = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, sep="\\n", file=sys.stderr))
exec(sys.argv.pop(1))
"""


def loaded_by(script, *arguments):
    """Modules that a Python process has when it ends, beside those that it begins with."""
    command = [sys.executable, "-c", REPORT]
    loaded, always = (
        set(subprocess.run([*command, *words], capture_output=True, check=True).stderr.decode().split())
        for words in ((script, *arguments), ("",))
    )
    return loaded - always


def loaded_by_command(*words):
    return loaded_by(f"from atoll.cli.main import main; main({words!r})")


def test_the_report_of_imports_is_read_right():
    assert {"asyncio", "ssl", "asyncio.events"} <= loaded_by("import asyncio")


def test_help_loads_next_to_nothing():
    loaded = loaded_by_command("--help")
    assert "argparse" in loaded
    assert loaded & NEVER_FOR_HELP == set()


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"atoll (\d+\.\d+\.\d+.*|\(not installed\))\n", capsys.readouterr().out)


def test_the_version_loads_next_to_nothing():
    loaded = loaded_by_command("--version")
    assert loaded & (NEVER_FOR_HELP - {"importlib.metadata", "socket"}) == set()


def test_a_run_loads_no_event_loop_and_no_monitor_before_its_guest_boots():
    loaded = loaded_by("from atoll.cli.main import build_parser; build_parser(['run', 'debian'])")
    assert {"atoll.cli.run", "atoll.runtime", "atoll.hypervisor.qemu.backend"} <= loaded
    assert loaded & NEVER_BEFORE_THE_SPAWN == set()


PREPARE = """
import pathlib, sys
from atoll import runtime
from atoll.config import load
from atoll.errors import AtollError
from atoll.image import catalog, kernel
paths = load({"data_dir": sys.argv[1], "cache_dir": sys.argv[1]}, environment={}, files=()).config.paths
try:
    catalog.find(paths, "debian")
except AtollError as error:
    assert error.code == "image.missing", error.code
assert kernel.find(paths, kernel.Choice(kernel.host_architecture())) is None
"""


def test_looking_for_an_image_and_a_kernel_loads_no_builder(tmp_path):
    assert loaded_by(PREPARE, str(tmp_path)) & NEVER_BEFORE_THE_SPAWN == set()


def test_a_sandbox_loads_nothing_of_snapshots_before_it_makes_one():
    loaded = loaded_by("import atoll.sandbox.sandbox, atoll.cli.session; atoll.sandbox.sandbox.Sandbox()")
    assert "atoll.vm.life" in loaded
    assert not [
        name for name in loaded if "snapshot" in name or name in {"zstandard", "atoll.sandbox.reviving"}
    ]


@pytest.mark.parametrize("module", ["atoll", "atoll.errors"])
def test_the_package_itself_is_light(module):
    assert loaded_by(f"import {module}") & NEVER_FOR_HELP == set()


def test_the_names_of_the_library_load_nothing_that_only_a_first_thread_can():
    loaded = loaded_by("import atoll; [getattr(atoll, name) for name in atoll.__all__]")
    assert "atoll.blocking" in loaded
    assert "concurrent.futures.thread" not in loaded  # it registers what is done at the program's end
