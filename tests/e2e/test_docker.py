"""Docker's own client against the engine, as a user meets both: all with one engine and one tiny image.

They leave the engine with nothing in it, and running, to other files of tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from dockers import Docker, archive_of, asked, free_port, is_open, layer_of, registry, until
from programs import compiled, packaged, root, take_plugins

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

#: What containers of the tests do until they are removed: they end at once when they are told to.
LONG = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")

#: The host's loopback as the engine sees it.
HOST = "10.0.2.2"


@pytest.fixture(scope="module")
def place(engine_config):
    """The user's home, which the engine shares."""
    return engine_config.docker_shares[0]


@pytest.fixture(scope="module")
def cli(atoll, place, engine_config):
    """Run the command as one whose home is ``place``; what it printed."""
    settings = {
        "ATOLL_DATA_DIR": str(engine_config.data_dir),
        "ATOLL_CACHE_DIR": str(engine_config.cache_dir),
        "ATOLL_ACCEL": "tcg",
        "ATOLL_DOCKER_CPUS": "1",
        "ATOLL_DOCKER_DISK": "4G",
        "ATOLL_DOCKER_MEMORY": "1G",
        "HOME": str(place),
        "DOCKER_CONFIG": str(place / ".docker"),
        "XDG_CONFIG_HOME": str(place / ".config"),
        "PATH": f"{place}/.local/bin:{os.environ['PATH']}",
    }

    def run(*words, status=0):
        done = atoll(*words, env=settings)
        assert status is None or done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout.decode()

    run.settings = settings
    return run


@pytest.fixture(scope="module")
def docker(cli, place, paths, environment, built, engine_config):
    """The client, once `atoll docker enable` was run, and the image ``tiny`` was imported."""
    take_plugins(paths, place / ".docker", place / ".local/bin")
    clean = {name: value for name, value in environment.items() if not name.startswith("DOCKER_")}
    client = Docker({**clean, **cli.settings}, place)
    assert cli("docker", "enable").strip() == f"unix://{engine_config.paths.docker.socket}"
    assert json.loads((place / ".docker/config.json").read_bytes())["currentContext"] == "atoll"
    busybox = packaged(paths, "busybox-static")
    answer = compiled(paths, Path(__file__).parents[1] / "answer.c")
    client("import", "-", "tiny", input=root(busybox, answer))
    yield client
    assert cli("docker", "disable").strip() == "default"


@pytest.fixture(scope="module")
def web(docker):
    """A container that runs, serves a directory and publishes ports; the host's ports by the container's."""
    docker("network", "create", "near")
    ports = {80: free_port(), 7: free_port()}
    script = "mkdir /srv; echo page > /srv/page; answer 7 & httpd -p 80 -h /srv; echo begun; wait"
    words = ["-p", f"{ports[80]}:80", "-p", f"127.0.0.1:{ports[7]}:7/udp", "-v", "kept:/kept"]
    docker("run", "-d", "--name", "web", "--network", "near", *words, "tiny", "sh", "-c", script)
    return ports


