"""What all tests share: where builds are kept, what nothing may leave behind, what is kept of a failure."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest
from builds import take_image
from examples import EXAMPLES
from hypothesis import HealthCheck, settings
from machines import kill_all_at
from processes import RUN, descendants, machines_running
from traces import cgroups

from atoll.config import load
from atoll.paths import Paths

ROOT = Path(__file__).parent.parent
FAILURES = ROOT / "test-failures"

# How long an example takes says how busy the host is, not whether the code is right.
settings.register_profile(
    "steady", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def own_settings():
    """Tests see none of the user's settings."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith("ATOLL_"):
            patch.delenv(name)
    patch.setenv(RUN, str(os.getpid()))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def paths():
    """Kernel bundles and images, kept between runs in the checkout's build directory."""
    place = ROOT / "build" / "test-cache"
    return Paths(data=place / "data", cache=place / "cache")


@pytest.fixture(scope="session")
def config(paths):
    """Settings of the tests: their own directories, no files, no variables."""
    return load(
        {"data_dir": paths.data, "cache_dir": paths.cache}, environment={}, files=(Path("/nowhere"),)
    ).config


@pytest.fixture(scope="session")
def environment(paths):
    """The environment for the installed command."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_")}
    return {**kept, "ATOLL_DATA_DIR": str(paths.data), "ATOLL_CACHE_DIR": str(paths.cache)}


@pytest.fixture(scope="session")
def engine_config(tmp_path_factory, paths):
    """Settings of the one Docker engine of several files of tests, each of which takes it as it finds it.

    A boot of an engine takes a processor for 20 s, with two CPUs a fourth longer. It shares a directory.
    """
    place = tmp_path_factory.mktemp("engine")
    data, shared = place / "data", place / "shared"
    take_image(paths, Paths(data=data, cache=paths.cache), "engine")
    shared.mkdir()
    wishes = {
        "data_dir": data,
        "cache_dir": paths.cache,
        "accel": "tcg",
        "docker_cpus": 1,
        "docker_disk": "4G",
        "docker_memory": "1G",
        "docker_shares": (shared,),
    }
    try:
        yield load(wishes, environment={}, files=()).config
    finally:
        kill_all_at(place)


@pytest.fixture
def no_leftovers():
    """After the test no process, no descriptor and no cgroup is there that was not there before."""
    processes, machines, open_files = descendants(), machines_running(), len(os.listdir("/proc/self/fd"))
    confined = cgroups()
    yield
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = {pid: name for pid, name in descendants().items() if pid not in processes}
        if not left and machines_running() <= machines and len(os.listdir("/proc/self/fd")) <= open_files:
            assert cgroups() <= confined
            return
        time.sleep(0.02)
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    pytest.fail(f"left behind: {left}, VMs {machines_running() - machines}, descriptors {sorted(links)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        _keep(item)
    return report


def _keep(item):
    """Keep the console logs and state directories of a failed test."""
    kept = getattr(item, "funcargs", {})
    place = FAILURES / item.name.replace("/", "_")
    for name, value in kept.items():
        if name == "tmp_path" and value.is_dir():
            with contextlib.suppress(OSError):  # what can be kept is kept
                shutil.copytree(
                    value, place / "tmp_path", dirs_exist_ok=True, symlinks=True, ignore=_not_kept
                )
        console = getattr(value, "console", None)
        if console is not None:
            place.mkdir(parents=True, exist_ok=True)
            text = console if isinstance(console, str) else console.text()
            (place / f"{name}-console.log").write_text(text)


def _not_kept(directory, names):
    """Sockets cannot be copied, and disks are sparse."""
    paths = [Path(directory, name) for name in names]
    return [path.name for path in paths if path.is_socket() or path.suffix == ".img"]
