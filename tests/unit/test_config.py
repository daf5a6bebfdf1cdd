"""Settings: which source wins, what is refused and how the refusal helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.config import SETTINGS, Config, NetworkKind, Renewed, load, parse_memory
from atoll.errors import ConfigError
from atoll.paths import Paths, default_paths, user_config

MIB = 1 << 20


def refused(**sources):
    with pytest.raises(ConfigError) as caught:
        load(sources.get("flags"), environment=sources.get("environment", {}), files=sources.get("files", ()))
    return caught.value


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


class TestPrecedence:
    def test_without_any_source_each_setting_has_its_default(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        resolved = load(environment={}, files=())
        assert resolved.config == Config(
            data_dir=tmp_path / ".local/share/atoll",
            cache_dir=tmp_path / ".cache/atoll",
            accel="auto",
            cpus=1,
            memory=512 * MIB,
            kernel=None,
            boot_timeout=60.0,
            cold=False,
            platform="",
            full=False,
            ubuntu_mirror="",
            network=NetworkKind.OWN,
            network_host_ports=(),
            ca=True,
            ca_files=(),
            default_registry="docker.io",
            registries={},
            build_cpus=min(os.cpu_count() or 1, 2),
            build_memory=2048 * MIB,
            build_disk=32768 * MIB,
            build_idle=300.0,
            docker_cpus=min(os.cpu_count() or 1, 2),
            docker_memory=2048 * MIB,
            docker_disk=65536 * MIB,
            docker_idle=300.0,
            docker_shares=(tmp_path,),
            docker_expose_ports_to_lan=False,
            docker_mirrors=(),
            docker_insecure_registries=(),
            docker_proxy="",
            docker_no_proxy=(),
            docker_ca=(),
            docker_daemon={},
        )
        assert set(resolved.origins.values()) == {"default"}

    def test_later_sources_win_and_the_origin_names_them(self, write):
        system = write("cpus = 2\nmemory = '1G'\naccel = 'kvm'\nboot_timeout = 5", "system.toml")
        user = write("cpus = 3\nmemory = '2G'\naccel = 'tcg'", "user.toml")
        environment = {"ATOLL_CPUS": "4", "ATOLL_MEMORY": "3G", "PATH": "/bin"}
        resolved = load({"cpus": 5}, environment=environment, files=(system, user))
        config = resolved.config
        assert (config.boot_timeout, config.accel, config.memory, config.cpus) == (5.0, "tcg", 3 << 30, 5)
        assert resolved.origins["kernel"] == "default"
        assert resolved.origins["boot_timeout"] == str(system)
        assert resolved.origins["accel"] == str(user)
        assert resolved.origins["memory"] == "ATOLL_MEMORY"
        assert resolved.origins["cpus"] == "flag"

    def test_a_flag_that_was_not_given_wins_over_nothing(self):
        resolved = load({"cpus": None}, environment={"ATOLL_CPUS": "4"}, files=())
        assert (resolved.config.cpus, resolved.origins["cpus"]) == (4, "ATOLL_CPUS")

    def test_the_users_own_file_and_variables_are_read_where_nothing_else_is_said(
        self, monkeypatch, tmp_path, write
    ):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        (tmp_path / "atoll").mkdir()
        write("cpus = 6\naccel = 'tcg'", "atoll/config.toml")
        monkeypatch.setenv("ATOLL_ACCEL", "auto")
        resolved = load()
        assert (resolved.config.cpus, resolved.origins["cpus"]) == (6, str(tmp_path / "atoll/config.toml"))
        assert resolved.origins["accel"] == "ATOLL_ACCEL"

    def test_files_that_are_not_there_say_nothing(self, tmp_path, write):
        below_a_file = write("") / "config.toml"
        resolved = load(environment={}, files=(tmp_path / "none.toml", below_a_file))
        assert set(resolved.origins.values()) == {"default"}

    def test_each_setting_has_one_row_of_the_table_and_one_field(self):
        assert [setting.name for setting in SETTINGS] == list(Config.__struct_fields__)


class TestSections:
    def test_what_the_section_docker_says_is_of_the_settings_with_that_prefix(self, write):
        file = write("docker_cpus = 1\n[docker]\nmemory = '4G'\ndaemon = { debug = true }")
        config = load(environment={}, files=(file,)).config
        assert (config.docker_cpus, config.docker_memory) == (1, 4 << 30)
        assert config.docker_daemon == {"debug": True}

    @pytest.mark.parametrize("text", ["docker = 1", "[docker]\nmemroy = '4G'", "[dokcer]\ncpus = 1"])
    def test_another_section_or_name_is_unknown(self, write, text):
        with pytest.raises(ConfigError) as caught:
            load(environment={}, files=(write(text),))
        assert caught.value.code == "config.unknown"


class TestLists:
    def test_a_variable_has_commas_or_colons_or_json_where_a_file_has_a_list_or_table(self, write, tmp_path):
        environment = {
            "ATOLL_DOCKER_MIRRORS": "http://a, http://b,",
            "ATOLL_DOCKER_SHARES": f"{tmp_path}:/srv",
            "ATOLL_DOCKER_DAEMON": '{"debug": true}',
            "ATOLL_DOCKER_IDLE": "0",
        }
        file = f"[docker]\nmirrors = ['http://a', 'http://b']\nshares = ['{tmp_path}', '/srv']\nidle = 0"
        said = load(environment=environment, files=()).config
        written = load(environment={}, files=(write(f"{file}\ndaemon = {{ debug = true }}"),)).config
        for name in ("docker_mirrors", "docker_shares", "docker_daemon", "docker_idle"):
            assert getattr(said, name) == getattr(written, name)
        assert said.docker_mirrors == ("http://a", "http://b")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MIRRORS", "http://a b"),
            ("SHARES", "relative"),
            ("DAEMON", "{"),
            ("DAEMON", "[]"),
            ("IDLE", "-1"),
            ("IDLE", "true"),
        ],
    )
    def test_what_cannot_be_is_refused(self, name, value):
        with pytest.raises(ConfigError) as caught:
            load(environment={f"ATOLL_DOCKER_{name}": value}, files=())
        assert caught.value.code == "config.value"

    @pytest.mark.parametrize("line", ["mirrors = 1", "mirrors = [1]", "shares = 1", "daemon = 1"])
    def test_so_it_is_in_a_file(self, write, line):
        with pytest.raises(ConfigError) as caught:
            load(environment={}, files=(write(f"[docker]\n{line}"),))
        assert caught.value.code == "config.value"


class TestFlags:
    @pytest.mark.parametrize("word", ["true", "True", "yes", "1"])
    def test_what_says_yes(self, word):
        assert load(environment={"ATOLL_COLD": word}, files=()).config.cold is True

    @pytest.mark.parametrize("word", ["false", "NO", "0", ""])
    def test_what_says_no(self, word):
        assert load(environment={"ATOLL_COLD": word}, files=()).config.cold is False

    def test_files_and_callers_say_it_in_their_own_types(self, write):
        assert load(environment={}, files=(write("cold = true"),)).config.cold is True
        assert load({"cold": False}, environment={"ATOLL_COLD": "1"}, files=()).config.cold is False

    @pytest.mark.parametrize("word", ["maybe", "2", "cold"])
    def test_all_else_is_refused(self, word):
        assert refused(environment={"ATOLL_COLD": word}).hint == "write true or false"


class TestUnknownNames:
    def test_in_a_file(self, write):
        path = write("memroy = '1G'")
        error = refused(files=(path,))
        assert error.code == "config.unknown"
        assert error.message == f"{path}: there is no setting 'memroy'"
        assert error.hint == "did you mean memory?"

    def test_in_a_table_of_a_file(self, write):
        assert refused(files=(write("[vm]\ncpus = 2"),)).code == "config.unknown"

    def test_in_the_environment(self):
        error = refused(environment={"ATOLL_CACHEDIR": "/x"})
        assert error.message == "ATOLL_CACHEDIR: there is no setting 'cachedir'"
        assert error.hint == "did you mean cache_dir?"

    def test_among_the_flags(self):
        error = refused(flags={"acel": "tcg"})
        assert error.message == "flag: there is no setting 'acel'"
        assert error.hint == "did you mean accel?"

    def test_one_that_is_near_to_none_points_to_the_list(self):
        assert refused(environment={"ATOLL_ZZZ": "1"}).hint == "`atoll config show` lists the settings"
        assert refused(environment={"ATOLL_": "1"}).code == "config.unknown"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("cpus", "0", "from 1 to 255"),
        ("cpus", "256", "from 1 to 255"),
        ("cpus", "two", "from 1 to 255"),
        ("cpus", "-1", "from 1 to 255"),
        ("cpus", "1.5", "from 1 to 255"),
        ("cpus", True, "from 1 to 255"),
        ("memory", "512", "with its unit"),
        ("memory", 512, "with its unit"),
        ("memory", "", "with its unit"),
        ("memory", "1P", "with its unit"),
        ("memory", "0M", "whole number of MiB"),
        ("memory", "1K", "whole number of MiB"),
        ("memory", "0.3M", "whole number of MiB"),
        ("memory", "9" * 400 + "T", "whole number of MiB"),
        ("accel", "hvf", "auto, kvm or tcg"),
        ("accel", "KVM", "auto, kvm or tcg"),
        ("accel", ["kvm"], "auto, kvm or tcg"),
        ("data_dir", "relative/path", "absolute"),
        ("data_dir", "", "write a path"),
        ("cache_dir", 5, "write a path"),
        ("data_dir", "~no-such-user/x", "home"),
        ("kernel", "~no-such-user/x", "home"),
        ("kernel", 5, "write a path"),
        ("boot_timeout", "0", "above 0"),
        ("boot_timeout", "-3", "above 0"),
        ("boot_timeout", "nan", "above 0"),
        ("boot_timeout", "inf", "above 0"),
        ("boot_timeout", "86400", "above 0"),
        ("boot_timeout", "soon", "seconds"),
        ("boot_timeout", True, "seconds"),
        ("boot_timeout", [], "seconds"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_to_write(name, value, hint):
    error = refused(flags={name: value})
    assert error.code == "config.value"
    assert error.message == f"flag: {name} = {value!r}"
    assert hint in error.hint


def test_a_value_that_cannot_be_names_the_variable_or_file_it_stands_in(write):
    assert refused(environment={"ATOLL_CPUS": "0"}).message == "ATOLL_CPUS: cpus = '0'"
    path = write("cpus = 0")
    assert refused(files=(path,)).message == f"{path}: cpus = 0"


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("cpus", "255", 255),
        ("cpus", 8, 8),
        ("memory", "1.5 GiB", 1536 * MIB),
        ("memory", " 64mb ", 64 * MIB),
        ("memory", "1048576K", 1 << 30),
        ("accel", "kvm", "kvm"),
        ("data_dir", "~/atoll", Path("/home/of/tests/atoll")),
        ("kernel", "~/vmlinux", Path("/home/of/tests/vmlinux")),
        ("kernel", "", None),
        ("boot_timeout", "0.5", 0.5),
        ("boot_timeout", 90, 90.0),
    ],
)
def test_values_are_read_as_people_write_them(monkeypatch, name, value, meant):
    monkeypatch.setenv("HOME", "/home/of/tests")
    assert getattr(load({name: value}, environment={}, files=()).config, name) == meant


def test_a_relative_kernel_is_one_in_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load({"kernel": "vmlinux"}, environment={}, files=()).config.kernel == tmp_path / "vmlinux"


@given(st.integers(1, 1 << 20), st.sampled_from(["m", "M", "MB", "MiB", "mib"]), st.sampled_from(["", " "]))
def test_a_whole_number_of_mebibytes_is_read_exactly(count, unit, gap):
    assert parse_memory(f"{count}{gap}{unit}") == count * MIB


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none(), st.booleans()))
@example("1e3M")
@example("9" * 309 + "M")
@example("٣M")
@example("1K")
def test_any_other_size_is_refused_or_a_whole_number_of_mebibytes(value):
    try:
        size = parse_memory(value)
    except ValueError as error:
        assert str(error) in {  # noqa: PT017 - either outcome is right
            "write a size with its unit, such as 512M or 2G",
            "the size must be a whole number of MiB",
        }
    else:
        assert size > 0
        assert size % MIB == 0


@pytest.mark.parametrize("text", ["cpus", "cpus = ", "= 3", "[cpus", 'memory = "1G', "cpus = 1\ncpus = 2"])
def test_a_file_that_is_no_toml_is_refused_with_its_name_and_place(write, text):
    path = write(text)
    error = refused(files=(path,))
    assert error.code == "config.file"
    assert error.message.startswith(f"{path}: ")
    assert "line 1" in error.message or "line 2" in error.message or "end of document" in error.message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b'accel = "\xff"')
    assert refused(files=(path,)).code == "config.file"


def test_a_directory_in_place_of_the_file_is_refused(tmp_path):
    error = refused(files=(tmp_path,))
    assert (error.code, error.message) == ("config.file", f"{tmp_path}: Is a directory")


class TestPaths:
    def test_the_xdg_variables_say_where_everything_is(self, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
        monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere/config")
        assert default_paths() == Paths(Path("/somewhere/data/atoll"), Path("/somewhere/cache/atoll"))
        assert user_config() == Path("/somewhere/config/atoll/config.toml")

    @pytest.mark.parametrize("value", ["", "relative/path", "."])
    def test_an_empty_or_relative_one_is_ignored_as_the_specification_has_it(self, monkeypatch, value):
        monkeypatch.setenv("HOME", "/home/of/tests")
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.setenv(name, value)
        home = Path("/home/of/tests")
        assert default_paths() == Paths(home / ".local/share/atoll", home / ".cache/atoll")
        assert user_config() == home / ".config/atoll/config.toml"

    def test_the_answer_is_that_of_platformdirs(self, monkeypatch):
        import platformdirs

        monkeypatch.setenv("HOME", "/home/of/tests")
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        paths = Paths(platformdirs.user_data_path("atoll"), platformdirs.user_cache_path("atoll"))
        assert default_paths() == paths
        assert user_config() == platformdirs.user_config_path("atoll") / "config.toml"

    def test_everything_lies_below_the_two_roots(self):
        paths = Paths(data=Path("/data"), cache=Path("/cache"))
        assert paths.image("debian") == Path("/data/images/debian")
        assert paths.kernel("0123") == Path("/cache/kernels/0123")
        assert paths.downloads.parent == paths.verdicts.parent == Path("/cache")


class TestRenewal:
    def test_a_file_is_read_again_once_it_has_changed(self, write, tmp_path):
        renewed = Renewed({"memory": "1G"}, environment={}, files=(tmp_path / "config.toml",))
        first = renewed()
        assert (first.cpus, first.memory) == (1, 1024 * MIB)
        assert renewed() is first
        write("cpus = 2")
        assert (renewed().cpus, renewed().memory) == (2, 1024 * MIB)
        write("cpus = none")
        for _ in range(2):
            with pytest.raises(ConfigError):
                renewed()
        (tmp_path / "config.toml").unlink()
        assert renewed() == first
