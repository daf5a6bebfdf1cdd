"""What guests may reach: rules as users write them, decisions, names, limits."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from dns_peers import ME, Peer, rcode
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import UsageError
from atoll.network.dns.forwarder import Learned
from atoll.network.dns.message import Rcode
from atoll.network.policy import learned
from atoll.network.policy.buckets import TokenBucket
from atoll.network.policy.judge import Judge
from atoll.network.policy.learned import LearnedNames
from atoll.network.policy.parsing import parse_policy, parse_rule
from atoll.network.policy.presets import PRESETS
from atoll.network.policy.rules import Action, Domain, Judgement, Limits, Policy, Ports, Protocol, Rule

ALLOW, DENY, ASK = Judgement.ALLOW, Judgement.DENY, Judgement.ASK
TCP, UDP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP


def packed(address):
    return ip_address(address).packed


def decide(lines, address, port=22, names=(), protocol=TCP):
    policy = lines if isinstance(lines, Policy) else parse_policy(lines)
    return policy.decide(protocol, packed(address), port, names).judgement


# Rules as they are written


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("allow *", Rule(Action.ALLOW)),
        ("deny 10.0.0.0/8", Rule(Action.DENY, ip_network("10.0.0.0/8"))),
        ("deny 10.1.2.3:25", Rule(Action.DENY, ip_network("10.1.2.3/32"), None, (Ports(25, 25),))),
        ("deny fd00::/8", Rule(Action.DENY, ip_network("fd00::/8"))),
        (
            "allow udp [2001:db8::1]:53",
            Rule(Action.ALLOW, ip_network("2001:db8::1/128"), UDP, (Ports(53, 53),)),
        ),
        (
            " allow  tcp *.Example.ORG.:443,8000-8100",
            Rule(Action.ALLOW, Domain("example.org", below=True), TCP, (Ports(443, 443), Ports(8000, 8100))),
        ),
        ("deny icmp example.org", Rule(Action.DENY, Domain("example.org"), ICMP)),
        ("allow udp", Rule(Action.ALLOW, Domain("udp"))),
    ],
)
def test_a_rule_is_read_as_it_is_written(text, rule):
    if text == "allow udp":  # a protocol alone is no place
        with pytest.raises(UsageError, match="no place"):
            parse_rule(text)
        return
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "permit *",
        "allow",
        "allow a b",
        "allow tcp",
        "allow 10.0.0.1/8",
        "allow 300.1.1.1",
        "allow exa mple.org",
        "allow *.*.org",
        "allow ex*mple.org",
        "allow bücher.example",
        "allow *:0",
        "allow *:443-80",
        "allow *:65536",
        "allow *:http",
        "allow *:",
        "allow [fd00::/8",
        "allow fd00::1::2",
        "deny icmp *:80",
        "default",
        "default maybe",
    ],
)
def test_what_is_no_rule_is_said_so_with_a_hint(text):
    with pytest.raises(UsageError) as caught:
        parse_policy([text or "allow "]) if text.startswith("default") else parse_rule(text)
    assert caught.value.code == "usage.rule"
    assert caught.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_usage_error(text):
    try:
        rule = parse_rule(text)
    except UsageError:
        return
    assert parse_rule(str(rule)) == rule


NAMES = st.sampled_from(["example.org", "a.example.org", "b.a.example.org", "other.net"])
WHERE = st.one_of(
    st.none(),
    st.builds(Domain, NAMES, st.booleans()),
    st.sampled_from(["203.0.113.0/24", "203.0.113.5/32", "2001:db8::/32"]).map(ip_network),
)
PORTS = st.sampled_from([(), (Ports(443, 443),), (Ports(1, 100), Ports(1000, 2000))])
RULES = st.builds(
    lambda action, where, protocol, ports: Rule(action, where, protocol, () if protocol is ICMP else ports),
    st.sampled_from(Action),
    WHERE,
    st.none() | st.sampled_from(Protocol),
    PORTS,
)
POLICIES = st.builds(Policy, st.lists(RULES, max_size=6).map(tuple), st.sampled_from(Action))


@given(POLICIES)
def test_a_policy_is_read_back_from_its_text(policy):
    lines = [*map(str, policy.rules), "", "# a comment", f"default {policy.default} # another"]
    assert parse_policy(lines) == policy


def test_presets_are_policies():
    assert parse_policy(["none"]) == Policy((), Action.DENY)
    assert parse_policy(["open"]) == Policy((), Action.ALLOW)
    registries = parse_policy(["registries"])
    assert registries.default is Action.DENY
    assert registries.may_resolve("pypi.org")
    assert not registries.may_resolve("evil.pypi.org")
    assert set(PRESETS) == {"none", "registries", "open"}
    more = parse_policy(["registries", "allow tcp git.example:22"])
    assert (len(more.rules), more.default) == (len(registries.rules) + 1, Action.DENY)


@pytest.mark.parametrize(
    ("lines", "default"),
    [
        ([], Action.ALLOW),
        (["deny 10.0.0.0/8"], Action.ALLOW),
        (["allow example.org"], Action.DENY),
        (["allow example.org", "default allow"], Action.ALLOW),
        (["default deny"], Action.DENY),
        (["open", "allow example.org"], Action.ALLOW),
    ],
)
def test_the_default_follows_from_the_rules_unless_it_is_said(lines, default):
    assert parse_policy(lines).default is default


# Decisions


def test_the_first_rule_that_matches_decides():
    lines = ["allow 10.1.0.0/16", "deny 10.0.0.0/8", "allow tcp *:22", "default deny"]
    assert decide(lines, "10.1.2.3") is ALLOW
    assert decide(lines, "10.2.2.3") is DENY
    assert decide(lines, "203.0.113.5") is ALLOW
    assert decide(lines, "203.0.113.5", protocol=UDP) is DENY
    assert decide(lines, "2001:db8::1") is ALLOW
    verdict = parse_policy(lines).decide(TCP, packed("10.2.2.3"), 1, ())
    assert str(verdict.rule) == "deny 10.0.0.0/8"


def test_a_rule_with_ports_says_nothing_of_icmp():
    assert decide(["deny *:1-65535"], "203.0.113.5", 0, protocol=ICMP) is ALLOW
    assert decide(["deny *"], "203.0.113.5", 0, protocol=ICMP) is DENY


def test_a_domain_is_that_name_and_a_wildcard_all_below_it():
    for name, exact, below in [
        ("example.org", ALLOW, DENY),
        ("a.example.org", DENY, ALLOW),
        ("b.a.example.org", DENY, ALLOW),
        ("badexample.org", DENY, DENY),
    ]:
        assert decide(["allow example.org"], "203.0.113.5", names=[name]) is exact
        assert decide(["allow *.example.org"], "203.0.113.5", names=[name]) is below


def test_an_address_that_no_name_was_asked_for_matches_no_domain():
    assert decide(["allow example.org"], "203.0.113.5") is DENY
    assert decide(["allow example.org"], "203.0.113.5", 443) is DENY


def test_where_clients_say_whom_they_want_they_are_asked():
    policy = parse_policy(["allow tcp *.example.org:443"])
    address, names = packed("203.0.113.5"), ["a.example.org", "other.net"]
    assert policy.decide(TCP, address, 443, names).judgement is ASK

    def said(name, known=names):
        return policy.decide_named(TCP, address, 443, known, name).judgement

    assert said("a.example.org") is ALLOW
    assert said("b.example.org") is DENY  # allowed, but not at this address as far as is known
    assert said("other.net") is DENY
    assert said(None) is DENY
    assert said("a.example.org", []) is DENY


def test_a_denied_domain_is_denied_wherever_it_is():
    policy = parse_policy(["deny ads.example"])
    address = packed("203.0.113.5")
    assert policy.decide(TCP, address, 443, ()).judgement is ASK
    assert policy.decide(TCP, address, 22, ()).judgement is ALLOW
    assert policy.decide(TCP, address, 22, ["ads.example"]).judgement is DENY
    assert policy.decide_named(TCP, address, 443, (), "ads.example").judgement is DENY
    assert policy.decide_named(TCP, address, 443, ["ads.example"], "site.example").judgement is ALLOW
    assert policy.decide_named(TCP, address, 443, (), None).judgement is ALLOW


def test_nobody_is_asked_when_it_makes_no_difference():
    for lines in (["open"], ["none"], ["deny 10.0.0.0/8"], ["allow 203.0.113.0/24", "allow example.org"]):
        assert decide(lines, "203.0.113.5", 443, ["example.org"]) is not ASK
    assert decide(["allow *", "deny ads.example"], "203.0.113.5", 443) is ALLOW


def test_quic_hides_its_name_so_a_rule_has_to_mean_it():
    assert decide(["allow example.org"], "203.0.113.5", 443, ["example.org"], UDP) is DENY
    assert decide(["allow udp example.org:443"], "203.0.113.5", 443, ["example.org"], UDP) is ALLOW
    assert decide(["allow example.org"], "203.0.113.5", 53, ["example.org"], UDP) is ALLOW


KNOWN = st.lists(NAMES, max_size=3, unique=True)
ADDRESS = st.sampled_from(["203.0.113.5", "203.0.114.5", "2001:db8::5"]).map(packed)


@given(POLICIES, st.sampled_from(Protocol), ADDRESS, st.sampled_from([22, 80, 443, 1500]), KNOWN)
def test_a_verdict_that_is_final_is_the_same_whatever_is_said(policy, protocol, address, port, names):
    port = 0 if protocol is ICMP else port
    verdict = policy.decide(protocol, address, port, names)
    if protocol is TCP and port in {80, 443}:
        for said in [None, *names, "unknown.example", "example.org", "a.example.org", "other.net"]:
            later = policy.decide_named(protocol, address, port, names, said)
            assert later.judgement is not ASK
            assert verdict.judgement in {ASK, later.judgement}
    else:
        assert verdict.judgement is not ASK


@given(POLICIES, ADDRESS, st.sampled_from([80, 443]), KNOWN, NAMES | st.none())
def test_what_is_allowed_by_a_domain_was_said_and_is_known(policy, address, port, names, said):
    verdict = policy.decide_named(TCP, address, port, names, said)
    if verdict.judgement is ALLOW and verdict.rule and isinstance(verdict.rule.where, Domain):
        assert said in names
        assert verdict.rule.where.matches(said)


@given(POLICIES, NAMES, st.sampled_from(Protocol), st.sampled_from([22, 443, 1500]))
def test_a_name_that_is_kept_secret_is_allowed_by_no_rule_about_it(policy, name, protocol, port):
    """What a guest cannot ask for it could not have reached by a rule about its name."""
    if policy.may_resolve(name):
        return
    end = (protocol, packed("198.51.100.1"), 0 if protocol is ICMP else port, [name])
    verdict = policy.decide(*end)
    if verdict.judgement is ASK:
        verdict = policy.decide_named(*end, name)
    assert verdict.judgement is DENY


def test_names_that_may_be_resolved():
    policy = parse_policy(["deny bad.example.org", "deny udp half.example.org", "allow *.example.org"])
    assert not policy.may_resolve("bad.example.org")
    assert policy.may_resolve("half.example.org")
    assert policy.may_resolve("good.example.org")
    assert not policy.may_resolve("example.org")
    # Asking is a way out, which a rule about addresses does not open.
    assert not parse_policy(["allow 10.0.0.0/8"]).may_resolve("secret.evil.example")
    assert parse_policy(["deny 10.0.0.0/8"]).may_resolve("any.example")


# Names that guests were told

A, B = packed("203.0.113.5"), packed("203.0.113.6")


def test_a_name_is_known_for_a_while_after_it_was_told():
    names = LearnedNames()
    names.learn("g", "a.example", [A, B], 5, 100.0)
    names.learn("g", "b.example", [A], 90_000_000, 100.0)
    assert names.names("g", A, 3699.0) == ("a.example", "b.example")
    assert names.names("other", A, 100.0) == ()
    assert names.names("g", B, 3700.0) == ()
    assert names.names("g", A, 3700.0) == ("b.example",)
    assert names.names("g", A, 86_500.0) == ()
    assert not names._guests["g"]


def test_a_name_that_is_told_again_with_less_time_is_known_as_long_as_before():
    names = LearnedNames()
    names.learn("g", "a.example", [A], 10_000, 0.0)
    names.learn("g", "a.example", [A], 1, 1.0)
    assert names.names("g", A, 9_999.0) == ("a.example",)
    names.forget("g")
    assert names.names("g", A, 1.0) == ()


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4)), max_size=40))
def test_what_one_guest_is_told_is_bounded_and_the_latest_is_kept(answers):
    names = LearnedNames()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "MOST_ADDRESSES", 4)
        patch.setattr(learned, "MOST_NAMES", 3)
        for name, addresses in answers:
            packs = [bytes((10, 0, 0, at)) for at in addresses]
            names.learn("g", str(name), packs, 60, 0.0)
            known = names._guests["g"]
            assert len(known) <= 4
            assert all(len(each) <= 3 for each in known.values())
            for address in packs[-4:]:
                assert names.names("g", address, 0.0)[-1] == str(name)


def test_guests_have_policies_of_their_own_which_may_change():
    judge = Judge()
    judge.follow("strict", parse_policy(["allow good.example"]))
    assert judge.resolve("strict", "bad.example") is Rcode.NXDOMAIN
    assert judge.resolve("strict", "good.example") is None
    assert judge.resolve("free", "bad.example") is None
    assert judge.decide("strict", TCP, A, 443, 0.0).judgement is DENY
    assert judge.decide("free", TCP, A, 443, 0.0).judgement is ALLOW
    judge.learn(Learned("strict", "good.example", (A,), 60), 0.0)
    assert judge.names("strict", A, 1.0) == ("good.example",)
    assert judge.decide("strict", TCP, A, 22, 1.0).judgement is ALLOW
    assert judge.decide("strict", TCP, A, 443, 1.0).judgement is ASK
    assert judge.decide_named("strict", TCP, A, 443, "good.example", 1.0).judgement is ALLOW
    judge.follow("strict", parse_policy(["none"]))
    assert judge.decide("strict", TCP, A, 22, 1.0).judgement is DENY
    judge.follow("strict", None)
    assert not judge.has_policy("strict")
    assert judge.decide("strict", TCP, A, 22, 1.0).judgement is ALLOW
    judge.forget("strict")
    assert judge.decide("strict", TCP, A, 22, 1.0).judgement is ALLOW
    assert judge.names("strict", A, 1.0) == ()


def test_the_name_server_tells_what_may_be_reached_and_the_judge_what_it_told():
    judge = Judge()
    peer = Peer(verdict=judge.resolve)
    judge.follow(ME.machine, parse_policy(["allow tcp *.example:443"]))
    assert rcode(peer.ask("evil.test")) == "NXDOMAIN"
    assert not peer.sent
    peer.resolve("Shop.Example", ("shop.example.", 60, "IN", "A", "203.0.113.5"))
    for told in peer.learned:
        judge.learn(told, 0.0)
    assert judge.decide(ME.machine, TCP, A, 443, 0.0).judgement is ASK
    assert judge.decide_named(ME.machine, TCP, A, 443, "shop.example", 0.0).judgement is ALLOW
    assert judge.decide(ME.machine, TCP, B, 443, 0.0).judgement is DENY


# Limits


def test_limits_are_read_as_they_are_written():
    policy = parse_policy(["limit rate 10M", "limit connections 100/s", "limit rate 1500KB/s"])
    assert policy == Policy(limits=Limits(1_500_000, 100))
    assert parse_policy(["registries", "limit rate 1G"]).default is Action.DENY


@pytest.mark.parametrize(
    "text",
    [
        "limit",
        "limit rate",
        "limit rate 10",
        "limit rate 10X",
        "limit rate -1",
        "limit packets 9",
        "limit rate 1M 2M",
    ],
)
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_policy([text])
    assert caught.value.code == "usage.rule"


def test_a_policy_has_not_more_lines_than_can_be_looked_through():
    with pytest.raises(UsageError):
        parse_policy(["deny 10.0.0.1"] * 1001)


@given(
    st.floats(0.5, 1e6),
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5000)), max_size=40),
)
def test_no_more_passes_than_rate_and_burst_allow(rate, burst, steps):
    bucket, now, passed = TokenBucket(rate, burst, 0.0), 0.0, 0
    for gap, count in steps:
        now += gap
        fits = bucket.room(now)
        assert 0 <= fits <= burst
        if bucket.take(count, now):
            passed += count
            assert count <= fits
        else:
            assert bucket.wait(count, now) > 0 or count > burst
        assert passed <= burst + rate * now * 1.000001 + 1e-6


def test_what_has_passed_already_is_waited_for():
    bucket = TokenBucket(100.0, 50, 0.0)
    bucket.owe(150, 0.0)
    assert bucket.room(0.5) == 0
    assert bucket.wait(1, 0.5) == pytest.approx(0.51)
    assert bucket.room(2.0) == 50
    assert not bucket.take(51, 1000.0)
    assert bucket.take(50, 999.0)  # a clock that goes back gives nothing and takes nothing
