"""Clients and upstreams of the name server, made with dnspython."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address
from random import Random

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from atoll.network.dns.forwarder import (
    Client,
    Close,
    Forwarder,
    Learned,
    Settings,
    Stripped,
    ToClient,
    ToUpstream,
)
from atoll.network.dns.names import Names
from atoll.network.dns.upstreams import Hosts, Resolvers, Upstream

FIRST, SECOND, THIRD = Upstream("192.0.2.1"), Upstream("192.0.2.2"), Upstream("2001:db8::3")
ME = Client("machine", ("10.0.2.15", 5000))
NETWORKS = (IPv4Network("10.0.2.0/24"), IPv6Network("fd00:a::/64"))
RANDOM = Random(7)


def question(name, kind="A", **settings):
    """A question of a client."""
    settings = {"use_edns": False, "id": RANDOM.getrandbits(16)} | settings
    return dns.message.make_query(name, kind, **settings)


class Peer:
    """A name server with its clients and upstreams: keeps what is open, and hands out what comes."""

    def __init__(self, *upstreams, verdict=lambda _machine, _name: None, hosts=None, **settings):
        self.names = Names(networks=NETWORKS)
        self.names.add("web", "web", [ip_address("10.0.2.15"), ip_address("fd00:a::15")])
        settings = {"forbidden": NETWORKS} | settings
        self.forwarder = Forwarder(self.names, Settings(**settings), verdict, Random(3))
        self.forwarder.follow(Resolvers(upstreams or (FIRST,)), hosts or Hosts())
        self.open: dict[int, ToUpstream] = {}
        self.sent: list[ToUpstream] = []
        self.replies: list[tuple[Client, dns.message.Message]] = []
        self.raw: list[bytes] = []
        self.learned: list[Learned | Stripped] = []

    def take(self, effects):
        for effect in effects:
            match effect:
                case ToUpstream():
                    self.open[effect.number] = effect
                    self.sent.append(effect)
                case Close():
                    del self.open[effect.number]
                case ToClient():
                    self.replies.append((effect.client, dns.message.from_wire(effect.message)))
                    self.raw.append(effect.message)
                case _:
                    self.learned.append(effect)

    def ask(self, name, kind="A", now=0.0, client=ME, **settings):
        """The reply to a question, if it comes at once."""
        asked = name if isinstance(name, dns.message.Message) else question(name, kind, **settings)
        before = len(self.replies)
        self.take(self.forwarder.ask(client, asked.to_wire(), now))
        if len(self.replies) == before:
            return None
        reply = self.replies[-1][1]
        assert reply.id == asked.id
        assert reply.question == asked.question
        assert reply.flags & dns.flags.QR
        return reply

    def asked(self, number=-1):
        """What an upstream was asked."""
        return dns.message.from_wire(self.sent[number].message)

    def reply(self, *records, now=0.0, number=-1, rcode=0, authority=(), additional=(), flags=0, change=None):
        """Let an upstream answer."""
        sent = self.sent[number]
        message = dns.message.make_response(dns.message.from_wire(sent.message), recursion_available=True)
        message.set_rcode(rcode)
        message.flags |= flags
        message.answer = [dns.rrset.from_text(*record) for record in records]
        message.authority = [dns.rrset.from_text(*record) for record in authority]
        message.additional = [dns.rrset.from_text(*record) for record in additional]
        data = message.to_wire(max_size=65_535)
        if change is not None:
            data = change(data)
        before = len(self.replies)
        self.take(self.forwarder.answer(sent.number, data, now))
        return self.replies[-1][1] if len(self.replies) > before else None

    def resolve(self, name, *records, kind="A", now=0.0, **answer):
        """Ask, and let the upstream answer."""
        assert self.ask(name, kind, now) is None
        return self.reply(*records, now=now, **answer)

    def tick(self, now):
        self.take(self.forwarder.tick(now))


def data(message, section="answer"):
    """The data of all records in a section."""
    return [record.to_text() for rrset in getattr(message, section) for record in rrset]


def rcode(message):
    return dns.rcode.to_text(message.rcode())
