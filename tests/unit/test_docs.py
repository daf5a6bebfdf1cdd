"""The documentation names what exists, and all of it."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import atoll
from atoll import errors, events
from atoll.cli.main import build_parser
from atoll.config import SETTINGS
from atoll.guest.execution import _start_error
from atoll.guest.file_errors import REASONS
from atoll.guest.file_messages import FileChange, FileInfo
from atoll.guest.files import Files
from atoll.guest.messages import ExecStart
from atoll.guest.result import Result
from atoll.guest.watching import Watch

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted((ROOT / "src" / "atoll").rglob("*.py"))
STAGES = {
    "spawn",
    "firmware",
    "kernel",
    "initramfs",
    "root",
    "agent",
    "setup",
    "probe",
    "command",
    "freeze",
    "template",
}


def kinds_of_errors(base=errors.AtollError):
    """All classes of errors, wherever they are."""
    yield base
    for kind in base.__subclasses__():
        yield from kinds_of_errors(kind)


for module in pkgutil.walk_packages(atoll.__path__, "atoll."):
    if module.name not in {"atoll.__main__", "atoll.machine.supervise"}:
        importlib.import_module(module.name)
KINDS = {kind.__name__: kind for kind in kinds_of_errors()}
FAMILIES = {name: kind.family for name, kind in KINDS.items()}

#: Codes that are put together: what refuses a machine that is in another phase than is needed.
COMPOSED = {"not_{wanted}": ("state.not_running", "state.not_paused")}


def page(name):
    return (ROOT / "docs" / name).read_text()


def first_column(text):
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def relative(path):
    return str(path.relative_to(ROOT))


def codes_in(tree):
    """Codes that the source gives to errors by a constant, or by its class alone."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "Failure" and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value
        family = FAMILIES.get(node.func.id)
        if family is None or node.func.id in {"BootError", "GuestError", "CommandError", "FileError"}:
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "code" not in given:
            yield family
        elif isinstance(given["code"], ast.Constant):
            yield f"{family}.{given['code'].value}"
        elif isinstance(given["code"], ast.JoinedStr):
            yield from COMPOSED[ast.unparse(given["code"])[2:-1]]
        else:
            pytest.fail(f"line {node.lineno}: a code that is no constant")


def codes_of_the_source():
    raised = re.compile(rf"\b(?:Failure|{'|'.join(FAMILIES)})\(")
    texts = [text for text in map(Path.read_text, SOURCES) if raised.search(text)]
    found = {code for text in texts for code in codes_in(ast.parse(text))}
    found |= {f"boot.{stage}" for stage in STAGES}
    reasons = re.search(r"RESET codes: (.*?)\n\n", page("reference/agent-protocol.md"), re.DOTALL)
    found |= {f"guest.{reason}" for reason in re.findall(r"`(\w+)`(?= \(|,|\.)", reasons[1])}
    for stage in ("exec", "interpreter", "cwd", "user"):
        refusal = errors.GuestError("x", reason="os", errno=2, stage=stage)
        found.add(_start_error(ExecStart(id="x", argv=("x",)), refusal).code)
    found |= {f"file.{reason}" for reason, _ in REASONS.values()} | {"file.os", "file.invalid"}
    return found


def test_the_codes_of_the_errors_page_are_those_of_the_source():
    listed = first_column(page("reference/errors.md").partition("## Classes")[0])
    assert len(set(listed)) == len(listed)
    assert set(listed) == codes_of_the_source()


def test_the_classes_of_the_errors_page_are_those_of_the_source_with_their_exit_status():
    table = page("reference/errors.md").partition("## Classes")[2]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*?) \|$", table, re.MULTILINE)
    assert {name for name, _ in rows} == set(FAMILIES)
    for name, status in rows:
        if status.isdigit():
            assert KINDS[name].exit_code == int(status)


def test_the_events_page_has_each_event_with_its_fields():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", page("reference/events.md"), re.MULTILINE)
    listed = {name: tuple(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    assert listed == {
        kind.__struct_config__.tag: tuple(field for field in kind.__struct_fields__ if field != "at")
        for kind in events.Event.__subclasses__()
    }


def test_the_configuration_page_has_each_setting_with_its_variable():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page("reference/configuration.md"), re.MULTILINE)
    assert rows == [(setting.name, f"ATOLL_{setting.name.upper()}") for setting in SETTINGS]


def test_the_python_page_has_each_argument_and_attribute():
    import inspect

    from atoll import aio, blocking

    text = page("reference/python.md")
    names = {name for cell in first_column_cells(text) for name in re.findall(r"`(\w+)", cell)}
    wanted = set(inspect.signature(aio.Sandbox.__init__).parameters) - {"self", "spawned"}
    wanted |= set(inspect.signature(aio.Sandbox.run).parameters) - {"self"}
    wanted |= {name for name in vars(blocking.Sandbox) if not name.startswith("_")}
    wanted |= {name for name in dir(Result) if not name.startswith("_")}
    wanted |= {name for name in vars(blocking.Machine) if not name.startswith("_")}
    wanted |= {name for name in vars(blocking.Pool) if not name.startswith("_")}
    for kind in (Files, Watch):
        for name, method in vars(kind).items():
            if not name.startswith("_"):
                wanted |= {name, *inspect.signature(method).parameters} - {"self"}
    wanted |= {*FileInfo.__struct_fields__, *FileChange.__struct_fields__}
    methods = ("create", "copy_in", "copy_out", "start", "stop", "wait", "start_process", "attach", "expose")
    for method in methods:
        wanted |= set(inspect.signature(getattr(aio.Machine, method)).parameters) - {"self"}
    for kind in (
        blocking.Process,
        blocking.Reader,
        blocking.Exposed,
        blocking.Capture,
        atoll.Exit,
        atoll.ExecutionState,
    ):
        wanted |= {name for name in dir(kind) if not name.startswith("_")} - {"arguments"}
    wanted |= set(atoll.Detached.__struct_fields__)
    wanted |= {"export_snapshot", "import_snapshot", "target", "source"}
    wanted |= {name for name in vars(blocking.Network) if not name.startswith("_")}
    wanted |= set(atoll.NetworkInfo.__struct_fields__)
    wanted |= {*atoll.Difference.__struct_fields__, *atoll.FileState.__struct_fields__}
    assert names == wanted


def first_column_cells(text):
    return re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)


