"""What a migration decides, for everything that an engine may have."""

from __future__ import annotations

import msgspec
import pytest

from atoll.containers.migration import reading, translating
from atoll.containers.migration.inventory import Container, Image, Inventory, Network, Other, Volume
from atoll.containers.migration.journal import Entry, Journal, key
from atoll.containers.migration.planning import plan
from atoll.containers.migration.plans import (
    ContainerStep,
    ImageStep,
    Kind,
    NetworkStep,
    Verdict,
    VolumeStep,
    Wishes,
)
from atoll.containers.migration.reading import Via
from atoll.containers.migration.translating import Place

IMAGE = Image(
    id="sha256:aa", tags=("web:1", "web:latest"), layers=("sha256:l1",), architecture="amd64", size=10
)
EMPTY = Inventory(id="target", architecture="amd64", cpus=2, runtimes=("runc",), logs=("json-file", "local"))
JOURNAL = Journal(source="source", target="target")


def container(name="web", *, host=None, mounts=(), networks=None, state="exited", **more):
    config = {"Image": "web:1", "Hostname": f"{name:0<64}"[:12], **more.pop("config", {})}
    return Container(
        id=f"{name:0<64}",
        name=name,
        image="sha256:aa",
        inspected={
            "Config": config,
            "HostConfig": {"NetworkMode": "default", **(host or {})},
            "Mounts": list(mounts),
            "NetworkSettings": {"Networks": networks or {}},
            "State": {"Status": state, "StartedAt": more.pop("started", "")},
            **more,
        },
    )


def mount(name, place="/data"):
    return {"Type": "volume", "Name": name, "Destination": place, "RW": True}


def network(name="lan", subnet="10.9.0.0/24", **more):
    wanted = {"Name": name, "IPAM": {"Config": [{"Subnet": subnet}]}, "Labels": {}}
    return Network(id=f"id-{name}", name=name, wanted=wanted, **more)


def source(**parts):
    return Inventory(id="source", **{"images": (IMAGE,), **parts})


def made(inventory, target=EMPTY, *, journal=JOURNAL, place=None, **wishes):
    return plan(inventory, target, Wishes(**wishes), journal, place or Place())


def found(decided):
    return {
        (one.kind.value, one.name): (one.verdict.value, [why.code for why in one.reasons])
        for one in decided.items
    }


def steps(decided, kind):
    return [one for one in decided.steps if isinstance(one, kind)]


def test_everything_is_carried_in_an_order_in_which_it_can_be():
    inventory = source(
        volumes=(Volume(name="data"),),
        networks=(network(),),
        containers=(
            container("b", host={"NetworkMode": f"container:{'a':0<64}"}, started="1"),
            container("a", networks={"lan": {}}, mounts=[mount("data")], started="2"),
        ),
    )
    decided = made(inventory)
    assert {verdict for verdict, _ in found(decided).values()} == {"carry"}
    assert [type(one) for one in decided.steps] == [
        ImageStep,
        VolumeStep,
        NetworkStep,
        ContainerStep,
        ContainerStep,
    ]
    first, second = steps(decided, ContainerStep)
    assert (first.container.name, second.container.name) == ("a", "b")
    assert second.body["HostConfig"]["NetworkMode"] == "container:a"
    assert first.image == "web:1"
    assert first.needs == {"image:sha256:aa", "volume:data", "network:lan"}
    assert f"container:{'a':0<64}" in second.needs


def test_images_that_share_layers_travel_together_and_tags_that_are_there_are_not_made_again():
    others = [msgspec.structs.replace(IMAGE, id=f"sha256:b{n}", tags=(f"b:{n}",)) for n in range(3)]
    alone = msgspec.structs.replace(IMAGE, id="sha256:c", tags=("c:1",), layers=("sha256:l2",))
    decided = made(source(images=(IMAGE, *others, alone)))
    assert [len(one.images) for one in decided.steps] == [4, 1]
    half = msgspec.structs.replace(IMAGE, tags=("web:1",))
    again = made(source(), msgspec.structs.replace(EMPTY, images=(half,)))
    assert [(one.present, one.tags) for one in again.steps[0].images] == [("sha256:aa", IMAGE.tags)]
    assert made(source(), msgspec.structs.replace(EMPTY, images=(IMAGE,))).steps == ()
    huge = [msgspec.structs.replace(one, size=3 << 30) for one in others]
    assert [len(one.images) for one in made(source(images=tuple(huge))).steps] == [1, 1, 1]


