"""Egress as users say it and see it: lines, edits, and the log that is followed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from atoll.cli import network_audit
from atoll.cli.network_audit import _is_wanted, _shown, _Tail
from atoll.config import NetworkKind, load
from atoll.errors import UsageError
from atoll.machine.editing import edited, shown
from atoll.machine.spec import MachineSpec
from atoll.network.audit import Decided, Ended, Resolved, Suppressed
from atoll.vm.network.attachment import Attachment
from atoll.vm.network.egress import held_to, parse_egress, require_own, shown_egress

SPEC = MachineSpec(id="0" * 32, image="debian", created=0.0)


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        (None, ()),
        ("", ()),
        ("none", ("none",)),
        ("registries; allow  tcp *.example.org:443,80 ;", ("registries", "allow tcp *.example.org:443,80")),
        (["deny 10.0.0.0/8", " "], ("deny 10.0.0.0/8",)),
    ],
)
def test_lines_are_taken_as_they_come(said, lines):
    assert parse_egress(said) == lines
    assert parse_egress(shown_egress(lines)) == lines


def test_what_cannot_be_enforced_is_refused():
    require_own((), NetworkKind.NONE)
    require_own(("none",), NetworkKind.OWN)
    for kind in (NetworkKind.NONE, NetworkKind.SLIRP):
        with pytest.raises(UsageError) as caught:
            require_own(("none",), kind)
        assert caught.value.code == "usage.egress"
    attachment = Attachment(network=Path("/x"), egress=("none",))
    assert held_to(attachment, ("open",)).egress == ("open",)
    assert held_to(None, ()) is None
    with pytest.raises(UsageError):
        held_to(None, ("none",))


def test_an_edit_that_would_leave_a_policy_without_its_network_is_refused():
    config = load({}, environment={}, files=()).config
    held = edited(config, SPEC, {"egress": "registries; limit rate 1M"})
    assert held.egress == ("registries", "limit rate 1M")
    assert shown(held, "egress") == "registries; limit rate 1M"
    for changes in ({"network": "none"}, {"network": "slirp"}, {"egress": "permit *"}):
        with pytest.raises(UsageError):
            edited(config, held, changes)
    assert edited(config, held, {"network": "none", "egress": ""}).egress == ()
    old = msgspec.json.decode(msgspec.json.encode(SPEC).replace(b',"egress":[]', b""), type=MachineSpec)
    assert old == SPEC


def test_a_log_is_followed_when_it_is_moved_away(tmp_path):
    path, older = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    assert list(_Tail(path).lines()) == []
    older.write_bytes(b"1\n")
    path.write_bytes(b"2\n3")
    tail = _Tail(path)
    assert list(tail.lines()) == [b"1", b"2"]
    with path.open("ab") as file:
        file.write(b"3\n4\n")
    path.replace(older)
    path.write_bytes(b"5\n")
    assert list(tail.lines()) == [b"33", b"4", b"5"]
    assert list(tail.lines()) == []
    for file in tail._files:
        file.close()


def test_what_is_shown_says_who_what_and_why(monkeypatch):
    monkeypatch.setattr(network_audit.time, "localtime", network_audit.time.gmtime)
    base = {"at": 0.0, "guest": "dev"}
    end = {"protocol": "tcp", "address": "2001:db8::1", "port": 443, "name": "a.example"}
    decided = Decided(**base, **end, verdict="deny", rule="default")
    ended = Ended(**base, **end, guest_port=1, sent=2, received=3, seconds=4.0, why="ended")
    assert _shown(decided).split() == [
        *("1970-01-01", "00:00:00", "dev", "deny", "tcp", "a.example", "[2001:db8::1]:443", "default")
    ]
    assert "2 B sent, 3 B received, 4.0 s" in _shown(ended)
    resolved = Resolved(**base, name="\x1b[31mbad", verdict="deny")
    assert "\x1b" not in _shown(resolved)
    assert "7 more" in _shown(Suppressed(**base, count=7))
    wanted = [_is_wanted(each, None, denied=True) for each in (decided, ended, resolved)]
    assert wanted == [True, False, True]
    assert not _is_wanted(decided, "other", denied=False)
