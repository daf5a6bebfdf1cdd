"""What an image is run as: by the rules that Docker's reference and the OCI specification have."""

from __future__ import annotations

import contextlib
import signal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError, UsageError
from atoll.hypervisor.model import Forward
from atoll.image.oci.command import directories_of, environment_of, parse_signal, plan, ports_of, user_of
from atoll.image.oci.runconfig import RunConfig
from atoll.sandbox.publishing import with_exposed

#: Entrypoint and Cmd of the image; what the user says; what is run (None: nothing can be).
WORDS = [
    # Of the image.
    (("/ep", "a"), ("b",), (), None, ("/ep", "a", "b")),
    (("/ep",), None, (), None, ("/ep",)),
    (None, ("/cmd", "c"), (), None, ("/cmd", "c")),
    ((), ("/cmd",), (), None, ("/cmd",)),
    # Words take the place of Cmd, and are arguments of an Entrypoint.
    (("/ep", "a"), ("b",), ("x", "y"), None, ("/ep", "a", "x", "y")),
    (None, ("/cmd",), ("sh", "-c", "x"), None, ("sh", "-c", "x")),
    # --entrypoint takes Cmd away, too.
    (("/ep", "a"), ("b",), (), "/other", ("/other",)),
    (("/ep", "a"), ("b",), ("x",), "/other", ("/other", "x")),
    (None, ("b",), (), "/other", ("/other",)),
    # --entrypoint '' leaves what the user says, and nothing else.
    (("/ep",), ("b",), ("x",), "", ("x",)),
    (("/ep",), ("b",), (), "", None),
    (("/ep",), ("b",), (), (), None),
    # A Dockerfile's ENTRYPOINT [""].
    (("",), ("b",), (), None, ("b",)),
    # Nothing.
    (None, None, (), None, None),
    ((), (), (), None, None),
    (None, None, ("x",), None, ("x",)),
    # A program's list, as Python may say it.
    (("/ep",), ("b",), (), ("/a", "b c"), ("/a", "b c")),
]


@pytest.mark.parametrize(("entrypoint", "cmd", "argv", "other", "wanted"), WORDS)
def test_words_are_put_together_as_docker_does(entrypoint, cmd, argv, other, wanted):
    run = RunConfig(entrypoint=entrypoint, cmd=cmd)
    if wanted is None:
        with pytest.raises(ImageError) as caught:
            plan(run, argv=argv, entrypoint=other)
        assert caught.value.code == "image.command"
        assert caught.value.hint
        wanted = ("/bin/sh",)
    assert plan(run, argv=argv, entrypoint=other, shell="/bin/sh").argv == wanted


def test_variables_of_the_user_win_over_those_of_the_image():
    run = RunConfig(env=("PATH=/opt/bin", "A=1", "B=x=y", "A=2", "EMPTY=", "none", "=odd"))
    planned = plan(run, env={"B": "mine", "C": "3"}, hostname="box", argv=("x",))
    assert planned.env == {
        "HOSTNAME": "box",
        "PATH": "/opt/bin",
        "A": "2",
        "B": "mine",
        "EMPTY": "",
        "C": "3",
    }
    assert environment_of(RunConfig(env=("HOSTNAME=own",)), "box") == {"HOSTNAME": "own"}
    assert environment_of(RunConfig()) == {}


@pytest.mark.parametrize(
    ("image", "wanted", "path"),
    [
        ("", None, "/"),
        ("/app", None, "/app"),
        ("/app/../srv//x/", None, "/srv/x"),
        ("app", None, "/app"),
        ("//app", None, "/app"),
        ("../../x", None, "/x"),
        ("/app", "/else", "/else"),
    ],
)
def test_commands_start_in_the_image_s_directory_or_the_user_s(image, wanted, path):
    assert plan(RunConfig(working_dir=image), workdir=wanted, argv=("x",)).workdir == path


def test_a_directory_of_the_user_s_is_absolute():
    with pytest.raises(UsageError) as caught:
        plan(RunConfig(), workdir="here", argv=("x",))
    assert caught.value.code == "usage.workdir"


@pytest.mark.parametrize(
    ("image", "said", "user"),
    [
        ("", None, None),
        ("app", None, "app"),
        ("1000:1000", None, "1000:1000"),
        ("app", "0", "0"),
        ("app", "other:group", "other:group"),
        ("app:", None, "app"),
        (":group", None, "0:group"),
    ],
)
def test_the_user_is_the_image_s_or_another(image, said, user):
    assert plan(RunConfig(user=image), user=said, argv=("x",)).user == user
    assert user_of(f"{user or ''} ") == user


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", signal.SIGTERM),
        ("SIGQUIT", signal.SIGQUIT),
        ("quit", signal.SIGQUIT),
        ("3", 3),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("64", 64),
        ("SIGPOLL", signal.SIGIO),
    ],
)
def test_the_stop_signal_is_a_name_or_a_number(text, number):
    assert plan(RunConfig(stop_signal=text), argv=("x",)).stop_signal == number


@pytest.mark.parametrize("text", ["0", "65", "SIGNONE", "SIGRTMIN+31", "RTMAX-99", "-1", "1.5", "SIG"])
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(ImageError) as caught:
        plan(RunConfig(stop_signal=text), argv=("x",))
    assert caught.value.code == "image.config"


@given(st.text(max_size=12))
def test_any_text_is_a_signal_or_none(text):
    number = 1
    with contextlib.suppress(ValueError):
        number = parse_signal(text)
    assert 0 < number <= 64


def test_volumes_and_the_directory_of_commands_are_made():
    run = RunConfig(working_dir="/app", volumes={"/data": {}, "cache/": {}, "/": {}, "/data/": {}})
    assert directories_of(run) == ("/app", "/cache", "/data")


def test_ports_are_single_ones_or_ranges():
    run = RunConfig(exposed_ports={"80/tcp": {}, "80/UDP": {}, "443": {}, "9000-9002/tcp": {}, "5/sctp": {}})
    assert ports_of(run) == (
        *((80, "tcp"), (80, "udp"), (443, "tcp"), (9000, "tcp"), (9001, "tcp"), (9002, "tcp")),
    )
    published = with_exposed((Forward(8080, 80), Forward(1, 9000)), run)
    assert [(one.host_port, one.guest_port, one.protocol) for one in published] == [
        *((8080, 80, "tcp"), (1, 9000, "tcp")),
        *((0, 80, "udp"), (0, 443, "tcp"), (0, 9001, "tcp"), (0, 9002, "tcp")),
    ]
    assert with_exposed((), None) == ()


@pytest.mark.parametrize("text", ["0/tcp", "70000", "http", "80/icmp", "9-8/tcp", "1-5000/tcp", "80/tcp/x"])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ImageError) as caught:
        ports_of(RunConfig(exposed_ports={text: {}}))
    assert caught.value.code == "image.config"


def test_a_configuration_as_it_is_in_images_is_understood():
    data = b"""{"User": "1000", "ExposedPorts": {"80/tcp": {}}, "Env": ["A=1"], "Entrypoint": ["/app"],
        "Cmd": null, "Volumes": {"/data": {}}, "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
        "Labels": {"a": "b"}, "OnBuild": null, "ArgsEscaped": true}"""
    planned = plan(msgspec.json.decode(data, type=RunConfig), argv=("--help",))
    assert planned.argv == ("/app", "--help")
    assert (planned.user, planned.workdir, planned.env) == ("1000", "/srv", {"A": "1"})
    assert planned.stop_signal == signal.SIGQUIT