def test_an_image_that_another_store_calls_otherwise_is_the_same():
    twin = msgspec.structs.replace(IMAGE, id="sha256:config")
    decided = made(source(), msgspec.structs.replace(EMPTY, images=(twin,)))
    assert (decided.steps, dict(decided.twins)) == ((), {"sha256:aa": "sha256:config"})
    other = msgspec.structs.replace(twin, config={"Cmd": ["else"]})
    assert found(made(source(), msgspec.structs.replace(EMPTY, images=(other,))))["image", "web:1"] == (
        "refused",
        ["tag_taken", "tag_taken"],
    )


@pytest.mark.parametrize(
    ("item", "parts", "code"),
    [
        ("network", {"networks": (network(driver="macvlan"),)}, "driver"),
        ("network", {"networks": (network(scope="swarm"),)}, "swarm"),
        ("network", {"networks": (network(special="it is a swarm's"),)}, "special"),
        ("volume", {"volumes": (Volume(name="v", driver="nfs"),)}, "driver"),
        ("volume", {"volumes": (Volume(name="v"),)}, "unread"),
        ("volume", {"volumes": (Volume(name="a" * 64),)}, "anonymous"),
        ("volume", {"volumes": (Volume(name="v", options={"o": "size=1g"}),)}, "options"),
        ("volume", {"volumes": (Volume(name="v", options={"o": "bind", "device": "/x"}),)}, "bind_missing"),
        ("volume", {"volumes": (Volume(name="v", options={"type": "ext4", "device": "/dev/x"}),)}, "device"),
        ("image", {"images": (msgspec.structs.replace(IMAGE, os="windows"),)}, "platform"),
        ("image", {"images": (msgspec.structs.replace(IMAGE, tags=()),)}, "untagged"),
        ("other", {"others": (Other("plugin", "p"),)}, "not_carried"),
    ],
)
def test_what_cannot_be_carried_is_told_with_a_reason(item, parts, code):
    verdicts = [told for (kind, _), told in found(made(source(**parts))).items() if kind == item]
    assert verdicts == [("left", [code])]


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ({"Binds": ["/gone:/x"]}, "bind_missing"),
        ({"Mounts": [{"Type": "bind", "Source": "/etc/other", "Target": "/x"}]}, "bind_unshared"),
        ({"DeviceRequests": [{"Driver": "nvidia"}]}, "gpu"),
        ({"Devices": [{"PathOnHost": "/dev/ttyUSB0"}]}, "device"),
        ({"NanoCpus": 4_000_000_000}, "cpus"),
        ({"Runtime": "runsc"}, "runtime"),
        ({"LogConfig": {"Type": "journald"}}, "log_driver"),
        ({"StorageOpt": {"size": "1G"}}, "storage"),
        ({"VolumeDriver": "nfs"}, "volume_driver"),
        ({"SecurityOpt": ["apparmor=mine"]}, "apparmor"),
        ({"NetworkMode": "container:gone"}, "needs"),
    ],
)
def test_a_container_that_cannot_be_there_is_told_with_a_reason(host, code):
    place = Place(shares=("/home/user",), present=frozenset({"/etc/other"}))
    decided = made(source(containers=(container(host=host),)), place=place)
    assert found(decided)["container", "web"] == ("left", [code])
    assert not steps(decided, ContainerStep)


def test_directories_that_are_shared_and_the_engines_own_socket_can_be_mounted():
    place = Place(shares=("/home/user",), present=frozenset({"/home/user/app"}))
    host = {"Binds": ["/home/user/app:/app", "/var/run/docker.sock:/var/run/docker.sock", "data:/d"]}
    assert (
        found(made(source(containers=(container(host=host),)), place=place))["container", "web"][0] == "carry"
    )
    assert not Place(shares=("/home/user",)).reaches("/home/username")


