"""Networks as things of the user: made, listed, removed; and what commands say of them."""

from __future__ import annotations

import json
import os
import threading

import msgspec
import pytest
from machines import hosted_spec
from msgspec.structs import replace

from atoll import store
from atoll.cli.main import build_parser, main
from atoll.config import load
from atoll.errors import AtollError, NetworkError, StoreError, UsageError
from atoll.hypervisor.model import Accelerator, Architecture, CardNetwork, Machine
from atoll.machine import editing, registry
from atoll.machine.creation import Wishes, make_spec
from atoll.machine.networks import users_of
from atoll.machine.spec import MachineSpec
from atoll.sandbox.sandbox import Sandbox
from atoll.sandbox.warm import require_card
from atoll.vm.network import catalog, names
from atoll.vm.network.catalog import Activity, Wish
from atoll.vm.network.records import Leases, Network


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    monkeypatch.setenv("ATOLL_DATA_DIR", str(tmp_path))
    return load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config


@pytest.fixture
def paths(config):
    return config.paths


def nobody():
    return ()


def machine(paths, name, **wishes):
    spec = hosted_spec(**wishes)
    registry.add(paths, name, spec, lambda _: None)
    return spec


def test_a_network_is_made_listed_and_removed_without_leavings(paths):
    made = catalog.create(paths, "lab", Wish(isolated=True))
    assert store.read_record(paths.network("lab").record, Network) == made
    assert [one.name for one in catalog.listed(paths)] == ["default", "sandboxes", "lab"]
    found = catalog.find(paths, "lab")
    assert (found.ipv4, found.shared, found.outside, found.activity) == (
        made.ipv4,
        False,
        True,
        Activity.IDLE,
    )
    catalog.remove(paths, "lab", nobody)
    assert os.listdir(paths.networks) == [".lock"]


def test_the_two_that_are_made_at_their_first_use_are_listed_and_stay(paths):
    default, sandboxes = catalog.listed(paths)
    assert (default.name, default.ipv4, default.shared, default.built_in) == (
        "default",
        "10.0.2.0/24",
        True,
        True,
    )
    assert (sandboxes.ipv4, sandboxes.shared) == ("10.1.0.0/16", False)
    with pytest.raises(UsageError, match="cannot be removed"):
        catalog.remove(paths, "default", nobody)
    with pytest.raises(StoreError, match="already"):
        catalog.create(paths, "sandboxes", Wish())
    with pytest.raises(NetworkError, match=r"overlaps with 10\.1\.0\.0/16: they are the network sandboxes's"):
        catalog.create(paths, "lab", Wish(subnet="10.1.7.0/24"))


@pytest.mark.parametrize("name", ["own", "slirp", "none", "Lab", "", "-a", "a" * 64, "../x", ".lock"])
def test_what_cannot_be_a_networks_name(paths, name):
    with pytest.raises(UsageError) as caught:
        catalog.create(paths, name, Wish())
    assert caught.value.code == "usage.network"


def test_one_that_was_never_made_is_an_error_that_names_those_there_are(paths, config):
    catalog.create(paths, "lab", Wish())
    for ask in (
        lambda: names.require(paths, "lob"),
        lambda: make_spec(config, Wishes(network="lob")),
        lambda: editing.edited(config, hosted_spec(), {"network": "lob"}),
        lambda: Sandbox("debian", network="lob", config=config),
        lambda: catalog.remove(paths, "lob", nobody),
    ):
        with pytest.raises(NetworkError, match="there is no network lob") as caught:
            ask()
        assert (caught.value.code, "default, sandboxes, lab" in caught.value.hint) == (
            "network.unknown",
            True,
        )


