"""Listener, supervisor and hypervisor killed at random under load: the engine has what it had.

``CHAOS_ROUNDS``, ``CHAOS_PAUSE`` (seconds) and ``CHAOS_SEED`` make it longer, and another one, as ``make
chaos`` does; a failure prints the seed. The first round kills the hypervisor, with which most can be lost;
``test_docker_socket`` kills the two others. What the engine said it had done some seconds before its machine
was killed must be there afterwards. What is younger may be missing, as after a power cut, since dockerd does
not sync each name that it gives; what is there must be whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import signal
import subprocess
import tarfile
import threading
import time

import pytest
from dockers import Docker, archive_of, layer_of
from dockers import until as wait_until
from programs import packaged, root, take_plugins

from atoll import aio
from atoll.containers import launching
from atoll.containers.listener import Timing

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "1"))
PAUSE = float(os.environ.get("CHAOS_PAUSE", "2"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(120 + 120 * ROUNDS)]

#: Seconds after which what was done is on the disk: ext4's journal is committed every five.
KEPT = 7.0

#: Writes numbers to a volume, and says each that was synced.
WRITER = """
n=$(wc -l < /kept/log 2> /dev/null || echo 0)
trap 'exit 0' TERM
while :; do
    n=$((n + 1))
    echo $n | dd of=/kept/log oflag=append conv=notrunc,fsync 2> /dev/null && echo $n
