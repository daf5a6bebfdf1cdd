"""Images that say how they want to be run, with real guests."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import own_images
import programs
import pytest

import atoll
from atoll import events
from atoll.config import load
from atoll.errors import CommandError, ImageError, UsageError
from atoll.image.oci.runconfig import RunConfig

pytestmark = [pytest.mark.vm]

SOURCE = Path(__file__).parents[1] / "inside.c"

BARE = RunConfig(
    user="1000:1001",
    env=("GREETING=hello", "PATH=/nowhere:/"),
    entrypoint=("/inside", "show"),
    cmd=("a", "b c"),
    working_dir="/work/dir",
    stop_signal="SIGQUIT",
    volumes={"/data": {}},
    exposed_ports={"8080/tcp": {}},
)

#: What containers have, and this image has not.
AROUND = {
    "/proc/self": "directory",
    "/sys/kernel": "directory",
    "/dev/null": "device",
    "/dev/ptmx": "device",
    "/dev/pts": "directory",
    "/dev/shm": "directory",
    "/tmp": "directory",
    "/run": "directory",
    "/data": "directory",
    "/etc/hosts": "file",
    "/etc/hostname": "file",
    "/etc/resolv.conf": "file",
    "/etc/passwd": "nothing",
    "/bin/sh": "nothing",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory, paths):
    """Settings of a directory with two images: ``bare`` has one file, ``small`` has busybox and odd links."""
    data = tmp_path_factory.mktemp("images")
    config = load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config
    inside = programs.compiled(paths, SOURCE)
    busybox = programs.packaged(paths, "busybox-static")
    small = own_images.tar_of(
        {
            "bin": None,
            "bin/busybox": busybox,
            "bin/sh": "busybox",
            "inside": inside,
            "etc": None,
            "etc/passwd": b"root:x:0:0::/root:/bin/sh\napp:x:500:500::/home/app:/bin/sh\n",
            "etc/group": b"root:x:0:\napp:x:500:\nmore:x:600:app,other\n",
            "etc/resolv.conf": "../run/resolve/stub.conf",
            "etc/hosts": b"",
            "etc/hostname": "/nowhere",
            "tmp": "/gone",
            "script": b"#!/no/such/interpreter\n",
            "other": b"\x7fELF of something else",
        }
    )
    own_images.add(config.paths, "bare", own_images.tar_of({"inside": inside}), BARE)
    own_images.add(config.paths, "small", small, RunConfig(user="app", cmd=("/bin/sh",)))
    return config


@pytest.fixture(scope="module")
def box(images):
    """A guest with one file."""
    with atoll.Sandbox("bare", config=images) as box:
        yield box


def told(result):
    """What ``inside show`` says: of each kind its lines."""
    assert result.ok, result.stderr
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    return {kind: [rest for name, _, rest in lines if name == kind] for kind, *_ in lines}


def test_an_image_with_one_program_is_run_as_it_says(box):
    said = told(box.run_image())
    assert said["word"] == ["a", "b c"]
    assert said["cwd"] == ["/work/dir"]
    assert said["ids"] == ["1000 1001 1001"]
    wanted = {"GREETING=hello", "PATH=/nowhere:/", f"HOSTNAME={box.name}", "HOME=/"}
    assert set(said["env"]) == wanted


def test_what_the_user_says_wins(box):
    said = told(box.run_image(["x"], env={"GREETING": "bye", "TERM": "dumb"}, cwd="/made/now", user="7"))
    assert (said["word"], said["cwd"], said["ids"]) == (["x"], ["/made/now"], ["7 0 0"])
    assert {"GREETING=bye", "TERM=dumb"} <= set(said["env"])
    said = told(box.run_image(["show"], entrypoint="/inside", user=":9"))
    assert "word" not in said
    assert said["ids"] == ["0 9 9"]
    with pytest.raises(ImageError) as caught:
        box.run_image(entrypoint="")
    assert caught.value.code == "image.command"


def test_it_has_around_it_what_containers_have(box):
    said = box.run(["inside", "look", *AROUND]).stdout.splitlines()
    assert dict(line.split(" ") for line in said) == AROUND
    names = box.run(["inside", "cat", "/etc/hostname", "/etc/hosts"]).stdout
    assert names.startswith(f"{box.name}\n127.0.0.1 localhost\n")
    assert names.endswith(f"\n127.0.1.1 {box.name}\n")
    assert box.run(["inside", "write", "/dev/stdout", "through"]).stdout == "through"
    assert box.run(["inside", "write", "/dev/stderr", "through"]).stderr == "through"


def test_the_image_s_own_signal_ends_what_it_runs(box):
    with box.start_image(["wait"], entrypoint="/inside") as process:
        assert process.stdout.readline() == "waiting"
        process.terminate()
        assert process.wait(10).code == 7


def test_what_cannot_be_run_says_why(box):
    with pytest.raises(CommandError) as caught:
        box.run(["sh", "-c", "true"])
    assert caught.value.message == 'cannot run sh: exec: "sh": not found in $PATH'
    assert (caught.value.code, caught.value.exit_code) == ("command.exec", 127)
    with pytest.raises(CommandError) as caught:
        box.run(["/inside"], user="somebody")
    assert caught.value.code == "command.user"


def test_what_is_exposed_can_be_reached_without_a_network(images):
    heard = []
    with atoll.Sandbox("bare", config=images, publish_all=True, on_event=heard.append) as box:
        (state,) = box.published
        assert (state.forward.guest_port, state.forward.protocol) == (8080, "tcp")
        with box.start_image(["serve", "8080"], entrypoint="/inside") as server:
            assert server.stdout.readline() == "serving"
            with socket.create_connection(("127.0.0.1", state.port), 10) as client:
                assert client.recv(16) == b"served"
        (copy,) = box.fork()
        with copy:
            assert told(copy.run_image())["word"] == ["a", "b c"]
            names = copy.run(["inside", "cat", "/etc/hostname", "/etc/hosts"]).stdout
            assert names.startswith(f"{copy.name}\n")
            assert box.name not in names
    published = [event for event in heard if isinstance(event, events.PortPublished)]
    assert [(one.port, one.host) for one in published] == [("8080/tcp", f"127.0.0.1:{state.port}")]


def test_a_system_with_odd_links_and_directories_of_the_host(images, tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("of the host")
    volumes = [f"{tmp_path}/from:/in/host:ro", f"{tmp_path}:/out", "/var/empty"]
    with atoll.Sandbox("small", config=images, network="own", volumes=volumes) as box:
        said = box.run(["/inside", "look", "/tmp", "/etc/hostname", "/var/empty"]).stdout.splitlines()
        assert said == ["/tmp directory", "/etc/hostname file", "/var/empty directory"]
        assert box.run(["/inside", "cat", "/etc/resolv.conf"]).stdout.startswith("nameserver ")
        address = box.run(["/bin/busybox", "hostname", "-i"]).stdout.strip()
        assert address.count(".") == 3
        assert not address.startswith("127.")
        assert told(box.run(["/inside", "show"]))["ids"] == ["500 500 500 600"]
        assert told(box.run(["/inside", "show"], user="app:more"))["ids"] == ["500 600 600"]
        assert told(box.run(["/inside", "show"]))["cwd"] == ["/"]
        assert box.run(["/inside", "cat", "/in/host/file"]).stdout == "of the host"
        assert not box.run(["/bin/sh", "-c", "echo x > /in/host/other"], user="root").ok
        assert box.run(["/bin/sh", "-c", "echo back > /out/file"], user="root").ok
        assert (tmp_path / "file").read_text() == "back\n"
        for program, code in (("/script", "command.interpreter"), ("/other", "command.exec")):
            with pytest.raises(CommandError) as caught:
                box.run([program])
            assert caught.value.code == code
        with pytest.raises(UsageError):
            box.fork()


def test_a_machine_of_an_image_without_a_shell(images):
    machine = atoll.Machine.create(
        "bare-machine", image="bare", init="minimal", network=False, memory="256M", disk="64M", config=images
    )
    try:
        machine.start()
        said = told(machine.run(["inside", "show"]))
        assert (said["cwd"], said["ids"]) == (["/work/dir"], ["0 0 0"])
        assert {"GREETING=hello", "PATH=/nowhere:/"} <= set(said["env"])
        assert machine.run(["inside", "cat", "/etc/hostname"]).stdout == "bare-machine\n"
        with machine.start_process(["inside", "wait"]) as process:
            assert process.stdout.readline() == "waiting"
            process.signal(signal.SIGQUIT)
            assert process.wait(10).code == 7
        with pytest.raises(ImageError) as caught:
            assert machine.shell
        assert caught.value.code == "image.shell"
    finally:
        machine.remove(force=True)
        machine.close()
