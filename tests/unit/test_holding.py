"""Who still has a share, as a guest's own tables tell it."""

from __future__ import annotations

from atoll.vm.holding import find_device, parse_holders

MOUNTS = """\
21 1 0:19 / / rw - overlay atoll rw
40 21 0:41 / /home/a\\040b rw,relatime shared:9 - virtiofs atoll-share10 rw
41 21 0:42 / /srv rw,relatime shared:9 master:3 - virtiofs atoll-share1 rw
"""


def test_the_device_is_found_by_its_whole_tag():
    assert find_device(MOUNTS, "atoll-share1") == "0:42"
    assert find_device(MOUNTS, "atoll-share10") == "0:41"
    assert find_device(MOUNTS, "atoll-share0") == ""


def test_containers_are_named_by_their_ids_and_others_by_process_and_name():
    one, two = "4f" * 32, "0a" * 32
    said = (
        f"812 0::/docker/{one} httpd\n900 0::/system.slice/docker-{two}.scope sh\n"
        f"901 0::/docker/{one} sh\n77 0::/ a b\x1b[1m\nno such process\n\n"
    )
    assert parse_holders(said) == (
        "container 4f4f4f4f4f4f",
        "container 0a0a0a0a0a0a",
        "process 77 (a b[1m)",
    )