def parsers(parser, name="atoll"):
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from parsers(child, f"{name} {word}")


def test_the_command_line_page_has_each_command_with_its_options():
    sections = re.split(r"^##+ (atoll [\w -]+)$", page("reference/cli.md"), flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    known = dict(parsers(build_parser([], whole=True)))
    del known["atoll"]
    assert set(described) == set(known)
    for name, parser in known.items():
        options = {
            option.partition("=")[0] for action in parser._actions for option in action.option_strings
        } - {"-h", "--help"}
        named = re.findall(r"`(--?[A-Za-z][a-z0-9-]*)", described[name])
        assert options == set(named), name


def commands_of(text):
    """Command lines of Atoll in shell examples and in backticks, without redirections and pipes."""
    for block in blocks(text, "sh"):
        for line in block.splitlines():
            found = re.search(r"(?:^|[|=(] *|\$ )(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(atoll .*)", line)
            if found:
                yield found[1]
    yield from re.findall(r"`(atoll [a-z][^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def words_of(command):
    if re.search(r"[\[\]]|\.\.\.", command) or command == "atoll COMMAND --help":
        return None  # a synopsis
    words = []
    for word in shlex.split(command)[1:]:
        if word in {"|", ">", ">>", ">&2", "&&", ";"}:
            break
        words.append(word)
    return words


def assert_parses(command):
    words = words_of(command)
    if words is None:
        return
    if "|" in "".join(words):
        words = [word.partition("|")[0] for word in words]
    # Prose may leave out what the command acts on.
    rests = ([], ["debian"], ["ls"], ["show"], ["bash"], ["dev"], ["dev", "web"], ["dev:x", "x"])
    assert any(parses([*words, *rest]) for rest in rests), command


def parses(words):
    try:
        build_parser(words).parse_args(words)
    except SystemExit as end:
        return end.code == 0
    return True


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_each_command_of_a_page_is_one_that_the_parser_takes(path, capsys):
    for command in commands_of(path.read_text()):
        assert_parses(command)


HINTING = [path for path in SOURCES if re.search(r"\b(?:hint|fix)=", path.read_text())]


@pytest.mark.parametrize("path", HINTING, ids=relative)
def test_each_command_that_the_source_hints_at_is_one_that_the_parser_takes(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg in {"hint", "fix"}:
            text = re.sub(r"\{[^}]*\}", "X", ast.unparse(node.value))
            for command in re.findall(r"`(atoll [a-z][^`]*)`", text):
                assert_parses(command)
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"`[^`]*`", "", text)):
                assert option in all_options(), (option, text)


@functools.cache
def all_options():
    return {
        option
        for _, parser in parsers(build_parser([], whole=True))
        for action in parser._actions
        for option in action.option_strings
    }


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_each_link_of_a_page_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def test_each_page_is_reached_from_the_index_and_the_readme():
    for start in (ROOT / "docs" / "index.md", ROOT / "README.md"):
        linked = {
            (start.parent / target).resolve()
            for target in re.findall(r"\]\(([^)#]+\.md)\)", start.read_text())
        }
        unreached = {path for path in PAGES if "decisions" not in path.parts} - linked
        assert unreached <= {start, ROOT / "README.md", ROOT / "docs" / "index.md"}


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_each_python_example_compiles_and_imports_what_exists(path):
    for block in blocks(path.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("atoll"):
                for name in node.names:
                    assert hasattr(importlib.import_module(node.module), name.name)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "atoll"
            ):
                assert node.attr in importlib.import_module("atoll").__all__


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_each_name_and_file_of_the_source_that_a_page_cites_exists(path):
    for name in re.findall(r"`(atoll(?:\.\w+)+)(?:\([^`]*\))?`", path.read_text()):
        if name != "atoll.agent.0":
            assert resolves(name), name
    for file in re.findall(r"`((?:guest-agent|src|docs|tests)/[\w/.-]*)`", path.read_text()):
        assert (ROOT / file).exists(), file


def resolves(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
        except AttributeError:
            return False
        return True
    return False


def test_toml_examples_are_settings():
    import tomllib

    for block in blocks(page("reference/configuration.md"), "toml"):
        tables = tomllib.loads(block)
        names = {*(f"docker_{name}" for name in tables.pop("docker", {})), *tables}
        assert names <= {setting.name for setting in SETTINGS}
