"""What programs may rely on is there, and the two faces of the SDK are one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import atoll
from atoll import aio, blocking
from atoll.guest.files import Files
from atoll.guest.watching import Watch

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(atoll.__path__, "atoll.")
    if not module.name.endswith("__main__")
)

#: Coroutine methods about an ``Execution``, which lives on the event loop.
ASYNCHRONOUS_ONLY = {"attend", "start_command"}


def public(kind):
    """Its public attributes, those of its bases too."""
    found = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def coroutine_methods(kind):
    """Those that are awaited, also where they may be entered (``atoll.guest.opening``)."""
    functions = {name: value for name, value in public(kind).items() if inspect.isfunction(value)}
    return {name for name, value in functions.items() if inspect.iscoroutinefunction(inspect.unwrap(value))}


def test_each_public_name_is_there_and_listed():
    assert dir(atoll) == sorted(atoll.__all__)
    for name in atoll.__all__:
        assert getattr(atoll, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'atoll' has no attribute 'Sandbx'"):
        atoll.Sandbx  # noqa: B018
    assert not hasattr(atoll, "os")


def test_a_star_import_brings_exactly_the_public_names():
    names = {}
    exec("from atoll import *", names)
    assert set(names) - {"__builtins__"} == set(atoll.__all__)


def test_public_names_come_from_where_they_are_defined():
    assert atoll.Sandbox is blocking.Sandbox
    assert atoll.aio is aio
    assert atoll.Result is aio.Result
    assert atoll.CommandFailedError is aio.CommandFailedError


def test_each_module_exports_what_exists_in_order():
    for name in MODULES:
        module = importlib.import_module(name)
        if not module.__file__.endswith("__init__.py"):
            assert module.__all__, f"{name} has no __all__"
        names = getattr(module, "__all__", [])
        for exported in names:
            assert hasattr(module, exported), (name, exported)
        order = sorted(names, key=lambda text: (not text.isupper(), not text[0].isupper(), text))
        assert list(names) == order, name


def test_each_module_says_what_it_is_for():
    assert [name for name in MODULES if not importlib.import_module(name).__doc__] == []


def test_each_module_can_be_imported_first():
    script = "import importlib, sys; importlib.import_module(sys.argv[1])"
    for name in ("atoll.guest.execution", "atoll.vm.life", "atoll.sandbox.sandbox", "atoll.blocking"):
        subprocess.run([sys.executable, "-c", script, name], check=True)


def test_the_blocking_sandbox_has_each_coroutine_method_as_one_that_waits():
    commands = {
        "run",
        "run_image",
        "start_image",
        "start",
        "start_process",
        "attach",
        "processes",
        "expose",
        "connect_vsock",
        "set_egress",
        "capture",
        "shape",
    }
    life = {"open", "close", "ping", "info", "pause", "resume", "fork", "snapshot"}
    assert coroutine_methods(aio.Sandbox) - ASYNCHRONOUS_ONLY == commands | life
    for name in coroutine_methods(aio.Sandbox) - ASYNCHRONOUS_ONLY:
        waiting = public(blocking.Sandbox)[name]
        original = public(aio.Sandbox)[name]
        assert not inspect.iscoroutinefunction(waiting)
        assert inspect.signature(waiting) == inspect.signature(original)
        assert waiting.__doc__ == original.__doc__


def test_the_blocking_sandbox_has_nothing_that_the_other_has_not():
    attributes = set(public(blocking.Sandbox))
    assert attributes - set(public(aio.Sandbox)) == {"name", "image", "labels"}
    box = aio.Sandbox("debian")
    assert blocking.Sandbox("debian").image == box.image == "debian"


def test_the_blocking_pool_has_each_method_of_the_other():
    waiting, original = public(blocking.Pool), public(aio.Pool)
    for name in coroutine_methods(aio.Pool) - ASYNCHRONOUS_ONLY:
        assert not inspect.iscoroutinefunction(waiting[name])
        assert inspect.signature(waiting[name]) == inspect.signature(original[name])
    assert set(original) - set(waiting) == set()


def test_the_blocking_machine_has_each_method_of_the_other():
    waiting, original = public(blocking.Machine), public(aio.Machine)
    for name in coroutine_methods(aio.Machine) - ASYNCHRONOUS_ONLY:
        assert not inspect.iscoroutinefunction(waiting[name])
        assert inspect.signature(waiting[name]) == inspect.signature(original[name])
    assert set(original) - set(waiting) - ASYNCHRONOUS_ONLY == {"control"}
    assert set(waiting) - set(original) == {"name"}


def test_the_blocking_network_has_each_method_of_the_other():
    waiting, original = public(blocking.Network), public(aio.Network)
    for name in coroutine_methods(aio.Network):
        assert not inspect.iscoroutinefunction(waiting[name])
        assert inspect.signature(waiting[name]) == inspect.signature(original[name])
    assert set(waiting) - set(original) == {"name"}
    assert inspect.signature(atoll.networks) == inspect.signature(aio.networks)
    assert atoll.Network("lab").name == aio.Network("lab").name == "lab"


@pytest.mark.parametrize(("waiting", "original"), [(blocking.Files, Files), (blocking.Watch, Watch)])
def test_files_are_used_alike_in_both_faces(waiting, original):
    assert set(public(waiting)) == set(public(original))
    for name, method in public(original).items():
        assert inspect.signature(public(waiting)[name]) == inspect.signature(method)
        assert not inspect.iscoroutinefunction(public(waiting)[name])
    assert isinstance(blocking.Sandbox("debian").files, blocking.Files)
    assert isinstance(aio.Sandbox("debian").files, Files)


@pytest.mark.parametrize("name", ["Capture", "Process", "Reader", "Exposed"])
def test_what_a_blocking_sandbox_opens_has_each_method_of_the_other(name):
    waiting, original = public(getattr(blocking, name)), public(getattr(aio, name))
    for method in coroutine_methods(getattr(aio, name)):
        assert not inspect.iscoroutinefunction(waiting[method])
        assert inspect.signature(waiting[method]) == inspect.signature(original[method])
        assert waiting[method].__doc__ == original[method].__doc__
    for attribute in set(waiting) & set(original):
        assert waiting[attribute].__doc__ == original[attribute].__doc__
    assert set(original) - set(waiting) <= {"line_at_hand"}
    assert set(waiting) <= set(original)


def test_both_faces_are_made_of_the_same_arguments():
    made = blocking.Sandbox("debian", cpus=2, memory="1G", env={"A": "1"})
    assert made._async._config.cpus == 2
    with pytest.raises(TypeError):
        blocking.Sandbox("debian", nonsense=1)


def test_arguments_of_a_sandbox_win_over_a_configuration_that_is_given():
    config = aio.Sandbox("debian", cpus=3, memory="1G")._config
    assert aio.Sandbox("debian", config=config)._config == config
    other = aio.Sandbox("debian", config=config, cpus=2)._config
    assert (other.cpus, other.memory) == (2, 1 << 30)


@pytest.mark.parametrize("memory", [512 << 20, "512M"])
def test_memory_may_be_bytes_or_a_size(memory):
    assert aio.Sandbox("debian", memory=memory)._config.memory == 512 << 20


@pytest.mark.parametrize("memory", [0, -1, (512 << 20) + 1, (512 << 20) + 1024, "512", True])
def test_memory_that_is_no_whole_number_of_mebibytes_is_refused(memory):
    with pytest.raises(atoll.ConfigError):
        aio.Sandbox("debian", memory=memory)


def test_a_sandbox_that_is_not_started_says_so():
    with pytest.raises(atoll.UsageError) as caught:
        blocking.Sandbox("debian").run(["true"])
    assert caught.value.code == "usage.state"


def test_the_package_says_that_it_is_typed():
    assert (importlib.resources.files("atoll") / "py.typed").is_file()