def page(port, path="page"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as answer:
        return answer.read().decode().strip()


# One container after the other.


def test_a_run_passes_input_output_status_and_the_hosts_directories(docker, place):
    (place / "shared").mkdir()
    (place / "shared/in").write_text("from the host\n")
    script = "cat; echo aside >&2; cat in; echo from the guest > out; exit 7"
    words = ["--rm", "-i", "-v", f"{place}/shared:/app", "-w", "/app", "tiny", "sh", "-c", script]
    done = docker.run("run", *words, input=b"typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"typed\nfrom the host\n", b"aside\n")
    assert (place / "shared/out").read_text() == "from the guest\n"


def test_a_terminal_has_its_size_its_interrupt_and_its_status(docker):
    with docker.at_terminal("run", "--rm", "-it", "tiny", "sh") as terminal:
        terminal.until("# ")
        terminal.type("until stty size | grep '33 101'; do sleep 0.1; done\n")
        # The client shows what its container says before it follows the terminal's size.
        terminal.until("\n33 101", again=lambda: terminal.resize(33, 101))
        # By a program that the interrupt is already for: the shell itself would lose one before it waits.
        terminal.type("sh -c 'echo be\"\"gun; exec sleep 1000'\n")
        terminal.until("begun")
        terminal.type("\x03")
        terminal.until("^C")
        terminal.type("echo status $?.\n")
        terminal.until("status 130.")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5


def test_a_signal_to_the_client_is_one_to_the_container(docker):
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 1000 & wait; done"
    with docker.going_on("run", "--rm", "--init", "tiny", "sh", "-c", script) as client:
        client.until("ready")
        client.signal(signal.SIGINT)
        assert client.wait() == 9


# One that runs.


def test_a_published_port_answers_by_tcp_and_udp_and_is_known(docker, web, cli):
    until(lambda: is_open(web[80]))
    assert page(web[80]) == "page"
    assert asked(web[7], b"hello") == b"got hello"
    assert asked(web[7], bytes(8000)) == b"got " + bytes(8000)
    status = json.loads(cli("docker", "status", "--json"))
    assert status["engine"]["phase"] == "running"
    assert status["context"] == "atoll"
    assert "web.atoll.internal" in status["listener"]["names"]
    opened = {
        one["publication"]["port"]: one["refused"] for one in json.loads(cli("docker", "ports", "--json"))
    }
    assert opened == {web[80]: "", web[7]: ""}
    assert "\nengine" not in cli("docker", "status")


def names(cli):
    """What machines are called on their network, by the name."""
    (network,) = json.loads(cli("dns", "show", "--network", "default", "--json"))
    return {one["name"].removesuffix(".atoll.internal"): one for one in network["names"]}


def test_a_container_is_known_to_machines_at_the_engines_address(docker, web, cli):
    until(lambda: "web" in names(cli))
    known = names(cli)
    assert known["web"]["addresses"] == known["web.docker"]["addresses"] == known["docker"]["addresses"]
    told = json.loads(cli("dns", "test", "web.docker.atoll.internal", "--json"))
    assert (told["origin"], told["records"][0]["data"]) == ("network", known["docker"]["addresses"][0])


def test_a_port_that_is_taken_is_told_and_had_when_it_is_free(docker, web, cli):
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        docker("run", "-d", "--rm", "--name", "late", "-p", f"127.0.0.1:{port}:80", "tiny", "httpd", "-f")
        until(lambda: "cannot listen" in cli("docker", "ports", status=None))
        assert f"127.0.0.1:{port}/tcp of late is refused" in cli("docker", "status", status=1)
    until(lambda: "cannot listen" not in cli("docker", "ports", status=None))
    assert is_open(port)
    docker("rm", "-f", "late")
    until(lambda: not is_open(port))


def test_exec_logs_events_stats_and_copies_of_a_container_that_runs(docker, web, place):
    with (
        docker.going_on("events", "--format", "{{.Type}} {{.Action}}") as events,
        docker.going_on("logs", "-f", "web") as logs,
    ):
        logs.until("begun")
        done = docker.run("exec", "-i", "web", "sh", "-c", "cat > /proc/1/fd/1; exit 3", input=b"more\n")
        assert done.returncode == 3
        logs.until("more")
        events.until("container exec_create")
        events.until("container exec_die")
        stats = json.loads(docker("stats", "--no-stream", "--format", "json", "web"))
        assert (stats["Name"], int(stats["PIDs"]) >= 3) == ("web", True)
        tree = place / "tree"
        (tree / "below").mkdir(parents=True)
        (tree / "below/program").write_bytes(os.urandom(3 << 20))
        (tree / "below/program").chmod(0o751)
        (tree / "link").symlink_to("below/program")
        docker("cp", str(tree), "web:/srv/")
        docker("cp", "web:/srv/tree", str(place / "back"))
        assert (place / "back/below/program").read_bytes() == (tree / "below/program").read_bytes()
        assert (place / "back/below/program").stat().st_mode & 0o777 == 0o751
        assert os.readlink(place / "back/link") == "below/program"


def test_two_containers_of_a_network_find_one_another_by_name(docker, web):
    command = ["sh", "-c", "wget -qO- http://web/page && echo own > /kept/file"]
    assert docker("run", "--rm", "--network", "near", "-v", "kept:/kept", "tiny", *command) == "page"
    assert docker("exec", "web", "cat", "/kept/file") == "own"


def test_hundreds_of_clients_at_once_are_served(docker, web, engine_config):
    sock = engine_config.paths.docker.socket

    async def ask(path):
        reader, writer = await asyncio.open_unix_connection(sock)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def follow():
        reader, writer = await asyncio.open_unix_connection(sock)
        writer.write(b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def all_of_them():
        async with asyncio.timeout(120):
            following = await asyncio.gather(*(follow() for _ in range(50)))
            answers = await asyncio.gather(
                *(ask("/containers/json" if n % 2 else "/_ping") for n in range(200))
            )
            done = await asyncio.to_thread(docker, "kill", "--signal", "WINCH", "web")
            assert done == "web"
            told = await asyncio.gather(*(reader.readuntil(b'"Action":"kill"') for reader, _ in following))
            for _, writer in following:
                writer.close()
            return answers, told

    answers, told = asyncio.run(all_of_them())
    assert len(told) == 50
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
    assert all((b'"web"' in answer or b"/web" in answer) for answer in answers[1::2])


def test_a_container_that_goes_takes_its_ports_and_its_name_along(docker, web, cli):
    docker("rm", "-f", "web")
    until(lambda: not is_open(web[80]))
    until(lambda: json.loads(cli("docker", "ports", "--json")) == [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", web[7]))
    assert json.loads(cli("docker", "status", "--json"))["listener"]["names"] == {}
    until(lambda: "web" not in names(cli))
    docker("network", "rm", "near")


# Images.

FILE = """
FROM tiny AS built
COPY given /given
RUN tr a-z A-Z < /given > /made
FROM scratch
COPY --from=built /bin/busybox /made /
ENTRYPOINT ["/busybox", "cat", "/made"]
"""


@pytest.mark.parametrize("builder", ["classic", "buildx"])
def test_an_image_is_built(docker, place, builder):
    context = place / f"context-{builder}"
    context.mkdir()
    (context / "Dockerfile").write_text(FILE)
    (context / "given").write_text(f"built by {builder}\n")
    words = ["build", "-t", builder, str(context)]
    if builder == "classic":
        docker(*words, env={"DOCKER_BUILDKIT": "0"})
    else:
        docker("buildx", *words)
    assert docker("run", "--rm", builder) == f"BUILT BY {builder.upper()}"


def test_an_image_is_saved_and_loaded_pushed_and_pulled_with_its_digest(docker, paths, place):
    wanted = docker("image", "inspect", "-f", "{{.Id}}", "tiny")
    docker("save", "-o", str(place / "saved"), "tiny")
    with registry(packaged(paths, "docker-registry"), place / "registry") as port:
        name = f"{HOST}:{port}/own/tiny:1"
        docker("tag", "tiny", name)
        docker("push", "-q", name)
        digest = docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", name)
        docker("rmi", name, "tiny")
        assert docker("images", "-q", "tiny") == ""
        assert "tiny:latest" in docker("load", "-i", str(place / "saved"))
        docker("pull", "-q", f"host.docker.internal:{port}/own/tiny:1")
        docker("pull", "-q", digest)
    for one in ("tiny", f"host.docker.internal:{port}/own/tiny:1", digest):
        assert docker("image", "inspect", "-f", "{{.Id}}", one) == wanted


def test_a_large_image_is_loaded_whole(docker, place):
    layer = layer_of("blob", os.urandom(1 << 20) * 64)
    head, tail, image, diff = archive_of(layer, "large:latest")
    began = time.monotonic()
    docker("load", "-q", input=b"".join((head, layer, tail)))
    taken = time.monotonic() - began
    print(f"load: {len(layer) / 1e6 / taken:.0f} MB/s")  # noqa: T201
    told = docker("image", "inspect", "-f", "{{.Id}} {{json .RootFS.Layers}}", "large")
    assert told == f'{image} ["{diff}"]'


# Compose, and the end.

COMPOSE = """
services:
  store:
    image: tiny
    init: true
    command: sh -c "echo of the store > /data/page; exec httpd -f -p 80 -h /data"
    volumes: ["data:/data"]
    ports: ["{port}:80"]
  reader:
    image: tiny
    init: true
    depends_on: [store]
    command: sleep 1000
    volumes: ["data:/data:ro"]
volumes:
  data:
"""


def test_a_project_of_two_services_and_a_volume_comes_up_and_goes(docker, cli, place):
    port = free_port()
    file = place / "compose.yaml"
    file.write_text(COMPOSE.format(port=port))
    compose = ("compose", "-f", str(file), "-p", "shop")
    docker(*compose, "up", "-d")
    until(lambda: is_open(port))
    assert page(port) == "of the store"
    both = docker(*compose, "exec", "-T", "reader", "sh", "-c", "cat /data/page; wget -qO- http://store/page")
    assert both.splitlines() == ["of the store"] * 2
    names = json.loads(cli("docker", "status", "--json"))["listener"]["names"]
    assert {"store.shop.atoll.internal", "reader.shop.atoll.internal", "shop-store-1.atoll.internal"} <= set(
        names
    )
    docker(*compose, "down", "-v")
    until(lambda: not is_open(port))
    assert docker("ps", "-aq") == docker("volume", "ls", "-q", "-f", "name=shop") == ""


def test_what_nobody_uses_is_pruned(docker, cli):
    docker("create", "--name", "idle", "tiny", *LONG)
    assert "Total reclaimed space" in docker("system", "prune", "-af", "--volumes")
    assert docker("ps", "-aq") == docker("images", "-q") == ""
    assert "removed" in cli("docker", "prune", "--force", "--all", "--volumes")
    assert docker("volume", "ls", "-q") == ""
