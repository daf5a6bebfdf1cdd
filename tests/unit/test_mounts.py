"""What containers have of the machine where this host may have been meant."""

import json

import pytest

from atoll.containers.mounts import Unshared, unshared
from atoll.containers.publishing import decode

HOME = ("/home/me", "/srv/data")


def found(*sources, kind="bind", shared=HOME):
    mounts = [{"Type": kind, "Source": source, "Destination": "/x", "RW": True} for source in sources]
    answer = json.dumps([{"Id": "a" * 64, "Names": ["/web"], "Mounts": mounts}])
    return [one.source for one in unshared(decode(answer.encode()), shared)]


def test_a_directory_beside_the_shares_is_told_of_with_who_has_it():
    answer = json.dumps([{"Id": "a", "Names": ["/web"], "Mounts": [{"Type": "bind", "Source": "/tmp/x"}]}])
    [one] = unshared(decode(answer.encode()), HOME)
    assert one == Unshared("/tmp/x", "web")
    assert "/tmp/x in web" in str(one)


@pytest.mark.parametrize(
    "source", ["/home/me", "/home/me/app", "/srv/data/a/b", "/run/docker.sock", "/proc", "/"]
)
def test_what_is_shared_and_what_is_the_machines_anyway_is_not(source):
    assert found(source) == []


@pytest.mark.parametrize("source", ["/home/meme", "/home", "/srv", "/etc/hosts", "relative", ""])
def test_a_name_that_only_begins_as_a_share_does_is(source):
    assert found(source) == [source]


def test_volumes_are_dockers_own():
    assert found("/var/lib/docker/volumes/x/_data", "x", kind="volume") == []


def test_each_is_told_once_and_no_more_than_can_be_read():
    assert found("/tmp/x", "/tmp/x", "/tmp/y") == ["/tmp/x", "/tmp/y"]
    assert len(found(*(f"/tmp/{number}" for number in range(1000)))) == 256
