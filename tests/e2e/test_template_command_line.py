"""`atoll template` as a user meets it, and makers that are killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest
from command import COMMAND, assert_error
from guests import eventually
from processes import machines_running

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def own(tmp_path, paths):
    """A cache directory without templates, with the kernels of all tests."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(paths.kernels)
    return {"ATOLL_CACHE_DIR": str(cache), "ATOLL_ACCEL": "tcg"}, cache / "templates"


def documents(text):
    """JSON documents one after another."""
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        yield document
        text = text[end:]


def test_a_template_is_built_listed_and_removed(atoll, own):
    env, templates = own
    done = atoll("template", "build", "--json", "debian", env=env)
    assert done.returncode == 0, done.stderr
    *events, made = documents(done.stdout.decode())
    assert "task_started" in {event["event"] for event in events}
    assert (made["image"], made["vcpus"], made["memory"]) == ("debian:trixie", 1, 512 << 20)
    again = atoll("template", "build", "debian", env=env)
    assert re.fullmatch(rf"{re.escape(made['name'])}: [\d.]+ MiB\n", again.stdout.decode())
    assert again.stderr == b""  # it is here
    listed = json.loads(atoll("template", "ls", "--json", "--verify", env=env).stdout)
    assert listed == [{**made, "state": "verified"}]
    run = atoll("run", "debian", "--", "cat", "/proc/cmdline", env=env)
    assert b"atoll.hostname=template" in run.stdout
    assert run.stderr == b""
    assert atoll("template", "rm", made["name"], env=env).stdout.decode() == f"{made['name']}\n"
    assert list(templates.iterdir()) == []
    assert_error(atoll("template", "rm", made["name"], env=env), "store.missing")
    assert_error(atoll("template", "rm", env=env), "usage.arguments")
    assert_error(atoll("template", "build", "localhost:1/nonsuch", env=env), "registry.unreachable")


def test_where_a_boot_is_asked_for_no_template_is_made(atoll, own):
    env, templates = own
    done = atoll("run", "--cold", "debian", "--", "cat", "/proc/cmdline", env=env)
    assert b"atoll.hostname=sandbox-" in done.stdout
    assert done.stderr == b""
    assert not templates.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_maker_that_is_asked_to_end_cleans_up(own, environment, number):
    env, templates = {**environment, **own[0]}, own[1]
    before = machines_running()
    with subprocess.Popen([COMMAND, "run", "debian", "--", "true"], env=env, stderr=subprocess.PIPE) as maker:
        eventually(lambda: list(templates.glob(".partial-*/ram")) and machines_running() - before)
        maker.send_signal(number)
        assert maker.wait() == 128 + number
    assert machines_running() <= before
    assert list(templates.glob(".partial-*")) == []


def test_a_killed_maker_leaves_no_vm_and_one_of_two_goes_ahead(own, environment):
    """What it leaves on disk, the next sweeps; whoever comes while that one makes it boots meanwhile."""
    env, templates = {**environment, **own[0]}, own[1]
    before = machines_running()

    def partial():
        return set(templates.glob(".partial-*/ram"))

    def run(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([COMMAND, *words], env=env, stdin=subprocess.DEVNULL, **pipes)

    with run("template", "build", "debian") as killed:
        eventually(lambda: partial() and machines_running() - before)
        killed.kill()
    eventually(lambda: machines_running() <= before)
    left = partial()
    assert len(left) == 1
    with run("run", "debian", "--", "cat", "/proc/cmdline") as first:
        eventually(lambda: partial() - left)
        with run("run", "debian", "--", "cat", "/proc/cmdline") as second:
            cold, complaint = second.communicate()
        cloned, progress = first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert "atoll.hostname=template" in cloned
    assert progress.startswith("Preparing a template of sandboxes of debian:trixie")
    assert "atoll.hostname=sandbox-" in cold
    assert complaint == ""
    assert partial() == set()
    assert len([entry for entry in templates.iterdir() if not entry.name.startswith(".")]) == 1
