"""Machines with a real guest for tests of what can be done to them while they run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from machines import kill_all_at

from atoll import blocking, runtime
from atoll.config import load
from atoll.image import catalog
from atoll.paths import Paths


@contextlib.contextmanager
def running_machine(data: Path, paths: Paths, **wishes: object) -> Iterator[blocking.Machine]:
    """A machine that runs, with the agent as its init; nothing of it is left afterwards."""
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    data.mkdir(exist_ok=True)
    (data / "images").symlink_to(paths.images)
    config = load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config
    wishes = {"init": "minimal", "network": False, "accel": "tcg", **wishes}
    machine = blocking.Machine.create("dev", config=config, **wishes)
    try:
        machine.start()
        yield machine
        machine.stop(force=True)
    finally:
        machine.close()
        kill_all_at(data)


def eventually(condition, within: float = 60.0) -> None:
    """Wait until ``condition`` holds; fail if it does not."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