def test_what_was_done_is_there_what_was_begun_is_done_again_and_what_is_anothers_is_refused():
    inventory = source(
        volumes=(Volume(name="data"),), containers=(container(mounts=[mount("data")]),), networks=(network(),)
    )
    held = Container(id="new", name="web", image="sha256:aa")
    target = msgspec.structs.replace(
        EMPTY,
        images=(IMAGE,),
        volumes=(Volume(name="data", created="then"),),
        containers=(held,),
        networks=(network(),),
    )
    names = key(Kind.VOLUME, "data"), key(Kind.CONTAINER, inventory.containers[0].id)

    def verdicts(**entries):
        journal = msgspec.structs.replace(
            JOURNAL,
            entries=dict(
                zip(names, (Entry(**entries, target=made) for made in ("then", "new")), strict=True)
            ),
        )
        decided = made_(inventory, target, journal=journal)
        return found(decided)["volume", "data"][0], found(decided)["container", "web"][0], decided

    made_ = made
    assert verdicts(done=True)[:2] == ("there", "there")
    volume, box, decided = verdicts(done=False)
    assert (volume, box) == ("carry", "carry")
    assert steps(decided, VolumeStep)[0].again
    decided = made(inventory, target)
    assert found(decided)["volume", "data"] == ("refused", ["exists"])
    assert found(decided)["container", "web"] == ("refused", ["exists"])
    assert found(decided)["network", "lan"][0] == "there"
    reset = msgspec.structs.replace(target, volumes=(Volume(name="data", created="later"),))
    journal = msgspec.structs.replace(JOURNAL, entries={names[0]: Entry(done=True, target="then")})
    assert found(made(inventory, reset, journal=journal))["volume", "data"][0] == "refused"


def test_networks_whose_ranges_are_taken_are_refused():
    other = msgspec.structs.replace(EMPTY, networks=(network("other", "10.9.0.0/16"),))
    assert found(made(source(networks=(network(),)), other))["network", "lan"] == ("refused", ["subnet"])
    own = msgspec.structs.replace(EMPTY, subnets=("10.9.0.0/24",))
    inventory = source(networks=(network(),), containers=(container(networks={"lan": {}}),))
    decided = made(inventory, own)
    assert found(decided)["container", "web"] == ("left", ["needs"])


def test_what_is_chosen_by_name_comes_with_what_it_needs_and_nothing_else():
    inventory = source(
        images=(IMAGE, msgspec.structs.replace(IMAGE, id="sha256:b", tags=("b:1",))),
        volumes=(Volume(name="data"), Volume(name="more")),
        containers=(container(mounts=[mount("data")]), container("other", mounts=[mount("more")])),
    )
    assert {name for _, name in found(made(inventory, names=("web",)))} == {
        "web:1, web:latest",
        "data",
        "web",
    }
    images = made(inventory, kinds=frozenset({Kind.IMAGE}), names=("b",))
    assert {name for _, name in found(images)} == {"b:1"}
    alone = made(inventory, kinds=frozenset({Kind.CONTAINER}))
    assert found(alone)["container", "web"] == ("left", ["needs", "needs"])
    target = msgspec.structs.replace(EMPTY, images=(IMAGE,), volumes=(Volume(name="data"),))
    assert found(made(inventory, target, kinds=frozenset({Kind.CONTAINER})))["container", "web"][0] == "carry"


def test_a_container_is_started_if_it_ran_unless_it_is_anothers_processors():
    running = source(containers=(container(state="running"),))
    assert steps(made(running), ContainerStep)[0].start
    assert not steps(made(running, start=False), ContainerStep)[0].start
    arm = msgspec.structs.replace(EMPTY, architecture="arm64")
    assert not steps(made(running, arm), ContainerStep)[0].start
    assert not steps(made(source(containers=(container(),))), ContainerStep)[0].start


def test_an_image_whose_name_means_another_by_now_is_used_by_its_id():
    moved = msgspec.structs.replace(IMAGE, id="sha256:new")
    old = msgspec.structs.replace(IMAGE, tags=())
    decided = made(source(images=(moved, old), containers=(container(),)))
    assert steps(decided, ContainerStep)[0].image == ""
    assert sum(len(one.images) for one in steps(decided, ImageStep)) == 2


