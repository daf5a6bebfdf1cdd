"""The installed command, run as a user runs it."""

from __future__ import annotations

import subprocess

import pytest
from command import COMMAND

from atoll import runtime
from atoll.image import kernel


@pytest.fixture(scope="session")
def atoll(environment):
    """Run the command to its end."""

    def run(*words, timeout=120, env=None, **options):
        return subprocess.run(
            [COMMAND, *words],
            check=False,
            capture_output=True,
            timeout=timeout,
            env={**environment, **(env or {})},
            **({"stdin": subprocess.DEVNULL} | options if "input" not in options else options),
        )

    return run


@pytest.fixture(scope="session", autouse=True)
def built(config):
    """Kernel, image and verdict are there before the first test."""
    runtime.prepare(config, "test", "debian")
    return kernel.ensure(config.paths)


@pytest.fixture
def spawn_atoll(environment):
    """Start the command and leave it running; it is killed after the test."""
    children = []

    def spawn(*words, more=None, **options):
        child = subprocess.Popen([COMMAND, *words], env={**environment, **(more or {})}, **options)
        children.append(child)
        return child

    yield spawn
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