done
"""


class Done:
    """What the engine said it has done, and when."""

    def __init__(self):
        self._when = {}
        self._lock = threading.Lock()

    def note(self, what, value=None):
        with self._lock:
            self._when[what] = (time.monotonic(), value)

    def before(self, moment):
        """What was done before then."""
        with self._lock:
            return {what: value for what, (when, value) in self._when.items() if when < moment}

    def forget_all_but(self, those, moment):
        """What is missing, and was done after ``moment``, is not looked for again."""
        with self._lock:
            kept = {what: done for what, done in self._when.items() if what in those or done[0] < moment}
            self._when = kept


class Load:
    """Clients that load images, make containers, run some, and read what a container writes."""

    def __init__(self, docker, chance):
        self.images, self.containers = Done(), Done()
        self.written = 0
        self.counts = dict.fromkeys(("load", "create", "run", "refused"), 0)
        self._docker = docker
        self._seed = chance.getrandbits(32)
        self._ending = threading.Event()
        works = (self._load, self._create, self._run, self._read)
        self._threads = [threading.Thread(target=self._go_on, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def close(self):
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _go_on(self, work):
        chance = random.Random(f"{self._seed} {work.__name__}")
        number = 0
        while not self._ending.is_set():
            number += 1
            try:
                work(chance, number)
            except AssertionError:  # its engine, or its way there, was killed
                self.counts["refused"] += 1
                self._ending.wait(0.2)

    def _load(self, chance, number):
        data = chance.randbytes(chance.randrange(1 << 10, 1 << 20))
        layer = layer_of("blob", data)
        head, tail, image, _ = archive_of(layer, f"load{number}:latest")
        self._docker("load", "-q", input=b"".join((head, layer, tail)))
        self.counts["load"] += 1
        self.images.note(image, hashlib.sha256(data).hexdigest())
        self._ending.wait(chance.uniform(0.1, 1.0))

    def _create(self, chance, number):
        name = f"made{number}"
        self._docker("create", "--name", name, "tiny", "true")
        self.containers.note(name)
        self.counts["create"] += 1
        self._ending.wait(chance.uniform(0.1, 1.0))

    def _run(self, chance, number):
        token = f"{number}.{chance.getrandbits(32)}"
        assert self._docker("run", "--rm", "-v", "other:/other", "tiny", "echo", token) == token
        self.counts["run"] += 1
        self._ending.wait(chance.uniform(0.1, 1.0))

    def _read(self, _chance, _number):
        environment = self._docker.environment
        words = ["docker", "logs", "-f", "--tail", "1", "writer"]
        with subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            timer = threading.Thread(target=self._end, args=(child,))
            timer.start()
            for line in child.stdout:
                if line.strip().isdigit():
                    self.written = max(self.written, int(line))
            child.kill()
            timer.join()
        self._ending.wait(0.2)

    def _end(self, child):
        while child.poll() is None and not self._ending.wait(0.1):
            pass
        child.kill()


@pytest.fixture
async def config(engine_config, monkeypatch):
    # The listener looks at the user's settings before each start; from the first kill on there are two CPUs.
    monkeypatch.setenv("ATOLL_DOCKER_CPUS", "2")
    monkeypatch.setenv("ATOLL_ACCEL", "tcg")
    monkeypatch.setenv("ATOLL_DOCKER_DISK", "4G")
    monkeypatch.setenv("ATOLL_DOCKER_MEMORY", "1G")
    monkeypatch.setenv("ATOLL_DOCKER_SHARES", str(engine_config.docker_shares[0]))
    yield engine_config
    await launching.stop(engine_config.paths.docker, grace=0.0)


@pytest.fixture
def docker(config, tmp_path, paths):
    home = tmp_path / "home"
    home.mkdir()
    take_plugins(paths, home / ".docker", home / "bin")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    environment |= {
        "DOCKER_HOST": f"unix://{config.paths.docker.socket}",
        "DOCKER_CONFIG": str(home / ".docker"),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
    }
    return Docker(environment, home)


async def killed(config, victim):
    """Kill it; the moment before."""
    moment = time.monotonic()
    if victim == "listener":
        found = await launching.status(config.paths.docker)
        os.kill(found.pid, signal.SIGKILL)
        return moment
    async with aio.Machine("docker", config=config) as machine:
        status = await machine.status()
    os.kill(status.vm if victim == "hypervisor" else status.supervisor, signal.SIGKILL)
    return moment


def digest_of(docker, image):
    """Of the file in an image of ``Load``."""
    name = docker("create", image, "none")
    done = docker.run("cp", f"{name}:/blob", "-")
    docker("rm", name)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return hashlib.sha256(archive.extractfile("blob").read()).hexdigest()


def check(docker, work, moment, chance):
    """What was there before ``moment`` is; what is there is whole."""
    loaded, made = work.images.before(moment), work.containers.before(moment)
    images = set(docker("images", "-q", "--no-trunc").split())
    names = set(docker("ps", "-a", "--format", "{{.Names}}").split())
    assert set(loaded) <= images, set(loaded) - images
    assert set(made) <= names, set(made) - names
    assert "kept" in docker("volume", "ls", "-q").split()
    for kind, found in ((work.images, images), (work.containers, names)):
        kind.forget_all_but(found, moment)
    digests = work.images.before(time.monotonic())
    there = sorted(set(digests) & images)
    for image in chance.sample(there, min(len(there), 1)):
        assert digest_of(docker, image) == digests[image]


async def test_whatever_is_killed_the_engine_has_what_it_had(config, docker, paths, capsys):
    chance = random.Random(SEED)
    order = ("hypervisor", *chance.sample(("listener", "supervisor"), 2))
    await launching.running(config, Timing(idle=0.0))
    await asyncio.to_thread(docker, "import", "-", "tiny", input=root(packaged(paths, "busybox-static")))
    words = ["-d", "--name", "writer", "--restart", "always", "-v", "kept:/kept", "tiny", "sh", "-c", WRITER]
    await asyncio.to_thread(docker, "run", *words)
    work = Load(docker, chance)
    took = []
    try:
        for number in range(ROUNDS):
            await asyncio.sleep(chance.uniform(1.0, PAUSE))
            victim = order[number % 3] if number < 3 else chance.choice(order)
            seen = work.written
            moment = await killed(config, victim) - (KEPT if victim == "hypervisor" else 0.0)
            began = time.monotonic()
            await launching.running(config, Timing(idle=0.0))
            await asyncio.to_thread(wait_until, lambda: not docker.run("exec", "writer", "true").returncode)
            took.append(f"{victim} {time.monotonic() - began:.1f} s")
            log = await asyncio.to_thread(docker, "exec", "writer", "cat", "/kept/log")
            lines = log.split()
            assert lines == [str(one) for one in range(1, len(lines) + 1)]
            assert len(lines) >= seen
            await asyncio.to_thread(check, docker, work, moment, chance)
    except BaseException:
        with capsys.disabled():
            print(f"\n  seed {SEED}: {took}, {work.counts}, {work.written} numbers written")  # noqa: T201
        raise
    finally:
        await asyncio.to_thread(work.close)
    with capsys.disabled():
        print(f"\n  seed {SEED}: {', '.join(took)}; {work.counts}, {work.written} numbers")  # noqa: T201