def test_what_makes_a_container_again_is_what_the_user_gave():
    told = container(
        config={"MacAddress": "02:00:00:00:00:01", "Env": ["A=b"]},
        host={
            "NetworkMode": "id-lan",
            "Links": ["/db:/web/base"],
            "VolumesFrom": [f"{'db':0<64}:ro"],
            "PidMode": f"container:{'db':0<64}",
        },
        networks={
            "lan": {
                "Aliases": ["www", f"{'web':0<64}"[:12]],
                "IPAMConfig": {"IPv4Address": "10.9.0.5"},
                "IPAddress": "10.9.0.5",
                "MacAddress": "02:42:0a:09:00:05",
            }
        },
    )
    body = translating.body(told, {"db".ljust(64, "0"): "db", told.id: "web"}, {"id-lan": "lan"})
    host = body["HostConfig"]
    assert (host["Links"], host["VolumesFrom"], host["PidMode"]) == (["db:base"], ["db:ro"], "container:db")
    assert (host["NetworkMode"], body["Env"], "Hostname" in body) == ("lan", ["A=b"], False)
    assert body["NetworkingConfig"]["EndpointsConfig"]["lan"] == {
        "Aliases": ["www"],
        "IPAMConfig": {"IPv4Address": "10.9.0.5"},
        "MacAddress": "02:00:00:00:00:01",
    }
    named = container(config={"Hostname": "mine"}, networks={"bridge": {}})
    assert translating.body(named, {}, {})["Hostname"] == "mine"
    assert "NetworkingConfig" not in translating.body(named, {}, {})
    shared = container(host={"NetworkMode": "host"}, config={"Hostname": "host"}, networks={"host": {}})
    assert "Hostname" not in translating.body(shared, {}, {})


def test_volumes_without_a_name_keep_theirs():
    anonymous = "f" * 64
    told = container(host={"Binds": ["named:/n"]}, mounts=[mount("named", "/n"), mount(anonymous, "/a")])
    mounts = translating.body(told, {}, {})["HostConfig"]["Mounts"]
    assert mounts == [{"Type": "volume", "Source": anonymous, "Target": "/a", "ReadOnly": False}]
    inventory = source(volumes=(Volume(name=anonymous), Volume(name="named")), containers=(told,))
    assert [one.volume.name for one in steps(made(inventory), VolumeStep)] == [anonymous, "named"]


def test_a_volume_is_read_where_nothing_else_is_seen_and_nothing_writes():
    running = container("a", mounts=[mount("v")], state="running")
    still = container("b", mounts=[mount("v", "/srv/v/")])
    assert reading.via("v", (running, still)) == Via(still.id, "/srv/v")
    assert reading.via("v", (running,)) == Via(running.id, "/data", running=True)
    nested = container("c", mounts=[mount("v"), mount("w", "/data/w")])
    over = container("d", mounts=[mount("v", "/etc")])
    part = container(
        "e",
        mounts=[mount("v")],
        host={"Mounts": [{"Target": "/data", "VolumeOptions": {"Subpath": "sub"}}]},
    )
    cached = container("f", mounts=[mount("v")], host={"Tmpfs": {"/data/tmp": ""}})
    for one in (nested, over, part, cached):
        assert reading.via("v", (one,)) is None


def test_what_is_lost_of_what_is_carried_is_told():
    inventory = source(
        volumes=(
            Volume(name="v"),
            Volume(name="nfs", options={"type": "nfs", "device": ":/x", "o": "addr=h"}),
        ),
        containers=(
            container(
                state="running",
                mounts=[mount("v")],
                host={"Tmpfs": {"/t": ""}, "PortBindings": {"80/tcp": [{}]}},
                SizeRw=77,
            ),
        ),
    )
    losses = {one.name: " ".join(one.losses) for one in made(inventory).items}
    assert all(word in losses["web"] for word in ("77 bytes", "memory", "tmpfs", "ports"))
    assert "lies elsewhere" in losses["nfs"]
    assert "meanwhile" in losses["v"]
    assert [one.content for one in steps(made(inventory), VolumeStep)] == [True, False]
    assert made(inventory).items[0].verdict is Verdict.CARRY
