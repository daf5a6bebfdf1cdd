"""Codes and exit codes are relied on by programs: they do not change."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import atoll
from atoll import errors
from atoll.errors import (
    AtollError,
    BootError,
    CommandError,
    GuestError,
    ProcessError,
    innermost,
    revive,
)

FAMILIES = {
    "AtollError": ("error", 1),
    "UsageError": ("usage", 2),
    "ConfigError": ("config", 2),
    "PreflightError": ("boot.preflight", 1),
    "BuildError": ("build", 1),
    "EngineError": ("engine", 1),
    "ImageError": ("image", 1),
    "NetworkError": ("network", 1),
    "RegistryError": ("registry", 1),
    "StoreError": ("store", 1),
    "ProcessError": ("process", 1),
    "BootError": ("boot", 1),
    "ChannelError": ("channel", 1),
    "LinkResetError": ("channel.reset", 1),
    "ProtocolError": ("protocol", 1),
    "GuestError": ("guest", 1),
    "CommandError": ("command", None),
    "FileError": ("file", 1),
    "FileMissingError": ("file.missing", 1),
    "CommandTimeoutError": ("command.timeout", 124),
    "CommandFailedError": ("command.failed", None),
    "StateError": ("state", 1),
    "StreamError": ("snapshot.stream", 1),
}


def all_kinds():
    for module in pkgutil.walk_packages(atoll.__path__, "atoll."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, frontier = {AtollError}, [AtollError]
    while frontier:
        for kind in frontier.pop().__subclasses__():
            if kind.__module__.startswith("atoll.") and kind not in found:
                found.add(kind)
                frontier.append(kind)
    return found


def test_each_class_has_its_code_and_its_exit_status():
    assert {kind.__name__: kind.family for kind in all_kinds()} == {
        name: family for name, (family, _) in FAMILIES.items()
    }
    for kind in all_kinds():
        status = FAMILIES[kind.__name__][1]
        if status is not None:
            assert kind.exit_code == status


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn, path = {}, []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([ |+-]*)(\w+Error)\b", line)
        if found:
            depth = (len(found[1]) + 4) // 5
            path = [*path[:depth], found[2]]
            drawn[found[2]] = path[-2] if depth else ""
    assert drawn == {
        kind.__name__: kind.__base__.__name__ if kind is not AtollError else "" for kind in all_kinds()
    }


def test_all_classes_of_the_module_are_exported():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined | {"innermost", "revive"} == set(errors.__all__)


@pytest.mark.parametrize("kind", sorted(all_kinds(), key=lambda kind: kind.__name__))
def test_an_error_that_another_process_told_of_is_of_its_class_again(kind):
    error = revive(f"{kind.family}.why", "message", hint="hint", detail="detail")
    assert type(error) is kind
    assert (error.code, error.message, error.hint, error.detail) == (
        f"{kind.family}.why",
        "message",
        "hint",
        "detail",
    )
    assert str(error.exit_code)
    assert type(revive(kind.family, "message")) is kind


def test_an_error_of_a_family_that_nobody_knows_is_an_error_all_the_same():
    assert type(revive("tomorrow.why", "message")) is AtollError


def test_a_code_is_the_family_and_what_is_added_to_it():
    assert AtollError("x").code == "error"
    assert errors.StoreError("x", code="full").code == "store.full"
    assert errors.PreflightError("x").code == "boot.preflight"
    error = AtollError("message", hint="hint", detail="detail")
    assert (str(error), error.message, error.hint, error.detail) == ("message", "message", "hint", "detail")


@pytest.mark.parametrize("stage", ["spawn", "firmware", "kernel", "initramfs", "root", "agent", "command"])
def test_the_code_of_a_boot_error_is_its_stage(stage):
    error = BootError("x", stage=stage)
    assert (error.code, error.stage, error.exit_code) == (f"boot.{stage}", stage, 1)


def test_the_code_of_a_guest_error_is_its_reason():
    error = GuestError("x", reason="not_found", errno=2, stage="cwd")
    assert (error.code, error.reason, error.errno, error.stage) == ("guest.not_found", "not_found", 2, "cwd")


@pytest.mark.parametrize(
    ("errno", "stage", "status"),
    [(2, "exec", 127), (13, "exec", 126), (8, "exec", 126), (2, "cwd", 126), (0, "user", 126)],
)
def test_a_command_that_cannot_start_has_the_status_that_shells_give(errno, stage, status):
    error = CommandError("x", reason=stage, errno=errno, stage=stage)
    assert (error.code, error.exit_code) == (f"command.{stage}", status)


def test_a_process_error_knows_what_was_run_and_how_it_ended():
    error = ProcessError("x", argv=("ls",), status=-9)
    assert (error.code, error.argv, error.status) == ("process", ("ls",), -9)


def test_the_error_itself_comes_out_of_nested_groups():
    error = AtollError("x")
    assert innermost(error) is error
    assert innermost(ExceptionGroup("a", [ExceptionGroup("b", [error]), KeyError()])) is error
