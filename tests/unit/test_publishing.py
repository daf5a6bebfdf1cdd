"""What containers publish, from what the engine says."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers.publishing import decode, names, publications
from atoll.errors import EngineError


def container(name="web", ports=(), networks=None, labels=None):
    return {
        "Id": "f" * 64,
        "Names": [f"/{name}"],
        "Ports": list(ports),
        "Labels": labels,
        "NetworkSettings": {
            "Networks": {"bridge": {"IPAddress": "172.17.0.2"}} if networks is None else networks
        },
        "State": "running",
    }


def port(private=80, public=8080, ip="0.0.0.0", kind="tcp"):
    return {"IP": ip, "PrivatePort": private, "PublicPort": public, "Type": kind}


def published(*containers, lan=False):
    found = publications(decode(json.dumps(containers).encode()), lan=lan)
    return [(str(one), one.address, one.private, one.container) for one in found]


class TestPublications:
    def test_all_addresses_are_those_of_this_host_alone_unless_others_may_come(self):
        one = container(ports=[port(), port(ip="::")])
        assert published(one) == [
            ("127.0.0.1:8080/tcp", "172.17.0.2", 80, "web"),
            ("[::1]:8080/tcp", "172.17.0.2", 80, "web"),
        ]
        assert [shown for shown, *_ in published(one, lan=True)] == ["0.0.0.0:8080/tcp", "[::]:8080/tcp"]

    def test_an_address_that_was_asked_for_is_the_address(self):
        one = container(ports=[port(ip="192.0.2.7"), port(ip="127.0.0.2", kind="udp")])
        assert [shown for shown, *_ in published(one)] == ["192.0.2.7:8080/tcp", "127.0.0.2:8080/udp"]

    def test_what_is_only_exposed_or_cannot_be_passed_on_is_left_out(self):
        exposed = {"PrivatePort": 80, "Type": "tcp"}
        assert published(container(ports=[exposed, port(kind="sctp"), port(ip="example")])) == []
        assert published(container(ports=[port()], networks={})) == []

    def test_ipv4_comes_first_and_networks_in_the_order_of_their_names(self):
        networks = {
            "b": {"IPAddress": "10.0.0.2", "GlobalIPv6Address": ""},
            "a": {"IPAddress": "", "GlobalIPv6Address": "fd00::2"},
        }
        [one] = published(container(ports=[port()], networks=networks))
        assert one[1] == "10.0.0.2"

    @pytest.mark.parametrize("answer", [b"", b"{}", b"[1]", b'[{"Id": 1}]', b"\xff", b"[" * 100_000])
    def test_what_is_no_list_is_told_of(self, answer):
        with pytest.raises(EngineError) as caught:
            decode(answer)
        assert caught.value.code == "engine.answer"

    def test_a_port_beyond_all_ports_is_no_answer(self):
        with pytest.raises(EngineError):
            published(container(ports=[port(public=65_536)]))

    @given(
        st.lists(
            st.tuples(st.text(max_size=20), st.integers(0, 65_535), st.sampled_from(["tcp", "udp", "x"])),
            max_size=30,
        ),
        st.booleans(),
    )
    def test_whatever_is_said_comes_to_addresses_and_ports_of_which_none_is_there_twice(self, said, lan):
        ports = [port(public=number, ip=ip, kind=kind) for ip, number, kind in said]
        found = publications(decode(json.dumps([container(ports=ports)]).encode()), lan=lan)
        assert len({(one.protocol, one.host, one.port) for one in found}) == len(found)
        for one in found:
            assert ipaddress.ip_address(one.host)
            assert 0 < one.port < 65_536
            assert one.protocol in {"tcp", "udp"}


class TestNames:
    def test_a_service_has_the_addresses_of_all_its_containers_and_goes_with_the_last_one(self):
        labels = {"com.docker.compose.service": "web", "com.docker.compose.project": "shop"}
        replicas = [
            container(f"shop-web-{number}", networks={"n": {"IPAddress": f"10.0.0.{number}"}}, labels=labels)
            for number in (1, 2)
        ]
        for count in (2, 1, 0):
            found = names(decode(json.dumps(replicas[:count]).encode()))
            wanted = (
                {"web.shop.atoll.internal": tuple(f"10.0.0.{n}" for n in (1, 2)[:count])} if count else {}
            )
            for number in (1, 2)[:count]:
                wanted[f"shop-web-{number}.atoll.internal"] = (f"10.0.0.{number}",)
            assert found == wanted

    def test_what_is_no_name_of_a_host_has_none(self):
        found = names(decode(json.dumps([container("My_App"), container("a.b"), container("-x")]).encode()))
        assert found == {"my-app.atoll.internal": ("172.17.0.2",)}