def test_of_many_that_are_made_at_once_each_has_addresses_of_its_own(paths):
    failures = []

    def make(name):
        try:
            catalog.create(paths, name, Wish())
        except AtollError as error:
            failures.append(error.code)

    threads = [threading.Thread(target=make, args=(name,)) for name in ("a", "b", "c", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == ["store.already_exists"]
    made = catalog.listed(paths)[2:]
    assert len({one.ipv4 for one in made}) == len(made) == 3


def test_what_killed_commands_left_goes_with_the_next(paths):
    for left in (".partial-lab-0badcafe", ".removed-lab-0badcafe"):
        (paths.networks / left).mkdir(parents=True)
    assert [one.name for one in catalog.listed(paths)] == ["default", "sandboxes"]
    catalog.create(paths, "lab", Wish())
    assert sorted(os.listdir(paths.networks)) == [".lock", "lab"]


@pytest.mark.parametrize(
    "record", [b"{}", b"[", b'{"schema": 1, "ipv4": "127.0.0.0/8", "ipv6": "fd00::/64"}', b'{"schema": 99}']
)
def test_a_record_that_makes_no_network_is_told_and_can_be_removed(paths, record):
    catalog.create(paths, "lab", Wish())
    paths.network("lab").record.write_bytes(record)
    found = catalog.find(paths, "lab")
    assert found.activity is Activity.BROKEN
    assert found.problem
    catalog.create(paths, "other", Wish())
    catalog.remove(paths, "lab", nobody)
    assert [one.name for one in catalog.listed(paths)][2:] == ["other"]


def test_a_directory_that_has_lost_its_record_can_be_removed(paths):
    catalog.create(paths, "lab", Wish())
    paths.network("lab").record.unlink()
    assert catalog.listed(paths)[2].activity is Activity.BROKEN
    with pytest.raises(NetworkError, match="there is no network lab"):
        names.require(paths, "lab")
    catalog.remove(paths, "lab", nobody)
    assert os.listdir(paths.networks) == [".lock"]


def test_what_goes_on_from_a_vm_without_a_card_cannot_be_on_a_network(tmp_path):
    plain = Machine("x", Architecture.X86_64, Accelerator.TCG, 1, 1 << 28, tmp_path, tmp_path)
    require_card(plain, "", "it")
    require_card(replace(plain, card=CardNetwork("02:00:00:00:00:01")), "lab", "it")
    with pytest.raises(UsageError, match="the template t has no card") as caught:
        require_card(plain, "lab", "the template t")
    assert caught.value.code == "usage.network"


def test_a_network_that_a_machine_names_stays(paths, capsys):
    catalog.create(paths, "lab", Wish())
    machine(paths, "dev", network=True, lan="lab")
    machine(paths, "slow", network=True, lan="lab", slirp=True)
    assert users_of(paths, "lab") == ("dev",)
    assert main(["network", "rm", "lab"]) == 1
    assert "error[network.in_use]: lab is the network of dev" in capsys.readouterr().err
    assert main(["edit", "dev", "network=own"]) == 0
    assert main(["network", "rm", "lab"]) == 0


def test_wishes_for_a_network_become_the_record_of_a_machine(paths, config):
    catalog.create(paths, "lab", Wish())
    spec = make_spec(config, Wishes(network="lab"))
    assert (spec.network, spec.slirp, spec.lan, spec.on) == (True, False, "lab", "lab")
    assert make_spec(config, Wishes(network="default")).lan == ""
    assert make_spec(config, Wishes(network="slirp")).on == ""
    assert make_spec(config, Wishes()).on == "default"
    for said, shown in (
        ("lab", "lab"),
        ("own", "own"),
        ("slirp", "slirp"),
        ("none", "none"),
        ("default", "own"),
    ):
        assert editing.shown(editing.edited(config, spec, {"network": said}), "network") == shown
    assert editing.edited(config, spec, {"network": "none"}).lan == ""


def test_a_record_from_before_there_were_networks_is_read(tmp_path):
    plain = json.loads(msgspec.json.encode(hosted_spec(network=True)))
    del plain["lan"]
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(plain))
    assert store.read_record(path, MachineSpec).on == "default"


def test_the_address_of_a_machine_that_is_removed_is_given_to_another(paths):
    catalog.create(paths, "lab", Wish())
    place = paths.network("lab")
    store.write_record(place.leases, Leases(numbers={"one": 0, "two": 1}))
    catalog.forget_machine(paths, "one")
    catalog.forget_machine(paths, "nobody")
    assert store.read_record(place.leases, Leases).numbers == {"two": 1}


def test_the_command_line_makes_lists_and_shows_networks(capsys):
    def said(*words):
        assert main(["network", *words]) == 0
        return capsys.readouterr().out

    made = json.loads(
        said("create", "lab", "--internal", "--mtu", "1500", "--subnet", "10.77.0.0/24", "--json")
    )
    assert (made["name"], made["ipv4"], made["outside"], made["mtu"]) == ("lab", "10.77.0.0/24", False, 1500)
    assert json.loads(said("ls", "--json"))[2] == made == json.loads(said("inspect", "lab", "--json"))
    rows = [line.split() for line in said("ls").splitlines()]
    assert rows[0] == ["NAME", "IPV4", "IPV6", "OUTSIDE", "SHARED", "CARDS", "PROCESS"]
    assert rows[3] == ["lab", "10.77.0.0/24", made["ipv6"], "no", "yes", "0", "idle"]
    assert "1500 bytes" in said("inspect", "lab")
    assert said("rm", "lab") == "lab\n"
    assert main(["network", "create", "lab", "--mtu", "many"]) == 2
    assert "error[usage.mtu]" in capsys.readouterr().err


def test_a_machine_at_rest_is_moved_by_its_record(paths, capsys):
    catalog.create(paths, "lab", Wish())
    machine(paths, "dev", network=True)
    assert main(["network", "connect", "lab", "dev"]) == 0
    assert capsys.readouterr().out == "dev: on lab, at the next start\n"
    assert registry.find(paths, "dev").spec.on == "lab"
    assert main(["network", "disconnect", "dev"]) == 0
    assert registry.find(paths, "dev").spec.on == "default"
    assert main(["network", "connect", "nowhere", "dev"]) == 1
    assert "error[network.unknown]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "network", "image"),
    [
        (["--network", "debian"], True, "debian"),
        (["--network=lab", "debian"], "lab", "debian"),
        (["--network=own", "debian", "--network=x"], "own", "debian"),
        (["--network=", "debian"], "", "debian"),
    ],
)
def test_a_networks_name_is_a_part_of_its_option(words, network, image):
    parsed = build_parser(["run", *words]).parse_args(["run", *words])
    assert (parsed.network, parsed.image) == (network, image)
    assert parsed.argv == words[words.index(image) + 1 :]
